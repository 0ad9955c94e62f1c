"""Which mode a machine gets: for root and for ordinary users, with and without user namespaces and Landlock."""

import subprocess
import sys

import pytest

from palaestra.core.errors import ConfigError
from palaestra.sandboxes import open_sandbox

PROGRAM = """
import os, sys
from palaestra.sandboxes.jail import kernel, seccomp
refused = {"unshare": (272, 97)} if "no-namespaces" in sys.argv else {}
if "no-landlock" in sys.argv:
    refused["landlock_create_ruleset"] = (444, 444)
if refused:
    made = seccomp.Filter(kernel.ARCHITECTURES.index(kernel.MACHINE))
    made.answer(refused, 0x00050000 | 1)  # EPERM
    kernel.set_no_new_privileges()
    kernel.perform([made.seal()])
from palaestra.sandboxes import open_sandbox
try:
    sandbox = open_sandbox()
except Exception as error:
    print(os.getuid(), type(error).__name__, error)
else:
    with sandbox:
        mode = "namespaces" if "workspace" in sandbox.exec("import os\\nos.environ['HOME']").stdout else "landlock"
        assert sandbox.exec("x = 6\\nx * 7").stdout == "42\\n"
        (copy,) = sandbox.fork(1)
        assert copy.exec("x * 8").stdout == "48\\n"
        sandbox.write_file("a/b", b"c")
        assert sandbox.exec("open('a/b').read(), open('a/d', 'w').write('e')").stdout == "('c', 1)\\n"
        assert sandbox.read_file("a/d") == b"e"
        assert sandbox.run(["sh", "-c", "cat /etc/shadow"]).exit_status != 0
    print(os.getuid(), mode)
"""
AS_USER = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
"""Without any privilege: those that come with a new namespace are lost to an ordinary user's first program."""


def outcome(*refused: str, user: bool) -> str:
    command = [*(AS_USER if user else []), sys.executable, "-c", PROGRAM, *refused]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.mark.parametrize("user", [False, True], ids=["this-user", "uid-1000"])
def test_the_best_mode_that_works_is_taken(user: bool) -> None:
    assert outcome(user=user).endswith(" namespaces")
    assert outcome("no-landlock", user=user).endswith(" namespaces")
    assert outcome("no-namespaces", user=user).endswith(" landlock")


@pytest.mark.parametrize("user", [False, True], ids=["this-user", "uid-1000"])
def test_where_nothing_works_one_line_says_what_to_change(user: bool) -> None:
    said = outcome("no-namespaces", "no-landlock", user=user)
    assert len(said.splitlines()) == 1
    assert "SandboxUnavailable" in said
    assert "isolation='namespaces' is refused" in said
    assert "Operation not permitted" in said
    assert "isolation='landlock' is refused" in said
    assert "Linux 6.12" in said


def test_modes_of_other_backends_are_named() -> None:
    with pytest.raises(ConfigError, match=r"sandbox='local' has auto, namespaces, landlock, none"):
        open_sandbox(isolation="uid")
    with pytest.raises(ConfigError, match=r"sandbox='docker' has auto, uid, landlock"):
        open_sandbox("docker", isolation="namespaces")
