"""How episodes that were played again are shown: one in full, many as a count."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from .plain_text import one_line, visible

if TYPE_CHECKING:
    from ..agents.replay import Difference, Replay
    from .replay_source import Numbered

MAX_LINES = 40
"""Lines of one difference that are shown."""
MAX_NAMED = 20
"""Episodes that differ, named one by one."""


def print_one(one: Numbered, result: Replay) -> None:
    """Prints the turns of an episode up to its first difference, and that difference."""
    console = Console(highlight=False, soft_wrap=True)
    episode = one.episode
    console.print(Text(f"episode {one.number}: {visible(episode.task_id)}, seed {episode.seed}", style="bold"))
    trajectory = episode.trajectories[0]
    if trajectory.forked_at:
        console.print(Text(f"the first {trajectory.forked_at} actions are another's", style="dim"))
    reached = result.turns if result.difference is None else result.difference.turn
    for number, turn in enumerate(trajectory.turns[:reached], 1):
        console.print(Text(f"turn {number}", style="bold blue"))
        console.print(Text(visible(turn.action)))
        if result.difference is None or number < reached:
            console.print(Text(visible(turn.observation), style="dim"))
    if result.difference is not None:
        _print_difference(console, result.difference)
    console.print(_verdict(episode, result))


def print_many(path: Path, results: Sequence[tuple[Numbered, Replay]]) -> None:
    """Prints how many episodes are equal, and which are not."""
    console = Console(highlight=False, soft_wrap=True)
    counts = Counter(result.status for _, result in results)
    different = [(one, result.difference) for one, result in results if result.difference is not None]
    for one, difference in different[:MAX_NAMED]:
        where = f"{difference.what} of {_where(difference.turn)}"
        console.print(Text(f"differs: episode {one.number} ({visible(one.episode.task_id)}), {where}", style="red"))
    if len(different) > MAX_NAMED:
        console.print(f"... and {len(different) - MAX_NAMED} more")
    if different:
        console.print(Text(f"episode {different[0][0].number}:", style="bold"))
        _print_difference(console, different[0][1])
    for status, said in (("failed then", "had failed when they were recorded"), ("failed now", "failed now")):
        numbers = [str(one.number) for one, result in results if result.status == status]
        if numbers:
            more = ", ..." if len(numbers) > MAX_NAMED else ""
            console.print(f"infrastructure: {len(numbers)} {said}: {', '.join(numbers[:MAX_NAMED])}{more}")
    style = "red" if different else "green" if counts["equal"] == len(results) else "yellow"
    said = f"{visible(str(path))}: {counts['equal']} of {len(results)} equal, {len(different)} differ"
    console.print(Text(said, style=style))


def _where(turn: int) -> str:
    return f"turn {turn}" if turn else "the reset"


def _print_difference(console: Console, difference: Difference) -> None:
    console.print(Text(f"{difference.what} of {_where(difference.turn)}", style="bold red"))
    lines = list(_diff(_as_text(difference.recorded), _as_text(difference.now)))
    for line in lines[:MAX_LINES]:
        colour = {"-": "red", "+": "green"}.get(line[:1], "dim")
        console.print(Text(line, style=colour))
    if len(lines) > MAX_LINES:
        console.print(Text(f"... {len(lines) - MAX_LINES} more lines", style="dim"))


def _diff(recorded: str, now: str) -> Iterator[str]:
    """A unified diff whose heads say which side is which; lines that look alike are shown with their escapes."""
    before, after = recorded.splitlines(), now.splitlines()
    if before == after:  # they differ in line ends alone
        before, after = [repr(recorded)], [repr(now)]
    yield "--- recorded"
    yield "+++ now"
    for line in list(difflib.unified_diff(before, after, n=2, lineterm=""))[2:]:
        yield visible(line)


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    is_chat = isinstance(value, list) and all(isinstance(item, dict) and "content" in item for item in value)
    if is_chat:
        return "\n".join(f"[{message['role']}]\n{message['content']}" for message in value)
    return json.dumps(value, ensure_ascii=False, default=str)


def _verdict(episode: Any, result: Replay) -> Text:
    if result.difference is not None:
        return Text(f"differs at {_where(result.difference.turn)}", style="bold red")
    if result.failure_now:
        return Text(f"infrastructure failed now, after {result.turns} turns", style="bold yellow")
    if result.failure_then:
        said = f"{result.turns} turns are equal; then infrastructure failed: {one_line(result.failure_then)}"
        return Text(said, style="bold yellow")
    said = f"equal: {result.turns} turns, reward {episode.reward:g} ({visible(episode.stop_reason)})"
    return Text(said, style="bold green")
