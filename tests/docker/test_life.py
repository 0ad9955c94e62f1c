"""No container outlives its owner, however that ends; orphans of earlier runs are removed, and nobody else's."""

import os
import subprocess
import sys
import time
from typing import Any

import pytest
from containers import containers, none_is_left, open_docker

from palaestra.sandboxes import shutdown
from palaestra.sandboxes.owner import owner_labels

pytestmark = pytest.mark.docker
PROGRAM = """
import os, sys, threading, time
from palaestra.sandboxes import open_sandbox
first, second = (open_sandbox("docker", image={image!r}) for _ in range(2))
first.exec("import subprocess\\nsubprocess.Popen(['setsid', 'sleep', '100'])")
threading.Thread(target=lambda: second.exec("import time\\ntime.sleep(60)"), daemon=True).start()
time.sleep(0.3)
if os.fork() == 0:
    for fd in (0, 1, 2): os.close(fd)
    time.sleep(15)  # a child of the host that holds its other descriptors
    os._exit(0)
print(os.getpid(), flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "sys.exit()", "raise ValueError", "os._exit(0)"])
def test_no_container_outlives_the_host_process(image: str, engine: Any, fresh: None, end: str) -> None:
    program = PROGRAM.format(image=image, end=end)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert ended.stdout, ended.stderr
    assert none_is_left(engine, 8)


def test_a_forked_child_gets_a_container_of_its_own(image: str, engine: Any, fresh: None) -> None:
    with open_docker(image) as sandbox:
        assert sandbox.exec("x = 1").ok
        program = "import os\nok = False"
        pid = os.fork()
        if pid == 0:
            try:
                with open_docker(image) as other:
                    ok = other.exec(program).ok and len(containers(engine)) == 2
                shutdown()
                os._exit(0 if ok else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert sandbox.exec("x").stdout == "1\n"
        assert len(containers(engine)) == 1


def test_orphans_are_removed_and_nobody_elses_container(image: str, engine: Any, fresh: None) -> None:
    (machine_key, machine), (process_key, process) = owner_labels().items()
    labels = {
        "orphan": {machine_key: machine, process_key: "4194304 17"},
        "of an earlier process with this id": {machine_key: machine, process_key: f"{os.getpid()} 1"},
        "stopped": {machine_key: machine, process_key: "4194304 17"},
        "mine": {machine_key: machine, process_key: process},
        "of another machine": {machine_key: "elsewhere pid:[1]", process_key: "4194304 17"},
        "not ours": {},
    }
    ids: dict[str, str] = {}
    try:
        for name, given in labels.items():
            ids[name] = engine.create_container(image, command=["sleep", "1000"], labels=given)["Id"]
            if name != "stopped":
                engine.start(ids[name])
        with open_docker(image) as sandbox:
            assert sandbox.exec("1").ok
            left = {found["Id"] for found in engine.containers(all=True)}
        assert {name for name, container in ids.items() if container in left} == {
            "mine", "of another machine", "not ours",
        }  # fmt: skip
    finally:
        for container in ids.values():
            try:
                engine.remove_container(container, force=True)
            except OSError:
                continue


def test_closing_is_quick_and_leaves_no_descriptor(image: str, engine: Any, fresh: None) -> None:
    fds = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with open_docker(image) as sandbox:
            assert sandbox.exec("1").ok
        started = time.monotonic()
        shutdown()
        assert time.monotonic() - started < 5
        assert containers(engine) == []
    assert len(os.listdir("/proc/self/fd")) == fds
