"""Palaestra: Gymnasium environments, rollouts and learners for agentic RL with language models.

Importing registers the environment ids, so that `gym.make("CodeSandbox-v0")` works; it imports no torch.
"""

__version__ = "0.1.0"
