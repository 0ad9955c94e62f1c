"""Other runtimes of the engine: gVisor, whose kernel is its own, and crun."""

import os
import time
from typing import Any

import pytest
from containers import containers, need_runtime, open_docker

from palaestra.core.errors import SandboxError, SandboxUnavailable
from palaestra.rewards import grade_code
from palaestra.sandboxes import ExecStatus, Limits, SandboxConfig, self_check
from palaestra.sandboxes.contract.bench import Check
from palaestra.sandboxes.contract.catalogue import CHECKS
from palaestra.sandboxes.contract.report import Outcome

pytestmark = pytest.mark.docker
KERNEL = "import os\nprint(os.uname().release)"


@pytest.fixture(params=["runsc", "crun"])
def runtime(request: pytest.FixtureRequest) -> str:
    need_runtime(request.param)
    return request.param


@pytest.fixture
def gvisor() -> str:
    need_runtime("runsc")
    return "runsc"


def test_sessions_run_in_the_runtime_that_was_asked_for(image: str, engine: Any, fresh: None, runtime: str) -> None:
    with open_docker(image, runtime=runtime) as sandbox:
        assert sandbox.exec("x = 41").ok
        assert sandbox.exec("x + 1").stdout == "42\n"
        assert sandbox.run(["tr", "a-z", "A-Z"], b"text").stdout == "TEXT"
        sandbox.write_file("data/a.bin", bytes(range(256)) * 2000)
        assert sandbox.read_file("data/a.bin") == bytes(range(256)) * 2000
        (container,) = containers(engine)
        facts = engine.inspect_container(container["Id"])
        assert facts["HostConfig"]["Runtime"] == runtime
        assert (sandbox.exec(KERNEL).stdout.strip() == os.uname().release) == (runtime == "crun")
        assert facts["Config"]["User"] == "0:0"  # what "auto" takes: a user for each session


def test_a_solution_is_graded(image: str, runtime: str) -> None:
    config = SandboxConfig(backend="docker", image=image, runtime=runtime)
    data = [{"args": [1, 2], "expected": 3}, {"args": [0, 0], "expected": 0}]
    programs = [{"stdin": "1 2\n", "stdout": "3\n"}]
    right, wrong = "def add(a, b): return a + b", "def add(a, b): return a - b"
    for tests in (data, "assert add(1, 2) == 3"):
        assert grade_code(right, tests, entry_point="add", sandbox=config).passed
        assert not grade_code(wrong, tests, entry_point="add", sandbox=config).passed
    assert grade_code("print(sum(map(int, input().split())))", programs, sandbox=config).passed


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{check.number}-{check.name.replace(' ', '_')}")
def test_gvisor_keeps_the_contract_but_for_live_copies(check: Check, image: str, gvisor: str) -> None:
    report = self_check(lambda limits: open_docker(image, "uid", runtime=gvisor, limits=limits), only=[check.number])
    assert report.ok, report.results[0].finding
    is_skipped = report.results[0].outcome is Outcome.SKIPPED
    assert is_skipped == (check.needs == "fork"), report.results[0].finding


LEFT_ALONE = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        {program}
        time.sleep(300)
    os._exit(0)
os.wait()
"""


def test_what_lost_its_parent_counts_in_gvisor(image: str, gvisor: str) -> None:
    program = LEFT_ALONE.format(program="x = bytearray(b'x') * (300 << 20)") + "time.sleep(20)"
    with open_docker(image, runtime=gvisor, limits=Limits(memory_mib=256, timeout_s=30)) as sandbox:
        result = sandbox.exec(program)
    assert result.status is ExecStatus.MEMORY_LIMIT


@pytest.mark.parametrize("end", ["close", "death"])
def test_what_lost_its_parent_ends_with_its_session_in_gvisor(image: str, gvisor: str, end: str) -> None:
    limits = Limits(timeout_s=3)  # the orphan holds what tells of its session's death
    with open_docker(image, runtime=gvisor, limits=limits) as sandbox, open_docker(image, runtime=gvisor) as other:
        assert sandbox.exec(LEFT_ALONE.format(program="open('pid', 'w').write(str(os.getpid()))")).ok
        while not sandbox.run(["cat", "pid"]).stdout:
            time.sleep(0.05)
        lives = f"import os\nos.path.exists('/proc/{sandbox.run(['cat', 'pid']).stdout}')"
        assert other.exec(lives).stdout == "True\n"
        sandbox.close() if end == "close" else sandbox.exec("os._exit(1)")
        deadline = time.monotonic() + 10
        while other.exec(lives).stdout == "True\n" and time.monotonic() < deadline:
            time.sleep(0.05)
        assert other.exec(lives).stdout == "False\n"


def test_nothing_outside_of_a_session_can_be_written_to_in_gvisor(image: str, gvisor: str) -> None:
    program = "import os\n[path for path, _, _ in os.walk('/') if os.access(path, os.W_OK) and path[:5] != '/proc']"
    with open_docker(image, runtime=gvisor) as sandbox:
        assert sandbox.exec(program).stdout == "[]\n"  # the session's own folder cannot be found by walking


def test_what_gvisor_lacks_is_one_line(image: str, gvisor: str) -> None:
    with pytest.raises(SandboxUnavailable, match=r"^image='.*': its Landlock has version 0, not \d+$"):
        open_docker(image, "landlock", runtime=gvisor)
    with open_docker(image, runtime=gvisor) as sandbox:
        assert sandbox.exec("x = 1").ok
        with pytest.raises(SandboxError, match=r"^fork: cannot be forked: not supported by this kernel, [^\n]*$"):
            sandbox.fork(2)
        assert sandbox.exec("x").stdout == "1\n"
