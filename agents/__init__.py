"""What acts: scripted agents, language-model policies, and the collection of their episodes."""
