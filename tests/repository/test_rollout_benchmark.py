"""The benchmark against TRL: both sides play the same game, and figures and targets are computed as they are named."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def script(repository: Path) -> ModuleType:
    """`benchmarks/rollout.py` as a module; it makes `rollout_sides` importable."""
    name = "rollout_benchmark"
    spec = importlib.util.spec_from_file_location(name, repository / "benchmarks" / "rollout.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def answer(script: ModuleType, rollout: float, whole: float, tokens: int = 1000) -> Any:
    return script.Answer(
        seconds_rollout=rollout,
        seconds=whole,
        sampled_tokens=tokens,
        prefilled_tokens=3000,
        actions=64,
        valid=1.0,
        episode_tokens=900.0,
        prompt_tokens=300.0,
    )


def test_targets_compare_medians_with_the_fastest_of_trl_for_each_figure(script: ModuleType) -> None:
    turns = {
        "3 turns": {
            "palaestra": [answer(script, s, 4 * s) for s in (1.0, 1.1, 9.0)],
            "trl default": [answer(script, 3.3, 4.4)] * 3,
            "trl fp32": [answer(script, 2.2, 13.2)] * 3,
        }
    }
    found = script.targets(turns)
    generation = found["generation, 3 turns: times as fast as TRL's fastest"]
    assert generation == {"target": ">= 2.5", "value": 2.0, "met": False, "peer": "trl fp32"}
    step = found["whole step, 3 turns: times as fast as TRL's fastest"]
    assert step == {"target": ">= 2.0", "value": 1.0, "met": False, "peer": "trl default"}
    assert not any("8 turns" in name for name in found)
    assert script.in_the_running(turns["3 turns"]) == ["trl fp32", "trl default"]
    assert script.ratio({"palaestra": [answer(script, 1, 1)]}, script.rollout_us) is None


def test_the_cost_per_token_is_judged_by_the_dearest(script: ModuleType) -> None:
    costs = {2: 1.0, 4: 1.5, 8: 1.1, 16: 1.2}
    turns = {f"growing, {count} turns": {"palaestra": [answer(script, cost, 9.0)]} for count, cost in costs.items()}
    cost, prefilled = script.targets(turns).values()
    assert (cost["value"], cost["met"]) == (1.5, False)
    assert (prefilled["value"], prefilled["met"]) == (1.0, True)
    turns = {f"equal, {count} turns": {"palaestra": [answer(script, 9 - cost, 9.0)]} for count, cost in costs.items()}
    (cost,) = script.targets(turns).values()
    assert (cost["value"], cost["met"]) == (1.0, True)


def test_what_is_hopeless_in_the_first_round_is_not_measured_again(script: ModuleType) -> None:
    asked: list[str] = []
    seconds = {"palaestra": 9.0, "trl fp32": 1.0, "trl bf16": 2.9, "trl continuous batching": 3.1}

    class Scripted(script.Comparison):
        def _ask(self, side: str, order: object) -> object:
            asked.append(side)
            return answer(script, 1.0, seconds[side])

    Scripted(Path(), 1).rounds("3 turns", list(seconds), script.Order(turns=3), 3)
    assert {side: asked.count(side) for side in seconds} == {**dict.fromkeys(seconds, 3), "trl continuous batching": 1}


def test_both_sides_show_the_same_tool(script: ModuleType) -> None:
    from rollout_sides import game
    from transformers.utils import get_json_schema

    ours = game.CodebreakerEnv().tools
    for asynchronous in (False, True):
        theirs = game.trl_factory(0.0, asynchronous)
        assert [get_json_schema(theirs().guess)] == ours  # pyright: ignore[reportAttributeAccessIssue]


def test_the_game_is_scored_alike(script: ModuleType) -> None:
    from rollout_sides import game

    env = game.CodebreakerEnv(max_turns=2)
    env.reset(seed=3)
    secret = env.task.secret["code"]
    near = secret[:-1] + str((int(secret[-1]) + 1) % 10)
    theirs = game.trl_factory(0.0, False)()
    theirs.reset(secret=secret)
    said, *_ = env.step(game.call_text(near))
    assert said == theirs.guess(near)
    assert "11 of 12" in said
    _, reward, terminated, *_ = env.step("no call")
    assert terminated
    assert reward == theirs.get_reward() == pytest.approx(11 / 12)


def test_a_call_may_guess_several_codes(script: ModuleType) -> None:
    from rollout_sides import game

    env = game.CodebreakerEnv(max_turns=2, codes=3)
    observation, _ = env.reset(seed=3)
    secret = env.task.secret["code"]
    assert "the codes a to c in each call" in str(observation)
    worse = "".join(str((int(digit) + 1) % 10) for digit in secret)
    guess = game.guess_of([worse, secret[:6] + worse[6:], secret[:3]])
    assert guess == f"a{worse}b{secret[:6]}{worse[6:]}c{secret[:3]}"
    said, *_ = env.step(game.call_text(guess))
    assert "a: 0 of 12 digits are right, and digit number 1 is the first that is not; b: 6 of 12" in str(said)
    assert "; c: 3 of 12" in str(said)
    assert env.step("no call")[1] == pytest.approx(6 / 12)


def test_both_sides_take_an_order(script: ModuleType, tmp_path: Path) -> None:
    """On a model that has hardly learnt anything: what is counted, and that TRL's trainer takes our settings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rollout_sides.palaestra_side import PalaestraSide
        from rollout_sides.preparing import prepare
        from rollout_sides.trl_side import TRLSide

        prepare(tmp_path / "model", hidden=64, layers=1, episodes=30)
        order = script.Order(turns=2, episodes=8)
        ours = PalaestraSide(tmp_path / "model").measure(order)
        theirs = TRLSide(tmp_path / "model", "fp32").measure(order)
    assert ours.prompt_tokens == theirs.prompt_tokens > 100
    assert ours.actions == 16
    assert ours.prompt_tokens + 16 <= ours.episode_tokens
    for each in (ours, theirs):
        assert 0 < each.seconds_rollout < each.seconds
        assert 8 <= each.sampled_tokens <= 16 * 64
