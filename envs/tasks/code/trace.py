"""Task family `trace`: find an input for which a function gives a given value, by experiment.

The function's code is shown, but for one or two constants, which are letters: calling it is the only way to learn them.
An agent that runs an input of its choice reads what the function gives for it, works out the constants, and follows the
code backwards from the wanted value; one that does not must guess, and at most half of the constants are right. Inputs
that need no thought (the wanted value itself, a row of equal numbers, a random list) are wrong.

Splits share no sequence of steps with a last line, and no function: what gives the same on all of `PROBES` belongs to
one split, whatever it looks like, in this family and in the others.

Levels: (steps, constants that are kept back) = 1: (1, 1), 2: (2, 1) where the function gives a number; 3: (1, 1),
4: (2, 1), 5: (2, 2), 6: (3, 1), 7: (3, 2) where it gives a list or a number.
"""

from __future__ import annotations

import functools
import random
from typing import Any, cast

from ....core.seeding import derive_seed
from ....core.tasks import Split, Task, task_id_of
from .compose import split_of, split_of_function
from .operations import Failure, compact, draw_inputs, outputs, source
from .tracing import CONSTANT_NAMES, REDUCTIONS, STEPS, TraceFunction

_ALL = tuple(REDUCTIONS)
_NUMBER = tuple(name for name in REDUCTIONS if name != "none")
SHAPES: dict[int, tuple[int, int, tuple[str, ...]]] = {
    1: (1, 1, _NUMBER),
    2: (2, 1, _NUMBER),
    3: (1, 1, _ALL),
    4: (2, 1, _ALL),
    5: (2, 2, _ALL),
    6: (3, 1, _ALL),
    7: (3, 2, _ALL),
}
"""Level -> (steps, constants that are kept back, last lines)."""
_SALT = 124
"""Levels 1 and 3 have few functions; this salt leaves (6, 2, 3) and (9, 4, 5) to train, validation and held-out."""
MAX_GUESS = 0.5
"""At most this share of the constants that may be meant may lead to an input that solves the task."""
GREATEST = 20
"""Inputs of which tasks are made have numbers from 0 to this."""
GREATEST_WANTED, LONGEST_WANTED = 99, 5


class TraceFamily:
    """Generates `trace` tasks."""

    name = "trace"
    levels = tuple(SHAPES)

    def generate(self, seed: int, split: Split, level: int) -> Task:
        """Gives the task of this seed; draws until one is in the split and can neither be read off nor guessed."""
        rng = random.Random(derive_seed("trace", split, level, seed))
        while True:
            names, kept, reduction = _draw_shape(rng, *SHAPES[level])
            if split_of([f"trace{_SALT}", *names], reduction) != split:
                continue
            constants = tuple(rng.choice(STEPS[name].values) for name in names)
            function = TraceFunction(names, constants, reduction)
            body = function.shown
            if split_of_function(body) != split:
                continue
            value = [rng.randint(0, GREATEST) for _ in range(rng.randint(4, 6))]
            (wanted,) = outputs(body, [value])
            asked = function.without(kept)
            if not _is_short(wanted) or _is_easy(body, wanted) or not _needs_experiments(asked, body, wanted):
                continue
            return Task(
                task_id=task_id_of(self.name, split, level, seed),
                family=self.name,
                split=split,
                level=level,
                prompt=f"Find x: f(x) == {compact(wanted)}\n{source(asked.shown)}",
                public={
                    "entry_point": "f",
                    "tests": [],
                    "answer": "input",
                    "prelude": source(body),
                    "wanted": wanted,
                    "depth": len(names),
                    "kept": len(kept),
                },
                secret={"reference": compact(value)},
            )


def _draw_shape(
    rng: random.Random, depth: int, n_kept: int, reductions: tuple[str, ...]
) -> tuple[tuple[str, ...], set[str], str]:
    """The steps in order, those whose constants are kept back, and the last line."""
    kept = rng.sample(CONSTANT_NAMES, n_kept)
    others = rng.sample([name for name in STEPS if name not in kept], depth - n_kept)
    names = [*kept, *others]
    rng.shuffle(names)
    return tuple(names), set(kept), rng.choice(reductions)


def _is_short(wanted: Any) -> bool:
    """Whether a value says enough and is short enough to be read."""
    if isinstance(wanted, Failure):
        return False
    numbers = cast(list[int], wanted) if isinstance(wanted, list) else [wanted, 0]
    return 2 <= len(numbers) <= LONGEST_WANTED and max(map(abs, numbers)) <= GREATEST_WANTED


def easy_inputs(wanted: list[int] | int) -> list[list[int]]:
    """Inputs that can be tried without reading the function."""
    numbers = wanted if isinstance(wanted, list) else [wanted]
    rows = [[number] * n for number in (numbers[0], numbers[-1]) for n in (2, 6)]
    return [[], [0], [1], [0] * 6, [1, 2, 3], [1, 2, 3, 4, 5], numbers, numbers[::-1], numbers * 2, *rows]


@functools.cache
def _random_inputs() -> list[list[int]]:
    rng = random.Random("guesses")
    wide = [[rng.randint(0, GREATEST) for _ in range(rng.randint(4, 6))] for _ in range(40)]
    return [*draw_inputs(rng, 80, 6), *wide]


def _is_easy(body: list[str], wanted: Any) -> bool:
    """Whether an input that needs no thought, or one of many random ones, solves the task."""
    return wanted in outputs(body, [*easy_inputs(wanted), *_random_inputs()])


def _needs_experiments(asked: TraceFunction, body: list[str], wanted: Any) -> bool:
    """Whether some of the constants that may be meant lead to a solution, followed backwards, and not too many do."""
    choices = [asked.with_constants(constants) for constants in asked.choices()]
    found = [value for value in (choice.input_for(wanted) for choice in choices) if value is not None]
    return 0 < outputs(body, found).count(wanted) <= MAX_GUESS * len(choices)
