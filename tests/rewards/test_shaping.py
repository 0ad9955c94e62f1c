"""Rewards for progress: the formula, and the environment that measures it."""

import itertools
from typing import Any

import pytest

from palaestra.core.errors import ConfigError
from palaestra.envs.base import ToolEnv
from palaestra.envs.options import EnvOptions
from palaestra.envs.registration import make_env
from palaestra.rewards.shaping import Shaping


def test_numbers_by_hand() -> None:
    assert Shaping().reward(0.25, 0.75) == 0.5
    assert Shaping(weight=2.0, discount=0.9).reward(0.25, 0.75) == pytest.approx(2 * (0.9 * 0.75 - 0.25))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weigth": 1.0}, r"^shaping\.weigth; did you mean 'weight'\?$"),
        ({"weight": -1.0}, r"^shaping\.weight=-1\.0: must be in \[0, inf\]$"),
        ({"weight": "1"}, r"^shaping\.weight='1': must be in \[0, inf\]$"),
        ({"discount": 1.5}, r"^shaping\.discount=1\.5: must be in \[0, 1\]$"),
        ({"terminal": "keep"}, r"^shaping\.terminal='keep'; did you mean 'kept'\?$"),
    ],
)
def test_mistakes_are_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_env("CodeSandbox-v0", shaping=values)


def test_an_environment_without_a_measure_says_so() -> None:
    with pytest.raises(ConfigError, match=r"^shaping: ToolEnv does not measure progress$"):
        ToolEnv(EnvOptions(shaping={}), {"x": None})  # type: ignore[dict-item]


def program_passing(env: Any, number: int) -> str:
    """A program that knows the answers to the first visible tests alone."""
    tests = env.unwrapped.task.public["tests"]
    known = {repr(test["args"][0]): test["expected"] for test in tests[:number]}
    return f"def f(x): return {known!r}.get(repr(x), 'no idea')"


def played(terminal: str, outcome: float = 1.0, discount: float = 1.0) -> tuple[list[float], dict[str, Any], int]:
    shaping = {"weight": 0.5, "terminal": terminal, "outcome": outcome, "discount": discount}
    env = make_env("CodeSandbox-v0", levels=[2], shaping=shaping, reuse_results=outcome == 1.0)
    env.reset(seed=3)
    n = len(env.unwrapped.task.public["tests"])
    rewards = [env.step(f"run\n{program_passing(env, k)}")[1] for k in (1, n, 2)]
    rewards.append(env.step("nonsense")[1])
    (copy,) = env.unwrapped.fork(1)
    copied = copy.step("submit")
    copy.close()
    _, reward, terminated, _, info = env.step("submit")
    assert copied[1] == reward
    assert terminated
    assert info["success"] is False
    env.close()
    return [*rewards, reward], info, n


def test_progress_is_rewarded_and_taken_back_at_the_end() -> None:
    rewards, info, n = played("zero")
    shares = [0, 1 / n, 1, 2 / n, 2 / n, 0]
    assert rewards == pytest.approx([0.5 * (b - a) for a, b in itertools.pairwise(shares)])
    assert sum(rewards) == pytest.approx(0.0)
    assert info["reward_components"] == {"hidden_tests": 0.0, "shaping": pytest.approx(0.0)}


def test_progress_that_is_kept_is_what_was_reached() -> None:
    rewards, info, n = played("kept", outcome=0.0, discount=0.9)
    shares = [0, 1 / n, 1, 2 / n, 2 / n, 2 / n]
    assert rewards == pytest.approx([0.5 * (0.9 * b - a) for a, b in itertools.pairwise(shares)])
    assert info["reward_components"]["shaping"] == pytest.approx(sum(rewards))


def test_what_is_handed_in_counts_and_the_outcome_can_be_left_out() -> None:
    for outcome in (1.0, 0.0):
        env = make_env("CodeSandbox-v0", levels=[1], shaping={"terminal": "kept", "outcome": outcome})
        env.reset(seed=5)
        reference = env.unwrapped.task.secret["reference"]
        _, reward, _, _, info = env.step(f"submit\n{reference}")
        assert reward == 1.0 + outcome
        assert info["success"] is True
        env.close()


def test_a_program_cannot_forge_its_progress() -> None:
    env = make_env("CodeSandbox-v0", levels=[1], shaping={})
    env.reset(seed=5)
    forged = "print('\\x1eok')\ndef f(x): return Equal()\nclass Equal:\n    def __eq__(self, other): return True"
    assert env.step(f"run\n{forged}")[1] == 0.0
    env.close()


def test_a_given_program_has_its_share_from_the_start() -> None:
    env = make_env("CodeSandbox-v0", families=["repair"], levels=[1], shaping={})
    for seed in range(4):
        env.reset(seed=seed)
        before = env.unwrapped._state.potential
        assert 0 <= before < 1
        assert env.step(f"run\n{env.unwrapped.task.secret['reference']}")[1] == pytest.approx(1 - before)
    env.close()
