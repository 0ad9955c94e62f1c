"""Episodes end once, for a reason, and not without one."""

from __future__ import annotations

import gymnasium as gym

from .bench import SEED, Bench, Broken, check, expect, plain, play, shown

_NO_STEP_LIMIT = "Leave max_episode_steps out of gymnasium.register: max_turns is the budget, and belongs to the task."


@check(
    "Leave the turn budget to ToolEnv (max_turns); grade what stands in _grade(), and do not set truncated yourself."
)
def _ends_when_turns_run_out(bench: Bench) -> None:
    with bench.make(max_turns=2) as env:
        first, last = play(env, ["nonsense", "nonsense"], SEED)[-2:]
        expect(not first.ended and last.action is not None, "a malformed action ended it before its turns ran out")
        expect(last.ended, "it goes on after max_turns=2")
        expect(last.terminated and not last.truncated, "running out of turns must terminate, not truncate")
        reason = last.info["stop_reason"]
        expect(reason == "turn_limit", f"stop_reason is {reason!r}, not 'turn_limit'")
        unearned = last.reward == 0.0 and last.info["success"] is False
        expect(unearned, f"nothing was handed in, yet the reward is {last.reward} and success {last.info['success']}")


@check("End an episode with self._submit(grade) alone; ToolEnv says terminated then, once.")
def _ends_once(bench: Bench) -> None:
    with bench.make() as env:
        limit = env.spec.max_episode_steps if env.spec else None
        expect(limit is None, f"max_episode_steps={limit} truncates it", _NO_STEP_LIMIT)
    for actions in bench.scripts():
        with bench.make() as env:
            budget = plain(env).options.max_turns
            steps = play(env, (actions * budget)[: budget + 1], SEED)
            expect(steps[-1].ended, f"{budget + 1} actions did not end it, with max_turns={budget}")
            for step in steps:
                both = step.terminated and step.truncated
                expect(not both, f"step({shown(repr(step.action))}) is both terminated and truncated")
            expect(not steps[-1].truncated, "it was truncated, though nothing from outside stopped it")


@check("Do not catch gymnasium.error.ResetNeeded and do not override step without calling ToolEnv's.")
def _refuses_steps_without_an_episode(bench: Bench) -> None:
    with bench.make() as env:
        _expect_refusal(env, "before reset()")
        play(env, ["nonsense"] * plain(env).options.max_turns, SEED)
        _expect_refusal(env, "after the end")
        env.reset(seed=4)
        try:
            env.step("nonsense")
        except gym.error.ResetNeeded as error:
            raise Broken("step() is refused after a new reset()") from error


CHECKS = (_ends_when_turns_run_out, _ends_once, _refuses_steps_without_an_episode)


def _expect_refusal(env: object, when: str) -> None:
    try:
        env.step("nonsense")  # type: ignore[attr-defined]
    except gym.error.ResetNeeded:
        return
    raise Broken(f"step() {when} does not raise ResetNeeded")
