"""Gymnasium environments: `ToolEnv`, what is built on it, and what an environment of one's own needs."""

from ..core.errors import EnvironmentFailure
from ..core.tasks import Split, Task, TaskFamily, task_id_of
from ..rewards.base import Grade
from .actions import ParseError
from .base import ToolEnv
from .options import EnvOptions
from .registration import make_env, make_vector_env
from .scripts import Expert, Script
from .self_check import self_check
from .tools import tool

__all__ = [
    "EnvOptions",
    "EnvironmentFailure",
    "Expert",
    "Grade",
    "ParseError",
    "Script",
    "Split",
    "Task",
    "TaskFamily",
    "ToolEnv",
    "make_env",
    "make_vector_env",
    "self_check",
    "task_id_of",
    "tool",
]
