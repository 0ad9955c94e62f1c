"""The family `trace`: inverses, what a prompt keeps back, experiments, and that nothing but a right input is right."""

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from palaestra.agents.demonstrations import generate_demos
from palaestra.agents.scripted.tracing import EXPERIMENTS, experiment
from palaestra.core.tasks import TaskSet
from palaestra.envs.input_answers import NO_INPUT, read_input
from palaestra.envs.registration import make_env
from palaestra.envs.tasks.code import FAMILIES
from palaestra.envs.tasks.code.operations import outputs, source
from palaestra.envs.tasks.code.trace import SHAPES
from palaestra.envs.tasks.code.tracing import LETTERS, REDUCTIONS, STEPS, TraceFunction, read_function

TASKS = TaskSet(split="train", families=(FAMILIES["trace"],)).tasks(300, seed=4)


@pytest.fixture
def env() -> Iterator[Any]:
    env = make_env("CodeSandbox-v0", families=["trace"], levels=[5], prompt_style="compact")
    yield env
    env.close()


def function_of(prompt: str) -> TraceFunction:
    return read_function([line[4:] for line in prompt.split("\n")[2:]])


@pytest.mark.parametrize("name", STEPS)
def test_a_step_makes_exactly_what_its_inverse_was_asked_for(name: str) -> None:
    rng = random.Random(name)
    step = STEPS[name]
    for constant in step.values:
        for length in range(1, 7):
            wanted = [rng.randint(-20, 20) * (constant or 1) for _ in range(length)]
            value = step.inverse(wanted, constant)
            assert outputs([step.template.format(k=constant), "return x"], [value]) == [wanted]
    if name == "multiply":
        assert step.inverse([4, 5], 2) is None


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_whole_functions_are_read_and_followed_backwards(reduction: str) -> None:
    function = TraceFunction(("every", "reverse", "rotate", "from"), (2, 0, None, 7), reduction)
    assert read_function(function.shown) == function
    full = function.with_constants([1])
    assert full.without({"rotate"}) == function
    assert full.without({"from"}).shown[3] == "x = [k - v for v in x]"
    wanted = [3, -4, 5] if reduction == "none" else 12
    assert outputs(full.shown, [full.input_for(wanted)]) == [wanted]
    assert sorted(function.choices()) == [(1,), (2,), (3,)]
    for lines in (["x = x[0]", "return x"], ["x = x[::-1]", "return y"]):
        with pytest.raises(ValueError, match="unknown"):
            read_function(lines)


def test_a_prompt_keeps_back_as_many_constants_as_its_level_says_and_is_short() -> None:
    for task in TASKS:
        function = function_of(task.prompt)
        depth, kept, reductions = SHAPES[task.level]
        assert function.reduction in reductions
        assert isinstance(task.public["wanted"], int) or task.level > 2
        assert (len(function.names), function.constants.count(None)) == (depth, kept)
        assert [letter in task.prompt.split("):\n")[1].replace("for v in", "") for letter in LETTERS][:kept] == [
            True
        ] * kept
        assert task.public["prelude"] not in task.prompt
        assert len(task.prompt) <= 200
        constants = [
            c for c in function.choices() if source(function.with_constants(c).shown) == task.public["prelude"]
        ]
        assert len(constants) == 1


def test_constants_that_are_guessed_are_right_at_most_half_of_the_time() -> None:
    for task in TASKS:
        function, body = function_of(task.prompt), task.public["prelude"].split("\n    ")[1:]
        found = [
            function.with_constants(constants).input_for(task.public["wanted"]) for constants in function.choices()
        ]
        gave = outputs(body, [value for value in found if value is not None])
        assert 1 <= gave.count(task.public["wanted"]) <= len(found) / 2


def test_an_input_is_an_experiment_and_any_that_gives_the_value_is_right(env: Any) -> None:
    env.reset(seed=2)
    task = env.unwrapped.task
    value, wanted = json.loads(task.secret["reference"]), task.public["wanted"]
    (gave,) = outputs(task.public["prelude"].split("\n    ")[1:], [[7, 1, 2, 9, 4, 3]])
    shown = json.dumps(gave, separators=(",", ":"))
    want = json.dumps(wanted, separators=(",", ":"))
    assert env.step("run\n[7, 1, 2, 9, 4, 3]")[0] == f"f([7,1,2,9,4,3])\ngot {shown}\nwant {want}"
    assert env.step(f"run\n{value}")[0] == "ok"
    _, reward, terminated, _, info = env.step("submit")
    assert (reward, terminated, info["success"]) == (1.0, True, True)
    function = function_of(task.prompt)
    body = task.public["prelude"].split("\n    ")[1:]
    found = [function.with_constants(constants).input_for(wanted) for constants in function.choices()]
    for other in found:
        if other is not None:
            env.reset(seed=2)
            assert env.step(f"submit\n{other}")[1] == float(outputs(body, [other]) == [wanted])


def test_code_can_call_the_function_but_not_change_what_counts(env: Any) -> None:
    env.reset(seed=2)
    task = env.unwrapped.task
    wanted = task.public["wanted"]
    assert env.step("run\nprint([f([n] * 5) for n in range(2)] is not None)")[0] == "True"
    assert env.step(f"run\ndef f(x):\n    return {wanted}\nprint(f(0))")[0] == json.dumps(wanted)
    assert "\ngot " in env.step("run\n[0]")[0]
    for program in (f"def f(x):\n    return {wanted}", "x", "[1.0]", "[true]", "{}", "[" * 2000, "9" * 5000):
        observation, _, terminated, _, info = env.step(f"submit\n{program}")
        assert (observation, terminated, info["parse_error"]) == (NO_INPUT, False, NO_INPUT)
        if env.unwrapped.turns_left == 1:
            env.reset(seed=2)
    assert env.step("submit\n[0]")[1] == 0.0


def test_what_is_no_input() -> None:
    assert read_input(" [1, -2]\n") == [1, -2]
    assert read_input("[]") == []
    for text in ("", "1", "[1", "[[1]]", "[1,]", "NaN", "[NaN]", "[1] [2]", "(1, 2)"):
        assert read_input(text) is None, text


def test_an_experiment_tells_as_many_constants_apart_as_any_and_a_number_takes_one_or_two() -> None:
    for task in TASKS:
        function = function_of(task.prompt)
        told = {
            str(value): len({str(outputs(function.with_constants(c).shown, [value])) for c in function.choices()})
            for value in EXPERIMENTS
        }
        assert told[str(experiment(function))] >= max(told.values()) - 1  # an exception tells something, too
    levels = {"families": ["trace"], "levels": [1, 2]}
    episodes = list(generate_demos("CodeSandbox-v0", 200, 6, mix={"careful": 1}, env_kwargs=levels))
    runs = [len(episode.trajectories[0].turns) - 1 for episode in episodes]
    assert sum(n <= 2 for n in runs) >= 0.85 * len(runs)
    assert all(episode.trajectories[0].turns[0].action.startswith("run\n[") for episode in episodes)


def test_experts_write_little_and_learn_from_what_they_read() -> None:
    lengths, turns = [], []
    for episode in generate_demos("CodeSandbox-v0", 200, 6, mix={"careful": 1}, env_kwargs={"families": ["trace"]}):
        assert episode.success
        turns.append(len(episode.trajectories[0].turns))
        lengths += [turn.action.count(",") + 1 for turn in episode.trajectories[0].turns]
    assert max(lengths) <= 50
    assert sum(turns) / len(turns) <= 4.5
