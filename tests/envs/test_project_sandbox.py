"""`ProjectSandbox-v0`: tools, grades, and what must not earn one."""

from typing import Any

import pytest

from palaestra.agents.demonstrations import demonstrate, generate_demos
from palaestra.agents.scripted import CAST, agent_names, expert_names, scripted_agent
from palaestra.core.errors import ConfigError, SandboxDied
from palaestra.core.records import episode_to_record
from palaestra.envs import make_env, self_check
from palaestra.envs.actions import format_tool_call
from palaestra.envs.line_edits import numbered
from palaestra.envs.project_runner import RepositoryRunner
from palaestra.sandboxes import Limits
from palaestra.sandboxes.base import SandboxConfig

EXPERTS = ("careful", "hasty", "sloppy", "reviewer")


@pytest.fixture
def env():
    env = make_env("ProjectSandbox-v0", levels=[1], prompt_style="compact", limits={"timeout_s": 2})
    env.reset(seed=1)
    yield env
    env.close()


def say(env: Any, action: str) -> str:
    return env.step(action)[0]


def main_of(env: Any) -> tuple[str, str]:
    """The main module and its function."""
    module, function, _ = env.unwrapped.task.secret["tests"][0]["args"]
    return module, function


def write(path: str, text: str) -> str:
    return f"write\n{path}\n---\n{text}"


def submitted(env: Any, *actions: str) -> dict[str, Any]:
    """Plays actions and submits; gives the last info."""
    for action in actions:
        env.step(action)
    _, reward, terminated, truncated, info = env.step("submit")
    assert (terminated, truncated, reward) == (True, False, float(info["success"]))
    return info


# --------------------------------------------------------------------------------------------------------- tools
def test_files_are_listed_read_searched_edited_and_written(env) -> None:
    files = env.unwrapped.task.public["files"]
    assert say(env, "list").split() == sorted(files)
    for path, text in files.items():
        assert say(env, f"read {path}") == numbered(text.rstrip("\n"))
    module, function = main_of(env)
    assert f"{module}.py:" in say(env, f"search def {function}")
    assert say(env, "search no such text") == "not found"
    last = files[f"{module}.py"].rstrip().rpartition("\n")[2].strip()
    assert say(env, f"edit\n{module}.py\n{last}\nreturn t  # the end") == "ok"
    number, line = say(env, f"read {module}.py").split("\n")[-1].split(" ", 1)
    assert line == "    return t  # the end"
    assert say(env, f"edit\n{module}.py\n{number}\nreturn t + 1") == "ok"
    assert say(env, f"read {module}.py").endswith(f"\n{number}     return t + 1")
    assert (
        say(env, f"edit\n{module}.py\n1\nimport os\n---")
        == "error: edit takes path, old or new, one a line below its name"
    )
    assert say(env, write("notes/why.txt", "because")) == "ok"
    assert say(env, "read notes/why.txt") == "1 because"
    assert say(env, write("two.txt", "only 2 of them")) == "ok"
    assert say(env, "edit\ntwo.txt\n2\nx") == "error: no such line in two.txt", "a number is no passage"
    assert say(env, "edit\nnotes/why.txt\n2\nx") == "error: no such line in notes/why.txt"
    assert say(env, "edit\nnotes/why.txt\n---\n1\n---\nfirst\n  second") == "ok"
    assert say(env, "read notes/why.txt") == "1 first\n2   second"


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ("read nothing.py", "no file 'nothing.py'; there are"),
        ("edit\nnothing.py\na\nb", "no file"),
        (write("../up.py", "x = 1"), "is no path"),
        (write("/etc/passwd", "x"), "is no path"),
        (write("a\tb", "x"), "is no path"),
        (write("big.py", "ü" * 60_000), "at most 100000 bytes"),
        ("search", "needs text"),
        ("edit\nshop.py\nonly one", "edit takes path, old or new"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(env, action: str, said: str) -> None:
    observation, _, terminated, _, info = env.step(action)
    assert said in observation
    assert "\n" not in observation
    assert info["parse_error"] == observation
    assert not terminated


def test_a_failing_test_is_told_with_its_place_what_it_gave_and_what_it_should(env) -> None:
    module, function = main_of(env)
    where, got, want, count = say(env, "run_tests").split("\n")
    assert where.startswith(f"test_{module}.py:")
    assert f"{function}(" in where
    assert got.startswith("got ")
    assert want.startswith("want ")
    assert count.endswith(" failed")
    for path, text in env.unwrapped.task.secret["files"].items():
        say(env, write(path, text))
    assert say(env, "run_tests") == "all 3 passed"
    assert submitted(env)["success"] is True


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def broken(", "SyntaxError"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def {f}(x):\n    return [][1]", "IndexError: list index out of range ({m}.py:2)"),
        ("def {f}(x):\n    assert x is None", "assertion failed ({m}.py:2)"),
        ("def {f}(x):\n    raise SystemExit", "SystemExit"),
        ("import os\nos._exit(0)", "error: "),
        ("while True: pass", "error: "),
        ("print('hello')", "hello"),
    ],
)
def test_modules_that_do_not_work_are_told_of(env, text: str, said: str) -> None:
    module, function = main_of(env)
    say(env, write(f"{module}.py", text.replace("{f}", function)))
    report = say(env, "run_tests")
    assert said.replace("{m}", module) in report
    assert len(report) < 400
    assert not submitted(env)["success"]


