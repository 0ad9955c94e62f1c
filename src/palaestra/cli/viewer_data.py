"""What the report's viewer shows, as JSON data: episodes with their turns, tokens, log-probabilities and advantages.

Names are short because there are many: see `_episode`, `_turn` and `_segment`. Page and data stay within bounds: what
does not fit is left out, first tokens, then episodes, and the page says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..core.trajectories import Episode, Segment, Trajectory, Turn
from ..learners.kept_groups import FILE as TRAINING_FILE
from .plain_text import visible
from .report_data import RunData
from .token_texts import TokenTexts

MAX_EPISODES = 500
MAX_TEXT = 6_000
"""Characters of one text."""
MAX_CONTEXT = 160
"""Tokens that the policy did not sample, shown at either end of a longer stretch of them."""
MAX_BYTES = 14_000_000
"""Of all data; tokens are left out from two thirds of it on."""
SOURCES = {
    TRAINING_FILE: "training (GRPO)",
    "policy_heldout": "held-out, after GRPO",
    "sft_heldout": "held-out, before GRPO",
}
"""Files that are looked into, in this order, and what they hold."""
_GAP = -1
"""Where context tokens are left out."""


@dataclass(slots=True)
class ViewerData:
    """What goes into the page."""

    episodes: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    texts: dict[str, int] = field(default_factory=dict[str, int])
    """Texts of tokens, and their numbers."""
    total: int = 0
    """Episodes that there are."""
    without_tokens: int = 0
    """Episodes whose tokens are left out for want of room."""

    def to_json(self, folder: str) -> str:
        """The data as JSON that may stand in a script element: nothing in it can end the element."""
        plain = {"folder": visible(folder), "texts": list(self.texts), "episodes": self.episodes}
        text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        for character in "<>&\u2028\u2029":
            text = text.replace(character, f"\\u{ord(character):04x}")
        return text


def viewer_data(run: RunData, token_texts: TokenTexts | None = None) -> ViewerData:
    """Chooses episodes and makes them ready to be shown.

    Args:
        run: The run.
        token_texts: Gives tokens their texts; without it they are shown as numbers.
    """
    data = ViewerData(total=sum(len(_episodes(run, name)) for name in SOURCES))
    size = 0
    for name, number, episode in _chosen(run):
        entry = _episode(episode, name, number)
        tokens = [_segment(segment, data.texts, token_texts) for segment in episode.trajectories[0].segments]
        room = 2 * MAX_BYTES // 3 - size
        if tokens and _size(tokens) <= room:
            entry["s"] = tokens
        data.without_tokens += bool(tokens) and "s" not in entry
        size += _size(entry)
        if size > MAX_BYTES:
            break
        data.episodes.append(entry)
    return data


def _episodes(run: RunData, name: str) -> Sequence[Episode]:
    return run.episodes.get(name, ())


def _chosen(run: RunData) -> Iterator[tuple[str, int, Episode]]:
    """Up to `MAX_EPISODES`, with their numbers in their files: all failures and training first, then files in turns."""
    numbered = {name: list(enumerate(_episodes(run, name), 1)) for name in SOURCES}
    first = [(name, i, one) for name, found in numbered.items() for i, one in found if one.failed]
    first += [(TRAINING_FILE, i, one) for i, one in numbered.pop(TRAINING_FILE) if not one.failed]
    rest = {name: [(name, i, one) for i, one in found if not one.failed] for name, found in numbered.items()}
    longest = max(map(len, rest.values()), default=0)
    turns = [found[i] for i in range(longest) for found in rest.values() if i < len(found)]
    order = list(SOURCES)
    chosen = [*first, *turns][:MAX_EPISODES]
    return iter(sorted(chosen, key=lambda item: (order.index(item[0]), item[1])))


def _episode(episode: Episode, source: str, number: int) -> dict[str, Any]:
    """The episode without its tokens."""
    trajectory = episode.trajectories[0]
    advantages = _advantages(episode.info, trajectory)
    failure = episode.failure
    return {
        "f": source,
        "n": number,
        "id": _shown(episode.task_id),
        "fam": _shown(episode.family),
        "lvl": episode.level,
        "step": _whole(episode.info.get("step")),
        "r": None if episode.failed else round(float(episode.reward), 4),
        "ok": episode.success,
        "end": _shown(episode.stop_reason),
        "cut": bool(episode.truncated and not episode.failed),
        "fail": _shown(f"{failure.get('kind', '?')}: {failure.get('message', '')}") if failure else None,
        "fork": trajectory.forked_at,
        "m": [[message["role"], _shown(message["content"])] for message in _prompt(trajectory)],
        "t": [_turn(turn, trajectory) for turn in trajectory.turns],
        "v": advantages,
    }


def _prompt(trajectory: Trajectory) -> Sequence[Any]:
    return trajectory.turns[0].messages if trajectory.turns else ()


def _turn(turn: Turn, trajectory: Trajectory) -> dict[str, Any]:
    """One turn: action, observation, parse error, reward, segment and span of its tokens, mean log-probability."""
    entry: dict[str, Any] = {"a": _shown(turn.action), "o": _shown(turn.observation), "r": round(turn.reward, 4)}
    if turn.parse_error:
        entry["e"] = _shown(turn.parse_error)
    if turn.stop > turn.start and turn.segment < len(trajectory.segments):
        logprobs = trajectory.segments[turn.segment].logprobs_T[turn.start : turn.stop]
        entry |= {"g": turn.segment, "b": turn.start, "c": turn.stop, "l": _rounded(float(np.nanmean(logprobs)))}
    return entry


def _segment(segment: Segment, texts: dict[str, int], token_texts: TokenTexts | None) -> dict[str, Any]:
    """Tokens as numbers of texts, their places, and log-probabilities of the sampled ones in thousandths of a nat."""
    ids = segment.token_ids_T.tolist()
    words = token_texts.of(ids) if token_texts else [f"{token} " for token in ids]
    places = list(_shown_places(segment.action_mask_T.tolist()))
    return {
        "t": [_GAP if i == _GAP else texts.setdefault(words[i], len(texts)) for i in places],
        "i": _as_runs(places),
        "k": _as_runs([i for i in places if i != _GAP and segment.action_mask_T[i]]),
        "l": [_rounded(1000 * float(x), 0) for x in segment.logprobs_T[segment.action_mask_T]],
    }


def _shown_places(mask: Sequence[bool]) -> Iterator[int]:
    """All sampled tokens, and of the others the ends of each stretch, with a gap between."""
    start = 0
    while start < len(mask):
        stop = start
        while stop < len(mask) and mask[stop] == mask[start]:
            stop += 1
        if mask[start] or stop - start <= 2 * MAX_CONTEXT:
            yield from range(start, stop)
        else:
            yield from range(start, start + MAX_CONTEXT)
            yield _GAP
            yield from range(stop - MAX_CONTEXT, stop)
        start = stop


def _as_runs(places: Sequence[int]) -> list[list[int]]:
    """Places as [start, stop] of stretches; a gap is no place."""
    runs: list[list[int]] = []
    for place in places:
        if place == _GAP:
            continue
        if runs and runs[-1][1] == place:
            runs[-1][1] = place + 1
        else:
            runs.append([place, place + 1])
    return runs


def _advantages(info: Mapping[str, Any], trajectory: Trajectory) -> list[list[list[float]]] | None:
    """Runs of advantages by segment, where they were kept; what is not of that form counts as nothing."""
    kept: Any = info.get("advantages")
    try:
        of_segments = [[[int(a), int(b), float(value)] for a, b, value in runs] for runs in kept[0]]
    except (TypeError, ValueError, LookupError):
        return None
    fits = len(of_segments) == len(trajectory.segments) and np.isfinite([v for r in of_segments for *_, v in r]).all()
    return of_segments if fits else None


def _shown(text: str) -> str:
    safe = visible(str(text))
    return safe if len(safe) <= MAX_TEXT else f"{safe[:MAX_TEXT]}\n… {len(safe) - MAX_TEXT:,} more characters"


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _rounded(value: float, digits: int = 3) -> float | int | None:
    if not np.isfinite(value):
        return None
    return round(value, digits) if digits else round(value)


def _size(data: Any) -> int:
    return len(json.dumps(data, ensure_ascii=False, separators=(",", ":"), default=str).encode(errors="replace"))
