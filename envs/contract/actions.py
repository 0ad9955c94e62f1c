"""Any text is an action: it is answered, and nothing that an agent writes is an exception."""

from __future__ import annotations

import math

from .bench import Bench, Broken, Step, check, expect, shown
from .blame import raised_at

NASTY_TEXTS = (
    "",
    " ",
    "\n\n",
    "hello",
    "\x00\ud800",
    "<tool_call>",
    "<tool_call>{}</tool_call>",
    '<tool_call>{"name": "no_such_tool", "arguments": {}}</tool_call>',
    "```",
    "a" * 5000,
    "[]",
)


@check(
    "In a tool, raise palaestra.envs.ParseError('error: ...') for what the agent did wrong: it becomes the observation."
)
def _answers_any_text(bench: Bench) -> None:
    texts = [[text] for text in NASTY_TEXTS]
    for actions in [*texts, *bench.scripts()]:
        try:
            steps = bench.episode(actions)
        except Exception as error:
            raise Broken(f"an action of {shown(repr(actions))} raised {raised_at(error)}") from error
        for step in steps[1:]:
            _check_types(step)


@check("Tools return str; terminated and truncated are bool, not numpy.bool_; a reward is a finite float: float(x).")
def _answers_with_pythons_own_types(bench: Bench) -> None:
    for actions in bench.scripts():
        for step in bench.episode(actions)[1:]:
            _check_types(step)


@check("Raise ParseError with a text that says what to write instead; ToolEnv repeats it in info['parse_error'].")
def _says_what_was_malformed(bench: Bench) -> None:
    for text in NASTY_TEXTS:
        step = bench.episode([text])[1]
        said = step.info["parse_error"]
        if said is not None:
            expect(isinstance(said, str), f"parse_error is a {type(said).__name__}")
            expect(said in step.observation, f"{text[:40]!r}: the observation does not say {shown(said)!r}")
    malformed = bench.episode(["<tool_call>{}</tool_call>"])[1].info["parse_error"]
    expect(bool(malformed), "a malformed tool call has no parse_error")


CHECKS = (_answers_any_text, _answers_with_pythons_own_types, _says_what_was_malformed)


def _check_types(step: Step) -> None:
    where = f"step({shown(repr(step.action))})"
    expect(isinstance(step.observation, str), f"the answer to {where} is a {type(step.observation).__name__}, no text")
    for name in ("terminated", "truncated"):
        value: object = getattr(step, name)
        expect(isinstance(value, bool), f"{name} of {where} is a {type(value).__name__}: it must be bool")
    finite = isinstance(step.reward, float) and math.isfinite(step.reward)
    expect(finite, f"the reward of {where} is {step.reward!r}")
