"""Plain data and pure functions that every other layer shares; imports nothing of Palaestra."""