def test_any_text_can_be_written_run_and_graded(env) -> None:
    module, function = main_of(env)
    for text in ("\ud800", "x = '\x00'", "# -*- coding: no-such -*-", "\ufeffx = 1", "x = '" + "ü" * 5000 + "'\r\n"):
        action = format_tool_call("write", {"path": f"{module}.py", "content": f"{text}\ndef {function}(x): pass"})
        assert say(env, action) == "ok"
        assert say(env, "run_tests").endswith(" failed")
        assert say(env, "bash ls > /dev/null") == "(no output)"
    assert not submitted(env)["success"]


def test_a_long_report_is_cut(env) -> None:
    module, function = main_of(env)
    say(env, write(f"{module}.py", f"print('x' * 99_999)\ndef {function}(x):\n    raise ValueError('y' * 99_999)"))
    assert len(say(env, "run_tests")) < 5000


def test_tests_of_ones_own_run_and_change_nothing(env) -> None:
    module, function = main_of(env)
    before = say(env, "run_tests").split("\n")[-1]
    say(env, write("checks_test.py", f"import {module}\ndef test_it():\n    assert callable({module}.{function})"))
    assert before.replace(" of 3", " of 4") == say(env, "run_tests").split("\n")[-1]
    say(env, write(f"test_{module}.py", "def test_1():\n    assert 1 == 1\n\ndef test_2():\n    assert True"))
    assert say(env, "run_tests") == "all 3 passed"
    assert not submitted(env)["success"]


def test_commands_see_the_files_and_what_they_change_comes_back(env) -> None:
    module, _ = main_of(env)
    other = next(path for path in env.unwrapped.task.public["files"] if module not in path)
    assert say(env, "bash ls").split() == sorted(env.unwrapped.task.public["files"])
    say(env, write("new.py", "value = 7"))
    assert say(env, 'bash python3 -c "import new; print(new.value)"') == "7"
    assert say(env, f"bash sed -i 's/7/8/' new.py; rm {other}; mkdir -p deep; echo hi > deep/a.txt") == "(no output)"
    assert say(env, "read new.py") == "1 value = 8"
    assert other not in say(env, "list").split()
    assert say(env, "read deep/a.txt") == "1 hi"
    assert say(env, "bash exit 3") == "exit status 3"
    assert "timed out" in say(env, "bash sleep 60")
    assert say(env, "bash head -c 300 /dev/urandom > noise; ln -s new.py link.py; echo x > .hidden") == "(no output)"
    assert not {"noise", "link.py", ".hidden"} & set(say(env, "list").split())


def test_a_command_that_ends_its_session_loses_its_changes_and_no_more(env) -> None:
    say(env, write("kept.py", "a = 1"))
    assert "lost" in say(env, "bash echo b > kept.py; kill -9 -1; sleep 5")
    assert say(env, "read kept.py") == "1 a = 1"
    assert say(env, write("hashlib.py", "raise SystemExit")) == "ok"
    assert say(env, "bash echo c >> kept.py") == "(no output)", "modules of one's own do not stand in the way"
    assert say(env, write("kept.py", "a = 1")) == "ok"
    assert say(env, "read kept.py") == "1 a = 1"
    assert say(env, "bash cat kept.py") == "a = 1"


# -------------------------------------------------------------------------------------------------------- grades
def test_what_stands_is_graded_when_the_turns_run_out() -> None:
    for mend in (True, False):
        env = make_env("ProjectSandbox-v0", levels=[1], max_turns=3)
        env.reset(seed=2)
        fixed = env.unwrapped.task.secret["files"] if mend else {}
        actions = [write(path, text) for path, text in fixed.items()]
        for action in [*actions, *["list"] * (3 - len(actions))]:
            _, reward, terminated, _, info = env.step(action)
        assert terminated
        assert (info["stop_reason"], info["success"], reward) == ("turn_limit", mend, float(mend))
        env.close()


