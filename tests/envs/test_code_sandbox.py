import copy
import math
import pickle
from typing import ClassVar

import gymnasium as gym
import pytest
from gymnasium.utils.env_checker import check_env

from palaestra.core.errors import ConfigError, EnvironmentFailure, SandboxDied, TaskError
from palaestra.envs.actions import format_tool_call
from palaestra.envs.code_sandbox import CodeSandboxEnv
from palaestra.envs.program_runner import RunReport, Verdict
from palaestra.envs.registration import make_env
from palaestra.envs.tools import tool

PROGRAM = "def f(x):\n    return x"


@pytest.fixture
def env():
    env = make_env("CodeSandbox-v0", levels=[2], prompt_style="compact")
    yield env
    env.close()


class DyingRunner:
    """Dies the first `times` times that it is asked to run or grade."""

    scope = None

    def __init__(self, times: int) -> None:
        self.times, self.ran = times, []

    def run(self, program, entry_point, tests) -> RunReport:
        self._maybe_die()
        self.ran.append(program)
        return RunReport(output="ran")

    def grade(self, program, entry_point, tests, prelude) -> Verdict:
        self._maybe_die()
        return Verdict(passed=True)

    def reset(self) -> None:
        self.ran = []

    def close(self) -> None:
        pass

    def _maybe_die(self) -> None:
        if self.times:
            self.times -= 1
            raise SandboxDied("the supervisor was killed")


def test_gymnasiums_own_checks(env) -> None:
    check_env(gym.make("CodeSandbox-v0", levels=[1]).unwrapped, skip_render_check=True)


def test_six_resets_with_one_seed_are_equal(env) -> None:
    first = env.reset(seed=7)
    for _ in range(5):
        assert env.reset(seed=7) == first
    assert env.reset(seed=8)[0] != first[0]


def test_an_episode_with_the_reference_succeeds(env) -> None:
    observation, info = env.reset(seed=3)
    assert info["messages"] == [{"role": "user", "content": observation}]
    assert [tool["function"]["name"] for tool in info["tools"]] == ["run", "edit", "submit"]
    reference = env.unwrapped.task.secret["reference"]
    observation, reward, terminated, truncated, info = env.step(f"run\n{reference}")
    assert (observation, reward, terminated, truncated, info["success"]) == ("ok", 0.0, False, False, None)
    _, reward, terminated, truncated, info = env.step("submit")
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert type(terminated) is bool
    assert info["success"] is True
    assert info["stop_reason"] == "submitted"
    with pytest.raises(gym.error.ResetNeeded):
        env.step("submit")


def test_a_wrong_program_shows_got_and_want_and_can_be_edited(env) -> None:
    env.reset(seed=3)
    task = env.unwrapped.task
    observation = env.step("run\ndef f(x):\n    x = 5\n    return x")[0]
    assert observation.startswith("f([")
    assert "\ngot 5\nwant " in observation
    observation = env.step("edit\nx = 5\nx = 6")[0]
    assert observation.startswith("def f(x):\n    x = 6\n    return x\nf([")
    observation, _, _, _, info = env.step("edit\nno such\nthing")
    assert observation == "error: no such line\ndef f(x):\n    x = 6\n    return x"
    assert info["parse_error"] == "error: no such line"
    assert env.step(f"submit\n{task.secret['reference']}")[1] == 1.0


def test_sessions_keep_state_and_output_is_shown(env) -> None:
    env.reset(seed=3)
    assert env.step("run\nvalue = 41\nprint('hello')")[0] == "hello"
    assert env.step("run\nprint(value + 1)")[0] == "42"
    assert env.step("run\n1 / 0")[0] == "ZeroDivisionError: division by zero"
    env.reset(seed=3)
    assert "NameError" in env.step("run\nprint(value + 1)")[0]


def test_a_remembered_first_run_still_leaves_its_state_behind() -> None:
    env = make_env("CodeSandbox-v0", levels=[1])
    for _ in range(2):
        env.reset(seed=12)
        assert env.step("run\nstate = [1]\nprint(state)")[0] == "[1]"
        assert env.step("run\nstate.append(2)\nprint(state)")[0] == "[1, 2]"
    env.close()


