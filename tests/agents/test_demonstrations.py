from types import SimpleNamespace
from typing import Any

import pytest

from palaestra.agents.demonstrations import demonstrate, generate_demos
from palaestra.agents.scripted import EXPERTS, scripted_agent
from palaestra.core.errors import ConfigError
from palaestra.core.records import episode_from_record, episode_to_record
from palaestra.envs.program_runner import InProcessRunner
from palaestra.envs.registration import make_env

MIX = {"careful": 0.4, "hasty": 0.3, "sloppy": 0.3}


def demos(n: int = 60, **changes):
    options = {"mix": MIX, "env_kwargs": {"prompt_style": "compact"}, **changes}
    return [episode_to_record(episode) for episode in generate_demos("CodeSandbox-v0", n, 3, **options)]


def test_shares_and_processes_make_the_same_demonstrations() -> None:
    whole = demos()
    assert demos(share=(0, 2)) == whole[::2]
    assert demos(share=(1, 2)) == whole[1::2]
    assert demos(processes=2) == whole


@pytest.mark.parametrize("family", ["compose", "repair", "trace"])
@pytest.mark.parametrize("expert", EXPERTS)
def test_in_process_and_sandbox_give_the_same_episodes(family: str, expert: str) -> None:
    keywords = {"families": [family], "prompt_style": "compact"}
    fast, real = make_env("CodeSandbox-v0", **keywords), make_env("CodeSandbox-v0", **keywords)
    fast.unwrapped.use_runner(InProcessRunner())
    for seed in range(40):
        records = [episode_to_record(demonstrate(env, expert, seed)) for env in (fast, real)]
        assert records[0] == records[1]
    fast.close()
    real.close()


@pytest.mark.parametrize("family", ["compose", "repair", "trace"])
def test_careful_experts_solve_nearly_everything_and_hasty_ones_do_not(family: str) -> None:
    shares = {}
    for expert in EXPERTS:
        episodes = list(generate_demos("CodeSandbox-v0", 200, 1, mix={expert: 1}, env_kwargs={"families": [family]}))
        shares[expert] = sum(bool(episode.success) for episode in episodes) / 200
        assert {episode.info["expert"] for episode in episodes} == {expert}
    assert shares["careful"] >= 0.93
    assert shares["hasty"] <= 0.55


@pytest.mark.parametrize("family", ["compose", "repair", "trace"])
@pytest.mark.parametrize("expert", [*EXPERTS, "mixed"])
def test_experts_act_on_observations_alone(family: str, expert: str) -> None:
    """An environment that has a turn budget and nothing else gets the same actions for the same observations."""
    env = make_env("CodeSandbox-v0", families=[family])
    env.unwrapped.use_runner(InProcessRunner())
    blind: Any = SimpleNamespace(unwrapped=SimpleNamespace(options=SimpleNamespace(max_turns=10)))
    for seed in range(30):
        observation, info = env.reset(seed=seed)
        seeing, unseeing = (scripted_agent(expert, family, world) for world in (env, blind))
        for agent in (seeing, unseeing):
            agent.reset(observation, info, seed)
        ended = False
        while not ended:
            action = seeing.act(observation, info)
            assert unseeing.act(observation, {}) == action
            observation, _, terminated, truncated, info = env.step(action)
            ended = terminated or truncated
    env.close()


def test_success_only_keeps_trying_until_the_hidden_tests_pass() -> None:
    assert all(record["success"] for record in demos(30, success_only=True))


def test_demonstrations_survive_a_round_trip_through_records() -> None:
    for record in demos(10):
        assert episode_to_record(episode_from_record(record)) == record


def test_unknown_experts_and_families_are_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'careful'"):
        demos(1, mix={"carefull": 1.0})
    with pytest.raises(ConfigError, match="no expert"):
        scripted_agent("careful", "poetry", None)
