"""Six small programs as data: shop, bank, label, plan, grid, settings.

A phrase says for itself whether a bound counts: "from 3" and "3 or more" include it, "above" and "below" do not. Parts
with two readings leave something else open, such as which end is meant.
"""

from __future__ import annotations

import random
from typing import Any

from .parts import Part, Template


def _between(rng: random.Random, low: int, high: int) -> int:
    return low + int((high - low + 1) * rng.random())  # several times as fast as randint, and most of a task's draws


def _numbers(low: int, high: int) -> Any:
    def draw(rng: random.Random) -> list[int]:
        return [_between(rng, low, high) for _ in range(_between(rng, 2, 5))]

    return draw


def _words(rng: random.Random) -> str:
    return " ".join(_word(rng) for _ in range(_between(rng, 2, 4)))


def _word(rng: random.Random) -> str:
    return "".join(_LETTERS[_between(rng, 0, len(_LETTERS) - 1)] for _ in range(_between(rng, 1, 6)))


def _grid(rng: random.Random) -> list[list[int]]:
    width = _between(rng, 2, 3)
    return [[_between(rng, 0, 9) for _ in range(width)] for _ in range(_between(rng, 2, 3))]


def _settings(rng: random.Random) -> str:
    keys = rng.sample("abcdef", _between(rng, 2, 4))
    return ";".join(f"{key}={_between(rng, 1, 12)}" for key in keys)


_LETTERS = "abdegimnorstu"

SHOP = Template(
    name="shop",
    function="total",
    parameter="prices",
    intro="add the prices",
    start="sum(prices)",
    kind="numbers",
    middle="desk",
    leaves=("rates", "fees"),
    draw=_numbers(1, 20),
    parts=(
        Part(
            "off",
            "t, n",
            "t, len(prices)",
            "{least} or more items get {cut} off",
            ("t - {cut} if n >= {least} else t",),
            {"least": (3, 4), "cut": (2, 9)},
        ),
        Part(
            "ship",
            "t",
            "t",
            "shipping is {fee} below {free}",
            ("t + {fee} if t < {free} else t",),
            {"fee": (3, 9), "free": (20, 40)},
        ),
        Part("tax", "t", "t", "tax is {rate} percent", ("t + t * {rate} // 100",), {"rate": (10, 60)}),
        Part("wrap", "t, n", "t, len(prices)", "wrapping costs {fee} an item", ("t + n * {fee}",), {"fee": (2, 9)}),
        Part("cap", "t", "t", "nobody pays above {most}", ("min(t, {most})",), {"most": (25, 45)}),
        Part("least", "t", "t", "nobody pays below {low}", ("max(t, {low})",), {"low": (15, 35)}),
        Part("tens", "t", "t", "round to tens", ("t // 10 * 10", "-(-t // 10) * 10")),
        Part(
            "half",
            "t",
            "t",
            "what is above {limit} is half price",
            ("t // 2 if t > {limit} else t", "min(t, {limit}) + max(t - {limit}, 0) // 2"),
            {"limit": (15, 35)},
        ),
    ),
)

BANK = Template(
    name="bank",
    function="balance",
    parameter="moves",
    intro="add the moves",
    start="sum(moves)",
    kind="numbers",
    middle="book",
    leaves=("terms", "costs"),
    draw=_numbers(-12, 20),
    parts=(
        Part(
            "fee",
            "t, moves",
            "t, moves",
            "a withdrawal costs {cost}",
            ("t - {cost} * sum(m < 0 for m in moves)",),
            {"cost": (1, 6)},
        ),
        Part(
            "gain",
            "t",
            "t",
            "above {limit} you gain {more}",
            ("t + {more} if t > {limit} else t",),
            {"limit": (5, 20), "more": (2, 9)},
        ),
        Part("fine", "t", "t", "below zero costs {cost}", ("t - {cost} if t < 0 else t",), {"cost": (2, 9)}),
        Part("floor", "t", "t", "never below {low}", ("max(t, {low})",), {"low": (0, 12)}),
        Part("roof", "t", "t", "never above {high}", ("min(t, {high})",), {"high": (15, 30)}),
        Part(
            "bonus",
            "t, n",
            "t, len(moves)",
            "from {least} moves on you get {more}",
            ("t + {more} if n >= {least} else t",),
            {"least": (3, 4), "more": (2, 9)},
        ),
        Part("share", "t", "t", "save one in {parts}", ("t - t // {parts}", "t // {parts}"), {"parts": (3, 5)}),
        Part("coins", "t", "t", "count coins of {size}", ("t // {size}", "-(-t // {size})"), {"size": (3, 7)}),
        Part(
            "best",
            "t, moves",
            "t, moves",
            "the best move counts {times} times",
            ("t + max(moves) * ({times} - 1)",),
            {"times": (3, 5)},
        ),
    ),
)