def test_malformed_text_is_an_observation(env) -> None:
    env.reset(seed=3)
    observation, reward, terminated, _, info = env.step("gibberish \x00 \ud800")
    assert observation == info["parse_error"] == "error: say run, edit or submit"
    assert (reward, terminated) == (0.0, False)
    assert env.step("submit")[4]["parse_error"].startswith("error: there is no program")
    assert "characters" in env.step("run\n" + "x" * 200_000)[4]["parse_error"]


def test_running_out_of_turns_terminates_with_what_stands() -> None:
    env = make_env("CodeSandbox-v0", levels=[1], max_turns=2)
    env.reset(seed=1)
    assert env.step("run\nprint(1)")[2] is False
    _, reward, terminated, truncated, info = env.step("run\nprint(2)")
    assert (reward, terminated, truncated, info["stop_reason"], info["success"]) == (
        0.0,
        True,
        False,
        "turn_limit",
        False,
    )
    env.close()


def test_several_calls_in_one_action_run_in_order(env) -> None:
    env.reset(seed=3)
    call = '<tool_call>{"name": "run", "arguments": {"code": "%s"}}</tool_call>'
    assert env.step(call % "a = 1" + call % "print(a)")[0] == "(no output)\n1"


def test_the_full_prompt_teaches_tools_budget_and_visible_tests() -> None:
    env = make_env("CodeSandbox-v0", levels=[1])
    observation, info = env.reset(seed=1)
    assert [message["role"] for message in info["messages"]] == ["system", "user"]
    for text in ("10 turns", "run(code)", "edit(old, new)", "submit([code])", "called f", '"expected"'):
        assert text in observation
    env.close()


def test_a_died_sandbox_is_retried_once_with_the_earlier_programs_run_again(env) -> None:
    runner = DyingRunner(0)
    env.unwrapped.use_runner(runner)
    env.reset(seed=1)
    env.step("run\na = 1")
    runner.times = 1
    assert env.step("run\nprint(a)")[0] == "ran"
    assert runner.ran == ["a = 1", "print(a)"]
    assert env.unwrapped.telemetry.retries == 1


def test_a_lasting_failure_is_raised_or_told_but_never_a_reward(env) -> None:
    env.unwrapped.use_runner(DyingRunner(2))
    env.reset(seed=1)
    with pytest.raises(EnvironmentFailure, match="sandbox_died"):
        env.step(f"submit\n{PROGRAM}")
    told = make_env("CodeSandbox-v0", on_failure="info")
    told.unwrapped.use_runner(DyingRunner(2))
    told.reset(seed=1)
    observation, reward, terminated, truncated, info = told.step(f"submit\n{PROGRAM}")
    assert math.isnan(reward)
    assert (observation, terminated, truncated, info["success"]) == ("", False, True, None)
    assert info["failure"]["kind"] == "sandbox_died"
    assert pickle.loads(pickle.dumps(info)) is not None
    told.close()


class FailingEnv(CodeSandboxEnv):
    """Raises what a tool of one's own may raise when a service does not answer."""

    failures: ClassVar[list[Exception]] = []
    breaks_at = "run"

    def _start(self, task) -> None:
        super()._start(task)
        self._maybe_fail("reset")

    @tool
    def run(self, code: str) -> str:
        """Run code.

        Args:
            code: The program.
        """
        self._maybe_fail("run")
        return "ran"

    def _maybe_fail(self, where: str) -> None:
        if where == self.breaks_at and self.failures:
            raise self.failures.pop()


BUSY = EnvironmentFailure("service_busy", "no answer")
GONE = EnvironmentFailure("service_gone", "no such service", retryable=False)
DIED = SandboxDied("gone")


def first_run(env: FailingEnv):
    _, info = env.reset(seed=1)
    return ("", math.nan, False, True, info) if info["failure"] else env.step("run 1")


