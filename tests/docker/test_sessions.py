"""Sessions in containers do what sessions do: state, commands, files, limits, many of them in one container."""

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from containers import Build, containers, open_docker

from palaestra.core.errors import SandboxError, SandboxUnavailable
from palaestra.rewards import grade_code
from palaestra.sandboxes import ExecStatus, Limits, Sandbox, SandboxConfig

pytestmark = pytest.mark.docker
MODES = ("uid", "landlock")


@pytest.fixture(params=MODES)
def sandbox(request: pytest.FixtureRequest, image: str) -> Iterator[Sandbox]:
    with open_docker(image, request.param, limits=Limits(timeout_s=10)) as opened:
        yield opened


def test_state_is_kept_and_reset_forgets_it(sandbox: Sandbox) -> None:
    assert sandbox.exec("x = 41").ok
    assert sandbox.exec("print('é')\nx + 1").stdout == "é\n42\n"
    failed = sandbox.exec("1/0")
    assert (failed.status, failed.message) == (ExecStatus.ERROR, "ZeroDivisionError: division by zero")
    sandbox.reset()
    assert "NameError" in sandbox.exec("x").stderr


def test_commands_and_files(sandbox: Sandbox) -> None:
    sandbox.write_file("data/a.bin", bytes(range(256)) * 20_000)  # longer than a pipe holds
    assert sandbox.read_file("data/a.bin") == bytes(range(256)) * 20_000
    assert sandbox.run(["wc", "-c", "data/a.bin"]).stdout == "5120000 data/a.bin\n"
    assert sandbox.run(["tr", "a-z", "A-Z"], b"text" * 50_000).stdout.startswith("TEXTTEXT")
    assert sandbox.run(["sh", "-c", "exit 3"]).exit_status == 3
    sandbox.write_file("prog", b"#!/bin/sh\necho ran $1\n")
    assert sandbox.run(["sh", "-c", "chmod +x prog && ./prog it"]).stdout == "ran it\n"
    with pytest.raises(SandboxError, match="No such file"):
        sandbox.read_file("nothing")


@pytest.mark.parametrize("mode", MODES)
def test_modes_and_times_change_in_a_sessions_own_folders_alone(image: str, mode: str) -> None:
    """Under `landlock` all sessions of a container are one user."""
    look = "(found := os.stat('f')).st_mode & 0o7777, found.st_mtime, found.st_ctime"
    with open_docker(image, mode) as sandbox, open_docker(image, mode) as neighbour:
        neighbour.exec("import os\nopen('f', 'w').close()\nos.chmod('f', 0o604)\nos.utime('f', (5, 6))")
        before = neighbour.exec(look).stdout
        assert before.startswith("(388, 6.0, ")
        path = neighbour.exec("print(os.path.abspath('f'))").stdout.strip()
        tried = f"""
import os
seen = []
for change in (lambda path: os.chmod(path, 0o777), os.utime):
    for path in ({path!r}, {os.path.dirname(path)!r}, "link", "/etc/passwd", "/usr/bin"):
        try: change(path); seen.append(path)
        except OSError: pass
seen
"""
        assert sandbox.exec(f"import os\nos.symlink({path!r}, 'link')").ok
        assert sandbox.exec(tried).stdout == "[]\n"
        (copy,) = neighbour.fork(1)
        with copy:
            assert copy.exec("os.chmod('f', 0o640)\nos.stat('f').st_mode & 0o7777").stdout == "416\n"
        assert neighbour.exec(look).stdout == before


@pytest.mark.parametrize(
    ("code", "limits", "status"),
    [
        ("while True: pass", Limits(timeout_s=0.3), ExecStatus.TIMEOUT),
        ("x = bytearray(1 << 29)", Limits(memory_mib=128), ExecStatus.MEMORY_LIMIT),
        ("while True: print('x' * 1000)", Limits(output_hard_mib=1), ExecStatus.OUTPUT_LIMIT),
        ("open('f', 'wb').write(bytes(4 << 20))", Limits(workspace_mib=1, tmp_mib=1), ExecStatus.DISK_LIMIT),
        ("import os\nos._exit(3)", Limits(), ExecStatus.KILLED),
    ],
)
def test_each_limit_has_its_status(image: str, code: str, limits: Limits, status: ExecStatus) -> None:
    with open_docker(image, limits=limits) as sandbox, open_docker(image) as neighbour:
        assert neighbour.exec("x = 1").ok
        result = sandbox.exec(code)
        assert result.status is status
        assert result.message
        assert neighbour.exec("x").stdout == "1\n"
        if not sandbox.alive:
            assert sandbox.exec("1").status is ExecStatus.DEAD
            sandbox.reset()
        assert sandbox.exec("2").stdout == "2\n"


def test_many_sessions_share_one_container(image: str, engine: Any, fresh: None) -> None:
    outcomes: list[str] = []

    def work(number: int) -> None:
        for turn in range(5):
            with open_docker(image) as sandbox:
                sandbox.write_file("number", f"{number} {turn}".encode())
                sandbox.exec(f"x = {number}")
                outcomes.append(sandbox.exec("open('number').read() + ' ' + str(x)").stdout)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(outcomes) == sorted(f"'{number} {turn} {number}'\n" for number in range(16) for turn in range(5))
    assert len(containers(engine)) == 1


