"""Isolation, as far as harmless code can see: no network, nothing of the host's, no hand on a neighbour.

This is no attack suite: a sandbox that fails here isolates nothing; one that passes has shown that it tries to.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import tempfile
from collections.abc import Generator
from pathlib import Path

from .bench import Bench, expect, expect_printed, printed

_TRIES = """
def tries(call, *arguments):
    try:
        return str(call(*arguments))
    except Exception as error:
        return type(error).__name__
"""
_SHORTEST_SECRET = 20
"""From this length on, an environment variable with the same value is no coincidence."""


def _cannot_connect_to_the_host(bench: Bench) -> None:
    sandbox = bench.open()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        printed(sandbox, f"import socket\nfor address in '127.0.0.1', 'localhost':\n    try:\n"
                f"        socket.create_connection((address, {port}), 1).send(b'hi')\n"
                f"    except Exception:\n        pass")  # fmt: skip
        server.settimeout(0.1)
        with contextlib.suppress(TimeoutError):
            server.accept()[0].close()
            raise AssertionError("the code reached a port of the host")


def _finds_no_way_into_a_network(bench: Bench) -> None:
    program = """
import socket
def reaches(address):  # connecting a datagram socket looks for a route, and sends nothing
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
    except OSError:
        return False
    return True
print(*filter(reaches, ("192.0.2.1", "8.8.8.8", "172.17.0.1")))
"""
    reached = printed(bench.open(), program).split()
    expect(reached == [], f"there is a route to {', '.join(reached)}")


def _cannot_read_files_of_the_host(bench: Bench) -> None:
    sandbox = bench.open()
    with _host_files() as files:
        for path, secret in files.items():
            for program in (f"open({path!r}).read()", f"__import__('os').listdir({os.path.dirname(path)!r})"):
                result = sandbox.exec(program)
                told = secret in result.stdout or os.path.basename(path) in result.stdout
                expect(not told, f"the code sees {path} of the host")


@contextlib.contextmanager
def _host_files() -> Generator[dict[str, str]]:
    """Files of the host, in folders that every program can write to, with their contents."""
    with contextlib.ExitStack() as stack:
        files: dict[str, str] = {}
        for folder in dict.fromkeys((tempfile.gettempdir(), "/var/tmp")):
            if os.path.isdir(folder) and os.access(folder, os.W_OK):
                path = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder))) / secrets.token_hex(8)
                path.parent.chmod(0o755)  # so that it is the sandbox that keeps the code from reading
                files[str(path)] = secrets.token_hex(16)
                path.write_text(files[str(path)], encoding="ascii")
                path.chmod(0o644)
        yield files


def _does_not_see_the_environment_of_the_host(bench: Bench) -> None:
    name, value = f"SELF_CHECK_{secrets.token_hex(4)}", secrets.token_hex(16)
    os.environ[name] = value
    try:
        sandbox = bench.open()
        seen = printed(sandbox, "import os\nprint(dict(os.environ))") + sandbox.run(["env"]).stdout
    finally:
        del os.environ[name]
    expect(value not in seen, "a variable of the host was inherited")
    for other, its_value in os.environ.items():
        inherited = other != "PATH" and len(its_value) >= _SHORTEST_SECRET and its_value in seen
        expect(not inherited, f"the host's variable {other} is visible")


def _cannot_signal_a_neighbour(bench: Bench) -> None:
    neighbour, sandbox = bench.open(), bench.open()
    pid = int(printed(neighbour, "import os\nx = 1\nprint(os.getpid())"))
    if pid not in (1, os.getpid()):  # neither the sandbox's own first process nor, of one that is no process, the host
        printed(sandbox, f"{_TRIES}import os, signal\nif os.getpid() != {pid}:\n"
                f"    _ = tries(os.kill, {pid}, signal.SIGKILL), tries(os.killpg, {pid}, signal.SIGKILL)")  # fmt: skip
    expect_printed(neighbour, "x", "1\n")
    expect_printed(sandbox, "6 * 7", "42\n")


def _cannot_read_files_of_a_neighbour(bench: Bench) -> None:
    neighbour, sandbox = bench.open(), bench.open()
    secret = secrets.token_hex(16)
    neighbour.write_file("secret", secret.encode())
    program = f"import os, tempfile\nfolder = tempfile.mkdtemp()\n_ = open(folder + '/a', 'w').write('{secret}')"
    printed(neighbour, program)
    paths = printed(neighbour, "print(os.path.abspath('secret'), folder + '/a', sep='\\n')").splitlines()
    pid = printed(neighbour, "print(os.getpid())").strip()
    for path in (*paths, *(f"/proc/{pid}/root{path}" for path in paths), f"/proc/{pid}/cwd/secret"):
        stdout = printed(sandbox, f"{_TRIES}tries(lambda: open({path!r}).read())")
        expect(secret not in stdout, f"the code reads a neighbour's file as {path}")


CHECKS = (
    _cannot_connect_to_the_host,
    _finds_no_way_into_a_network,
    _cannot_read_files_of_the_host,
    _does_not_see_the_environment_of_the_host,
    _cannot_signal_a_neighbour,
    _cannot_read_files_of_a_neighbour,
)
