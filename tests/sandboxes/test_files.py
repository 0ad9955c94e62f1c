"""Files through the supervisor."""

from collections.abc import Iterator

import pytest

from palaestra.core.errors import SandboxError
from palaestra.sandboxes import Sandbox, open_sandbox


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with open_sandbox() as opened:
        yield opened


@pytest.mark.parametrize("data", [b"", b"text", bytes(range(256)) * 40, b"x" * (3 << 20)])
def test_bytes_come_back(sandbox: Sandbox, data: bytes) -> None:
    sandbox.write_file("deep/er/file.bin", data)
    assert sandbox.read_file("deep/er/file.bin") == data
    assert sandbox.read_file("/workspace/deep/er/file.bin") == data
    assert sandbox.exec("len(open('deep/er/file.bin', 'rb').read())").stdout == f"{len(data)}\n"


def test_a_shorter_file_replaces_a_longer_one(sandbox: Sandbox) -> None:
    sandbox.write_file("a", b"longer")
    sandbox.write_file("a", b"short")
    assert sandbox.read_file("a") == b"short"


def test_the_session_owns_what_is_written(sandbox: Sandbox) -> None:
    sandbox.write_file("folder/mine.txt", b"1")
    assert sandbox.exec("import os\nopen('folder/mine.txt', 'a').write('2')\nos.remove('folder/mine.txt')").ok


@pytest.mark.parametrize(
    "path", ["missing", "folder", "", "/etc/passwd", "/", "a\0b", "/workspace/../etc/passwd", "../a", "folder/../../a"]
)
def test_what_is_no_file_of_the_workspace_is_refused(sandbox: Sandbox, path: str) -> None:
    sandbox.exec("import os\nos.mkdir('folder')")
    with pytest.raises(SandboxError):
        sandbox.read_file(path)
    with pytest.raises(SandboxError):
        sandbox.write_file("folder" if path == "missing" else path, b"1")
    assert sandbox.exec("1").ok


def test_a_symlink_leads_nowhere_else(sandbox: Sandbox) -> None:
    sandbox.exec("import os\nos.symlink('/etc', 'out')\nos.symlink('/inside', 'in')\nos.mkdir('inside')")
    with pytest.raises(SandboxError):
        sandbox.read_file("out/passwd")
    sandbox.write_file("in/a", b"1")  # `/` is the workspace here
    assert sandbox.read_file("inside/a") == b"1"


def test_files_of_a_dead_session_are_gone(sandbox: Sandbox) -> None:
    sandbox.write_file("a", b"1")
    sandbox.exec("import os\nos._exit(1)")
    with pytest.raises(SandboxError, match="the session has ended"):
        sandbox.read_file("a")
    sandbox.reset()
    with pytest.raises(SandboxError, match="a: No such file"):
        sandbox.read_file("a")
