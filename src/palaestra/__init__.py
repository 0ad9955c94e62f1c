"""Palaestra: Gymnasium environments, rollouts and learners for agentic RL with language models.

Importing registers the environment ids, so that `gym.make("CodeSandbox-v0")` works; it imports no torch.
"""

from .envs.registration import register_ids

__version__ = "0.1.0"
__all__ = ["__version__", "register_ids"]

register_ids()