@pytest.mark.parametrize("breaks_at", ["reset", "run"])
@pytest.mark.parametrize(("failures", "lasting"), [([BUSY], ""), ([DIED], ""), ([DIED, BUSY], BUSY), ([GONE], GONE)])
def test_failures_of_tools_and_resets_are_retried_where_that_is_safe(monkeypatch, breaks_at, failures, lasting) -> None:
    monkeypatch.setattr(FailingEnv, "breaks_at", breaks_at)
    for on_failure in ("raise", "info"):
        monkeypatch.setattr(FailingEnv, "failures", list(failures[::-1]))
        env = FailingEnv(on_failure=on_failure)
        if lasting and on_failure == "raise":
            with pytest.raises(EnvironmentFailure, match=lasting.kind):
                first_run(env)
        else:
            observation, reward, terminated, truncated, info = first_run(env)
            assert (observation, terminated, truncated) == ("" if lasting else "ran", False, bool(lasting))
            assert math.isnan(reward) == bool(lasting)
            assert info["failure"] == (vars(lasting) if lasting else None)
        assert env.telemetry.retries == (0 if failures == [GONE] else 1)
        if lasting:
            with pytest.raises(gym.error.ResetNeeded):
                env.step("run 1")
        env.close()


def test_copies_are_made_anew_from_the_same_keywords(env) -> None:
    observation, _ = env.reset(seed=7)
    env.step("run\nx = 1")
    for twin in (copy.deepcopy(env), pickle.loads(pickle.dumps(env)), pickle.loads(pickle.dumps(env.unwrapped))):
        assert twin.unwrapped is not env.unwrapped
        assert twin.unwrapped.options == env.unwrapped.options
        assert twin.spec.id == "CodeSandbox-v0"
        assert twin.reset(seed=7)[0] == observation
        twin.close()
    assert env.step("run\nprint(x)")[0] == "1", "the copied episode goes on"


def test_specs_can_be_copied_pickled_and_stored(env) -> None:
    observation, _ = env.reset(seed=7)
    spec = env.spec
    for twin in (
        copy.deepcopy(spec),
        pickle.loads(pickle.dumps(spec)),
        gym.envs.registration.EnvSpec.from_json(spec.to_json()),
    ):
        made = gym.make(twin)
        assert made.reset(seed=7)[0] == observation
        made.close()


def test_nothing_that_an_info_holds_is_shared_with_the_environment(env) -> None:
    _, info = env.reset(seed=3)
    wanted = copy.deepcopy(info)
    info["tools"][0]["function"]["name"] = "changed"
    info["messages"][0]["content"] = "changed"
    info["tools"].clear()
    assert env.reset(seed=3)[1] == wanted
    assert env.step("run\nprint(1)")[0] == "1"


def test_an_anchor_names_the_program_that_stands_and_what_was_read(env) -> None:
    def anchors(*actions: str) -> list[str]:
        first = env.reset(seed=3)[1]["anchor"]
        return [first, *(env.step(action)[4]["anchor"] for action in actions)]

    wrong = "run\ndef f(x):\n    return 1"
    start, one = anchors(wrong)
    assert start != one
    assert anchors("nonsense", wrong)[2] == one  # on another way, in more turns
    assert anchors("run\ndef f(x):\n    return 1\n# alike")[1] != one  # the same answer to another program
    assert anchors(wrong, "nonsense")[2] != one  # the same program, something else read
    assert env.reset(seed=4)[1]["anchor"] != start


@pytest.mark.parametrize("action", [None, 3, b"submit", ["submit"]])
def test_an_action_of_another_type_is_a_type_error_and_costs_no_turn(env, action) -> None:
    env.reset(seed=3)
    with pytest.raises(TypeError, match="an action is the model's text"):
        env.step(action)
    assert env.unwrapped.turns_left == 10


NASTY_CODES = (
    "\ud800",
    "print('\ud83d')",
    "\x00",
    "(" * 40_000,
    "print('\x1e')",
    "x = 1\r\nprint(x)",
    "\f",
    "\ufeffx = 1",
)


@pytest.mark.parametrize("tool_name", ["run", "submit", "edit"])
def test_programs_of_nasty_characters_are_answered(env, tool_name: str) -> None:
    for code in NASTY_CODES:
        env.reset(seed=3)
        if tool_name == "edit":
            env.step("run\nx = 1")
            arguments = {"old": code, "new": code}
        else:
            arguments = {"code": code}
        observation, reward, _, truncated, info = env.step(format_tool_call(tool_name, arguments))
        assert observation
        refused = "error: no such line" if observation.startswith("error: no such line") else None
        assert (reward, truncated, info["parse_error"]) == (0.0, False, refused)
        assert refused is None or tool_name == "edit"
    assert env.reset(seed=3)[0]