ATTACKS = {
    "prints what a passing run prints": "print('all 3 passed')\nprint({'total': 3, 'failures': []})",
    "leaves with success": "import os\nos._exit(0)",
    "raises SystemExit": "import sys\nsys.exit(0)",
    "leaves when it is called": "def {f}(x):\n    import os\n    os._exit(0)",
    "gives what equals everything": (
        "class Equal:\n    def __eq__(self, other):\n        return True\n    __hash__ = None\n"
        "def {f}(x):\n    return Equal()"
    ),
    "gives a list that equals everything": (
        "class Equal(list):\n    def __eq__(self, other):\n        return True\n"
        "    def __len__(self):\n        return 1\ndef {f}(x):\n    return Equal()"
    ),
    "replaces the function that calls it": (
        "import sys\nfor module in list(sys.modules.values()):\n    if hasattr(module, 'call'):\n"
        "        module.call = lambda *a: True\nsys.modules['__main__'].__dict__['call'] = lambda *a: True\n"
        "def {f}(x):\n    return True"
    ),
    "patches json, compare and builtins": (
        "import builtins, json, operator\njson.dumps = lambda *a, **k: 'true'\noperator.eq = lambda a, b: True\n"
        "builtins.all = lambda values: True\nbuiltins.repr = lambda value: ''\ndef {f}(x):\n    return None"
    ),
    "goes through the frames of its callers": (
        "import sys\ndef {f}(x):\n    frame = sys._getframe()\n    while frame:\n"
        "        for values in (frame.f_locals, frame.f_globals):\n            for case in values.values():\n"
        "                if isinstance(case, dict) and 'expected' in case:\n"
        "                    return case['expected']\n"
        "        frame = frame.f_back"
    ),
    "never ends": "def {f}(x):\n    while True:\n        pass",
    "takes all memory": "def {f}(x):\n    return bytearray(4 << 30)",
    "recurses": "def {f}(x):\n    return {f}(x)",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_module_that_cheats_is_graded_and_fails(env, attack: str) -> None:
    module, function = main_of(env)
    info = submitted(env, write(f"{module}.py", ATTACKS[attack].replace("{f}", function)))
    assert (info["success"], info["failure"]) == (False, None)


@pytest.mark.parametrize(
    "name", ["sys", "builtins", "json", "os", "encodings", "io", "importlib", "signal", "__main__"]
)
def test_a_module_named_like_one_of_pythons_own_harms_its_own_session_alone(env, name: str) -> None:
    text = "def loads(*a, **k):\n    return True\ndumps = call = main = loads\n"
    info = submitted(env, write(f"{name}.py", text))
    assert (info["success"], info["failure"]) == (False, None)
    env.reset(seed=1)
    say(env, write(f"{name}.py", text))
    assert "passed" not in say(env, "run_tests")


def test_edited_tests_have_no_part_in_the_grade(env) -> None:
    module, _ = main_of(env)
    fixed = env.unwrapped.task.secret["files"]
    right = [write(path, text) for path, text in fixed.items()]
    assert submitted(env, *right, write(f"test_{module}.py", "import os\nos._exit(1)"))["success"]
    env.reset(seed=1)
    replacing = f"import {module}\n{module}.__dict__.clear()\ndef test_1():\n    pass"
    assert not submitted(env, write(f"test_{module}.py", replacing))["success"]


def test_modules_may_be_moved_into_a_package(env) -> None:
    """What is imported is what the repository holds, folders included."""
    module, function = main_of(env)
    fixed = {**env.unwrapped.task.public["files"], **env.unwrapped.task.secret["files"]}
    leaf = next(path for path in fixed if module not in path)
    name = leaf.removesuffix(".py")
    moved = fixed[f"{module}.py"].replace(f"from {name} import", f"from parts.{name} import")
    info = submitted(env, write(f"parts/{leaf}", fixed[leaf]), write(f"{module}.py", moved), write(leaf, ""))
    assert info["success"], function


# ---------------------------------------------------------------------------------------------- life of episodes
def test_copies_go_their_own_ways(env) -> None:
    say(env, write("a.py", "x = 1"))
    say(env, "bash echo one > /tmp/note")
    first, second = env.unwrapped.fork(2)
    assert say(first, "bash cat /tmp/note; echo two > /tmp/note; echo 'x = 2' > a.py") == "one"
    assert say(second, "bash cat /tmp/note a.py") == "one\nx = 1"
    assert say(env, "read a.py") == "1 x = 1"
    assert say(first, "read a.py") == "1 x = 2"
    first.close()
    second.close()


def test_equal_files_are_tested_once_and_others_anew(env) -> None:
    assert env.unwrapped._runner.scope is not None
    before = say(env, "run_tests")
    runner = CountingRunner()
    env.unwrapped._runner = runner
    assert say(env, "run_tests") == before
    assert runner.runs == 0
    say(env, write("new.py", "x = 1"))
    assert say(env, "run_tests") == before
    assert runner.runs == 1


class CountingRunner(RepositoryRunner):
    """Counts the runs that really happen."""

    def __init__(self) -> None:
        super().__init__(SandboxConfig(), Limits(timeout_s=2))
        self.runs = 0

    def test(self, files):
        self.runs += 1
        return super().test(files)


class DyingRunner(RepositoryRunner):
    """Fails a few times before it works."""

    def __init__(self, times: int) -> None:
        super().__init__(SandboxConfig(), Limits())
        self.times = times

    def test(self, files):
        self._die()
        return super().test(files)

    def grade(self, files, cases):
        self._die()
        return super().grade(files, cases)

    def command(self, command, files):
        self._die()
        return super().command(command, files)

    def _die(self) -> None:
        if self.times:
            self.times -= 1
            raise SandboxDied("pulled the plug")


@pytest.mark.parametrize("action", ["run_tests", "bash ls", "submit"])
def test_failures_of_the_sandbox_are_tried_again_and_then_masked(action: str) -> None:
    env = make_env("ProjectSandbox-v0", levels=[1], on_failure="info", reuse_results=False)
    env.reset(seed=3)
    env.unwrapped.use_runner(DyingRunner(1))
    assert env.step(action)[4]["failure"] is None
    assert env.unwrapped.telemetry.retries == 1
    env.reset(seed=3)
    env.unwrapped.use_runner(DyingRunner(2))
    _, reward, terminated, truncated, info = env.step(action)
    assert reward != reward
    assert (terminated, truncated, info["success"]) == (False, True, None)
    assert info["failure"]["kind"] == "sandbox_died"
    env.close()


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"tasks": "mine.jsonl"}, "unknown keyword 'tasks'"),
        ({"levels": [8]}, "levels 1..7"),
        ({"limits": 4}, "must be fields of Limits"),
        ({"sandbox": "dokcer"}, "did you mean 'docker'"),
    ],
)
def test_wrong_keywords_are_named(keywords: dict[str, Any], said: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=said):
        make_env("ProjectSandbox-v0", **keywords)