LABEL = Template(
    name="label",
    function="show",
    parameter="text",
    intro="split the text",
    start="text.split()",
    end='" ".join(t)',
    kind="words",
    middle="page",
    leaves=("words", "marks"),
    draw=_words,
    parts=(
        Part(
            "skip",
            "t",
            "t",
            "skip words below {size} letters",
            ("[w for w in t if len(w) >= {size}]",),
            {"size": (2, 4)},
        ),
        Part("cut", "t", "t", "cut words to {size} letters", ("[w[:{size}] for w in t]",), {"size": (2, 4)}),
        Part(
            "caps",
            "t",
            "t",
            "capitals from {size} letters on",
            ("[w.upper() if len(w) >= {size} else w for w in t]",),
            {"size": (3, 5)},
        ),
        Part("keep", "t", "t", "keep {many} words", ("t[:{many}]", "t[-{many}:]"), {"many": (1, 3)}),
        Part("order", "t", "t", "sort the words", ("sorted(t)", "sorted(t, key=len)")),
        Part("turn", "t", "t", "turn it around", ("t[::-1]", "[w[::-1] for w in t]")),
        Part(
            "mark",
            "t",
            "t",
            "mark words above {size} letters",
            ('[w + "!" if len(w) > {size} else w for w in t]',),
            {"size": (2, 4)},
        ),
        Part(
            "pad",
            "t",
            "t",
            "fill words to {size} letters",
            ('[w.ljust({size}, ".") for w in t]', '[w.rjust({size}, ".") for w in t]'),
            {"size": (3, 6)},
        ),
        Part(
            "count",
            "t",
            "t",
            "number the words from {first}",
            ("[str(i + {first}) + w for i, w in enumerate(t)]",),
            {"first": (1, 5)},
        ),
    ),
)

PLAN = Template(
    name="plan",
    function="times",
    parameter="jobs",
    intro="list the jobs",
    start="list(jobs)",
    kind="numbers",
    middle="desk",
    leaves=("queue", "clock"),
    draw=_numbers(1, 12),
    parts=(
        Part("skip", "t", "t", "skip jobs above {most}", ("[j for j in t if j <= {most}]",), {"most": (6, 10)}),
        Part("order", "t", "t", "sort by length", ("sorted(t)", "sorted(t)[::-1]")),
        Part("rest", "t", "t", "rest {pause} after a job", ("[j + {pause} for j in t]",), {"pause": (1, 6)}),
        Part(
            "stamp",
            "t",
            "t",
            "add up the times",
            ("[sum(t[:i]) for i in range(len(t))]", "[sum(t[:i + 1]) for i in range(len(t))]"),
        ),
        Part("cap", "t", "t", "no job takes above {most}", ("[min(j, {most}) for j in t]",), {"most": (4, 9)}),
        Part("first", "t", "t", "do {many} jobs", ("t[:{many}]", "t[-{many}:]"), {"many": (1, 3)}),
        Part(
            "slow",
            "t",
            "t",
            "from {size} on jobs take {times} times as long",
            ("[j * {times} if j >= {size} else j for j in t]",),
            {"size": (3, 8), "times": (2, 4)},
        ),
        Part(
            "share",
            "t",
            "t",
            "{many} people share a job",
            ("[j // {many} for j in t]", "[-(-j // {many}) for j in t]"),
            {"many": (2, 4)},
        ),
        Part(
            "late",
            "t",
            "t",
            "only the first job waits {pause}",
            ("[j + {pause} for j in t[:1]] + t[1:]",),
            {"pause": (2, 7)},
        ),
    ),
)