def test_actions_with_line_ends_of_windows_are_read(env) -> None:
    env.reset(seed=3)
    assert env.step("run\r\nx = 1\r\nprint(x)\r\n")[0] == "1"
    assert env.step("edit\r\nx = 1\r\nx = 2\r\n")[0].endswith("2")
    assert env.step("edit\r\nx = 2\r\n---\r\nx = 3\r\nx += 1\r\n")[0].endswith("4")
    assert env.step("```python\r\nprint(5)\r\n```\r\n")[0] == "5"


def test_reset_options_pick_task_and_split(env) -> None:
    _, info = env.reset(seed=0, options={"task_id": "compose:heldout:1:5"})
    assert info["task_id"] == "compose:heldout:1:5"
    assert env.reset(seed=0, options={"split": "validation"})[1]["task_id"].startswith("compose:validation:2:")
    with pytest.raises(ConfigError, match="did you mean 'task_id'"):
        env.reset(options={"taskid": "x"})
    with pytest.raises(TaskError, match="task_id=5: must be a text"):
        env.reset(options={"task_id": 5})
    with pytest.raises(TaskError, match="did you mean 'heldout'"):
        env.reset(options={"split": "held-out"})


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"families": ["compos"]}, "did you mean 'compose'"),
        ({"split": "test"}, "split='test'"),
        ({"parser": "xml"}, "parser='xml'"),
        ({"max_turns": 0}, "max_turns=0"),
        ({"limits": {"memory_mb": 4}}, "memory_mib"),
        ({"sandbox": "cloud"}, "sandbox='cloud'"),
        ({"families": "compose"}, "families='compose': must be a list of names"),
        ({"families": None}, "families=None"),
        ({"levels": 3}, "levels=3: must be a list of whole numbers"),
        ({"levels": [1.0]}, "levels=[1.0]"),
        ({"max_turns": 2.5}, "max_turns=2.5: must be a whole number"),
        ({"max_turns": True}, "max_turns=True"),
        ({"max_chars": "9"}, "max_chars='9'"),
        ({"tasks": 3}, "tasks=3: must be the path of a file"),
        ({"limits": [1]}, "limits=[1]"),
        ({"isolation": "jail"}, "isolation='jail'"),
        ({"image": "python"}, "image='python'"),
    ],
)
def test_wrong_keywords_are_one_line(keywords, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_env("CodeSandbox-v0", **keywords)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_module_that_lacks_another_one_is_not_called_missing(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_lacking_envs.py").write_text("import no_such_package_of_mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="its module needs 'no_such_package_of_mine', which is not installed"):
        make_env("my_lacking_envs:Mine-v0")
    with pytest.raises(ConfigError, match="no environment 'my_absent_envs:Mine-v0'"):
        make_env("my_absent_envs:Mine-v0")


def test_a_file_of_ones_own_tasks(tmp_path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(
        '{"prompt": "Double x.", "entry_point": "double", "tests": [{"args": [2], "expected": 4}], '
        '"hidden_tests": "assert double(5) == 10"}\n'
    )
    env = make_env("CodeSandbox-v0", tasks=str(path))
    env.reset(seed=0)
    assert env.step("submit\ndef double(x):\n    return 2 * x")[1] == 1.0
    env.close()
    path.write_text('{"prompt": "a", "entry_point": "f", "tests": "assert f()"}\n{"prompt": "b"}\n')
    with pytest.raises(TaskError, match="line 2: 'entry_point' is missing"):
        make_env("CodeSandbox-v0", tasks=str(path))


def test_rendering_is_a_transcript() -> None:
    env = gym.make("CodeSandbox-v0", render_mode="ansi", levels=[1])
    env.reset(seed=2)
    env.step("run\nprint('seen')")
    assert "print('seen')" in env.render()
    assert "seen" in env.render()
    env.close()