@pytest.mark.parametrize("mode", MODES)
def test_a_container_may_do_the_least_that_it_needs(image: str, engine: Any, fresh: None, mode: str) -> None:
    with open_docker(image, mode) as sandbox:
        assert sandbox.exec("1").ok
        (container,) = containers(engine)
        facts = engine.inspect_container(container["Id"])
    host, config = facts["HostConfig"], facts["Config"]
    assert host["NetworkMode"] == "none"
    assert host["IpcMode"] == "none"
    assert host["ReadonlyRootfs"]
    assert not host["Privileged"]
    assert host["CapDrop"] == ["ALL"]
    assert bool(host["CapAdd"]) == (mode == "uid")
    assert "SYS_ADMIN" not in (host["CapAdd"] or ())
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert not host["Binds"]
    assert not facts["Mounts"]
    assert not host["Devices"]
    assert host["Memory"] == host["MemorySwap"] > 0
    assert host["PidsLimit"] > 0
    assert host["AutoRemove"]
    assert host["LogConfig"]["Type"] == "none"
    assert config["User"] == ("0:0" if mode == "uid" else "1000:1000")
    assert (config["OpenStdin"], config["StdinOnce"], config["Tty"]) == (True, True, False)


def test_sessions_see_nothing_of_the_host(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_HOST", "1")
    variables = dict(line.split("=", 1) for line in sandbox.run(["env"]).stdout.splitlines())
    assert not [name for name in variables if name in os.environ and name not in SHARED_NAMES]
    assert sandbox.exec("import os\nos.uname().nodename").stdout == "'sandbox'\n"
    interfaces = sandbox.run(["sh", "-c", "ls /sys/class/net"]).stdout.split()  # Landlock hides them altogether
    assert interfaces in ([], ["lo"])
    reached = sandbox.exec("import socket\nsocket.create_connection(('1.1.1.1', 53), 2)")
    assert not reached.ok
    for path in ("/a", "/usr/a", "/etc/a"):
        assert not sandbox.exec(f"open({path!r}, 'w')").ok


SHARED_NAMES = {"PATH", "HOME", "USER", "LANG", "TMPDIR", "PWD", "PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE",
                "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "SHLVL", "_"}  # fmt: skip


def test_a_solution_is_graded_in_a_container(image: str) -> None:
    config = SandboxConfig(backend="docker", image=image)
    tests = [{"args": [1, 2], "expected": 3}, {"args": [0, 0], "expected": 0}]
    right = grade_code("def add(a, b): return a + b", tests, entry_point="add", sandbox=config)
    wrong = grade_code("def add(a, b): return a - b", tests, entry_point="add", sandbox=config)
    asserts = grade_code("def add(a, b): return a + b", "assert add(2, 2) == 4", entry_point="add", sandbox=config)
    assert (right.passed, wrong.passed, asserts.passed) == (True, False, True)


# --- images of one's own

TASK = r"""
mkdir -p /repo /usr/local/lib/python3.11/dist-packages/taskpackage
echo 'ANSWER = 42' >/usr/local/lib/python3.11/dist-packages/taskpackage/__init__.py
echo 'from the repository' >/repo/data.txt
"""
VENV = r"""
python3 -m venv --without-pip /opt/venv
mkdir /opt/editable
echo '/opt/editable' >/opt/venv/lib/python3.11/site-packages/editable.pth
echo 'ANSWER = 43' >/opt/editable/taskpackage.py
"""


def test_an_image_brings_packages_variables_and_files(build: Build) -> None:
    image = build("task", TASK, "ENV TASK=one", 'ENTRYPOINT ["/bin/false"]', "WORKDIR /repo", "USER nobody")
    with open_docker(image, setup="cp -r /repo/. . && echo done >setup.txt") as sandbox:
        code = "import taskpackage, os\n(taskpackage.ANSWER, os.environ['TASK'])"
        assert sandbox.exec(code).stdout == "(42, 'one')\n"
        assert sandbox.read_file("data.txt") == b"from the repository\n"
        sandbox.reset()
        assert sandbox.run(["cat", "setup.txt"]).stdout == "done\n"


def test_an_image_may_have_its_python_in_a_virtual_environment(build: Build) -> None:
    image = build("venv", VENV, "ENV PATH=/opt/venv/bin:/usr/bin:/bin")
    with open_docker(image) as sandbox:
        assert sandbox.exec("import taskpackage\ntaskpackage.ANSWER").stdout == "43\n"
        command = ["python3", "-c", "import sys, taskpackage; print(sys.prefix, taskpackage.ANSWER)"]
        assert sandbox.run(command).stdout == "/opt/venv 43\n"


def test_a_setup_that_fails_is_the_users_to_mend(image: str) -> None:
    with (
        open_docker(image, setup="echo no such package >&2; false") as sandbox,
        pytest.raises(SandboxUnavailable, match=r"setup='echo .* failed: no such package"),
    ):
        sandbox.exec("1")
