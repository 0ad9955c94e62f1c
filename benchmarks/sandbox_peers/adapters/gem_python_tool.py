"""GEM's Python tool: a fresh interpreter per execution, in bubblewrap or (its default) in nothing.

Its jail shows `sys.prefix` and /usr/lib and runs `python`, so that the environment must hold a copy of the system's
interpreter and not a link to one elsewhere.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gem.tools.python_code_tool import PythonCodeTool


@contextmanager
def caller(settings: dict[str, Any]) -> Iterator[Callable[[], str]]:
    """Gives a function that runs the program once."""
    tool = PythonCodeTool(timeout=10, sandbox_type=settings["sandbox_type"])
    action = f"<python>{settings['program']}</python>"

    def run() -> str:
        observation = tool.execute_action(action)[2]
        return observation.removeprefix("Code execution result: ").removesuffix("\n")

    yield run