GRID = Template(
    name="grid",
    function="draw",
    parameter="rows",
    intro="copy the rows",
    start="[list(r) for r in rows]",
    kind="grids",
    middle="scene",
    leaves=("moves", "paint"),
    draw=_grid,
    parts=(
        Part("flip", "t", "t", "mirror it", ("[r[::-1] for r in t]", "t[::-1]")),
        Part("turn", "t", "t", "swap rows and columns", ("[list(c) for c in zip(*t)]",)),
        Part(
            "clip", "t", "t", "no value above {most}", ("[[min(v, {most}) for v in r] for r in t]",), {"most": (3, 7)}
        ),
        Part("light", "t", "t", "add {more} to values", ("[[v + {more} for v in r] for r in t]",), {"more": (1, 9)}),
        Part(
            "mask",
            "t",
            "t",
            "values below {least} become 0",
            ("[[v if v >= {least} else 0 for v in r] for r in t]",),
            {"least": (3, 7)},
        ),
        Part("drop", "t", "t", "drop a row", ("t[1:]", "t[:-1]")),
        Part("trim", "t", "t", "drop a column", ("[r[1:] for r in t]", "[r[:-1] for r in t]")),
        Part(
            "big",
            "t",
            "t",
            "keep rows above {least} in all",
            ("[r for r in t if sum(r) > {least}]",),
            {"least": (5, 14)},
        ),
        Part(
            "edge",
            "t",
            "t",
            "frame rows with {value}",
            ("[[{value}, *r] for r in t]", "[[*r, {value}] for r in t]"),
            {"value": (1, 9)},
        ),
    ),
)

SETTINGS = Template(
    name="settings",
    function="load",
    parameter="text",
    intro="read the pairs",
    start='{p[0]: int(p[2:]) for p in text.split(";")}',
    end="list(t.items())",
    kind="pairs",
    middle="rules",
    leaves=("keys", "values"),
    draw=_settings,
    parts=(
        Part(
            "twice",
            "t",
            "t",
            "{key} counts {times} times",
            ("{{k: v * {times} if k == {key} else v for k, v in t.items()}}",),
            {"key": "abcdef", "times": (2, 5)},
        ),
        Part(
            "spare",
            "t",
            "t",
            "{key} is {value} if missing",
            ("{{{key}: {value}, **t}}",),
            {"key": "abcdef", "value": (1, 9)},
        ),
        Part(
            "fix", "t", "t", "{key} is always {value}", ("{{**t, {key}: {value}}}",), {"key": "abcdef", "value": (1, 9)}
        ),
        Part(
            "drop",
            "t",
            "t",
            "drop values below {least}",
            ("{{k: v for k, v in t.items() if v >= {least}}}",),
            {"least": (3, 8)},
        ),
        Part(
            "cap", "t", "t", "no value above {most}", ("{{k: min(v, {most}) for k, v in t.items()}}",), {"most": (4, 9)}
        ),
        Part(
            "before",
            "t",
            "t",
            "drop keys after {key}",
            ("{{k: v for k, v in t.items() if k <= {key}}}",),
            {"key": "bcde"},
        ),
        Part(
            "keep",
            "t",
            "t",
            "keep {many} pairs",
            ("dict(list(t.items())[:{many}])", "dict(list(t.items())[-{many}:])"),
            {"many": (1, 3)},
        ),
        Part(
            "order",
            "t",
            "t",
            "sort the pairs",
            ("dict(sorted(t.items()))", "dict(sorted(t.items(), key=lambda p: p[1]))"),
        ),
        Part(
            "lift",
            "t",
            "t",
            "add {more} to values",
            ("{{k: v + {more} for k, v in t.items()}}",),
            {"more": (1, 9)},
        ),
    ),
)

TEMPLATES: dict[str, Template] = {template.name: template for template in (SHOP, BANK, LABEL, PLAN, GRID, SETTINGS)}