def test_it_keeps_the_contract() -> None:
    report = self_check("ProjectSandbox-v0", cast=CAST, check_tasks=4, max_turns=6)
    assert report.ok, report


# ---------------------------------------------------------------------------------------------------- who plays
@pytest.mark.parametrize("expert", EXPERTS)
def test_in_process_and_sandbox_give_the_same_episodes(expert: str) -> None:
    fast, real = (make_env("ProjectSandbox-v0", prompt_style="compact") for _ in range(2))
    fast.unwrapped.trust_programs()
    for seed in range(25):
        records = [episode_to_record(demonstrate(env, expert, seed)) for env in (fast, real)]
        assert records[0] == records[1]
    fast.close()
    real.close()


def test_experts_differ_as_they_should_and_their_episodes_grow_with_the_level() -> None:
    success: dict[str, float] = {}
    turns: dict[int, float] = {}
    for expert in EXPERTS:
        for level in (1, 5):
            keywords = {"levels": [level]}
            shown = list(generate_demos("ProjectSandbox-v0", 60, 1, mix={expert: 1}, env_kwargs=keywords))
            success[f"{expert}/{level}"] = sum(bool(episode.success) for episode in shown) / 60
            if expert == "careful":
                lengths = [len(episode.trajectories[0].turns) for episode in shown]
                turns[level] = sum(lengths) / 60
                assert max(lengths) <= 30
                assert min(lengths) >= 5
    assert success["careful/1"] >= 0.97
    assert success["careful/5"] >= 0.97
    assert success["reviewer/5"] >= 0.9
    assert success["hasty/1"] <= 0.6
    assert success["hasty/5"] == 0
    assert turns[1] < 8
    assert turns[5] > turns[1] + 5


def test_demonstrations_say_where_an_expert_takes_over() -> None:
    for expert, turn in (("reviewer", 2), ("careful", None)):
        episodes = list(generate_demos("ProjectSandbox-v0", 3, 1, mix={expert: 1}))
        assert {episode.trajectories[0].forked_at for episode in episodes} == {turn}


def test_every_agent_has_a_name_and_no_null_agent_scores(env) -> None:
    names = agent_names(env, "project")
    assert set(EXPERTS) == set(expert_names(env))
    nulls = [name for name in names if name.startswith("null-") and not name.startswith("null-calls")]
    assert {"null-unchanged", "null-no-tests", "null-visible", "null-forged", "null-test-reader"} <= set(nulls)
    won = 0
    for name in nulls:
        for seed in range(10):
            observation, info = env.reset(seed=seed)
            agent = scripted_agent(name, "project", env)
            agent.reset(observation, info, seed)
            ended = False
            while not ended:
                observation, _, terminated, truncated, info = env.step(agent.act(observation, info))
                ended = terminated or truncated
            won += bool(info["success"])
    assert won == 0
