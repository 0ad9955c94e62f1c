"""Files of the workspace, written and read from outside; no path and no link leads anywhere else."""

from __future__ import annotations

from ..base import ExecStatus
from .bench import Bench, expect, expect_printed, expect_refused, expect_status, expect_usable_again, printed

_OUTSIDE = """
import os, tempfile
def is_outside(folder):
    return os.path.commonpath([folder, os.getcwd()]) != os.getcwd()
def outside():
    '''Paths outside of the workspace, in folders that the session or its host may be able to write to.'''
    folders = [tempfile.gettempdir(), os.path.dirname(os.getcwd()), "/tmp", "/"]
    return [os.path.join(folder, "self-check-outside") for folder in folders if is_outside(folder)]
"""


def _gives_back_the_bytes_that_it_took(bench: Bench) -> None:
    sandbox = bench.open()
    for data in (b"text\n", b"\r\n\x00\xff\x1a", bytes(range(256)) * 40, b""):
        sandbox.write_file("a.bin", data)
        given = sandbox.read_file("a.bin")
        expect(given == data, f"of {len(data)} bytes, {len(given)} others came back: {given[:20]!r}")
    expect_printed(sandbox, "import os\nos.path.getsize('a.bin')", "0\n")


def _takes_a_file_of_five_mebibytes(bench: Bench) -> None:
    sandbox = bench.open()
    data = bytes(range(256)) * (5 << 12)
    sandbox.write_file("big.bin", data)
    expect_printed(sandbox, "import os\nos.path.getsize('big.bin')", f"{len(data)}\n")
    expect(sandbox.read_file("big.bin") == data, "5 MiB came back changed")


def _makes_the_directories_above_a_file(bench: Bench) -> None:
    sandbox = bench.open()
    sandbox.write_file("one/two/three.txt", b"3")
    sandbox.write_file("one/two/four.txt", b"4")
    sandbox.write_file("./one/five.txt", b"5")
    expect_printed(sandbox, "import os\nsorted(os.listdir('one') + os.listdir('one/two'))",
                   "['five.txt', 'four.txt', 'three.txt', 'two']\n")  # fmt: skip
    expect(sandbox.read_file("one/two/three.txt") == b"3", "another file came back")


def _replaces_a_longer_file(bench: Bench) -> None:
    sandbox = bench.open()
    sandbox.write_file("a", b"longer")
    sandbox.write_file("a", b"short")
    given = sandbox.read_file("a")
    expect(given == b"short", f"writing b'short' over b'longer' gave {given!r}")


def _reads_files_that_the_code_wrote(bench: Bench) -> None:
    sandbox = bench.open()
    program = "import os\nos.mkdir('mine', 0o700)\nopen('mine/a', 'w').write('1')\nos.chmod('mine/a', 0o600)"
    printed(sandbox, program)
    expect(sandbox.read_file("mine/a") == b"1", "a file that the code keeps to itself came back changed")
    expect_status(sandbox.run(["sh", "-c", "echo 2 > b"]), ExecStatus.OK)
    expect(sandbox.read_file("b") == b"2\n", "a command's file came back changed")


def _lets_the_code_change_files_that_it_took(bench: Bench) -> None:
    sandbox = bench.open()
    sandbox.write_file("folder/a", b"1")
    printed(sandbox, "with open('folder/a', 'a') as file:\n    file.write('2')")
    expect(sandbox.read_file("folder/a") == b"12", "what the code appended is missing")
    printed(
        sandbox, "import os\nos.rename('folder/a', 'folder/b')\nopen('folder/c', 'w').close()\nos.remove('folder/c')"
    )
    expect(sandbox.read_file("folder/b") == b"12", "a file that the code renamed came back changed")


def _takes_names_of_any_characters(bench: Bench) -> None:
    sandbox = bench.open()
    for name in ("żółć 🐍/größe.txt", "with spaces", "-n", "a'b\"c$HOME;*", "..a", ".hidden", "x" * 200):
        sandbox.write_file(name, name.encode())
        expect(sandbox.read_file(name) == name.encode(), f"the file {name!r} came back changed")
        expect_printed(sandbox, f"open({name!r}, encoding='utf-8').read() == {name!r}", "True\n")


def _names_a_file_that_is_missing(bench: Bench) -> None:
    sandbox = bench.open()
    for name in ("missing.txt", "no/such/folder.txt"):
        error = expect_refused(lambda name=name: sandbox.read_file(name), "reading a missing file")
        expect(name in str(error), f"the error does not name {name}: {error}")
    expect_usable_again(sandbox)


def _refuses_what_is_no_file(bench: Bench) -> None:
    sandbox = bench.open()
    printed(sandbox, "import os\nos.mkdir('folder')\nos.mkfifo('pipe')\nopen('file', 'w').close()")
    for name in ("folder", "pipe", "file/below", ".", "folder/.."):
        expect_refused(lambda name=name: sandbox.read_file(name), f"reading {name!r}")
        expect_refused(lambda name=name: sandbox.write_file(name, b"1"), f"writing {name!r}")
    expect_usable_again(sandbox)


def _refuses_what_is_no_path(bench: Bench) -> None:
    sandbox = bench.open()
    for path in ("", "a\0b", "a\ud800", "x" * 5000, "/"):
        expect_refused(lambda path=path: sandbox.read_file(path), f"reading {path[:20]!r}")
        expect_refused(lambda path=path: sandbox.write_file(path, b"1"), f"writing {path[:20]!r}")
    expect_usable_again(sandbox)


def _refuses_paths_that_lead_out(bench: Bench) -> None:
    sandbox = bench.open()
    printed(sandbox, _OUTSIDE + "os.mkdir('folder')")
    climbing = ("../self-check-outside", "folder/../../self-check-outside", "../" * 20 + "tmp/self-check-outside")
    absolute = printed(sandbox, "print(*outside(), sep='\\n')").split()
    for path in (*climbing, *absolute):
        expect_refused(lambda path=path: sandbox.write_file(path, b"1"), f"writing {path!r}")
    for path in ("/etc/passwd", "../" * 20 + "etc/passwd", "folder/../../etc/passwd", *absolute):
        expect_refused(lambda path=path: sandbox.read_file(path), f"reading {path!r}")
    expect_printed(sandbox, "[path for path in outside() if os.path.exists(path)]", "[]\n")


def _reads_through_no_link_that_leads_out(bench: Bench) -> None:
    sandbox = bench.open()
    printed(sandbox, "import os\nos.symlink('/etc', 'folder')\nos.symlink('/etc/passwd', 'file')")
    printed(sandbox, f"os.symlink({'../' * 20 + 'etc/passwd'!r}, 'climbing')\nos.symlink('/proc/self/environ', 'proc')")
    for path in ("folder/passwd", "file", "climbing", "proc"):
        expect_refused(lambda path=path: sandbox.read_file(path), f"reading {path!r}, a link that leads out,")
    expect_usable_again(sandbox)


def _writes_through_no_link_that_leads_out(bench: Bench) -> None:
    sandbox = bench.open()
    program = """
for number, path in enumerate(outside()):
    os.symlink(path, f"file{number}")
    os.symlink(os.path.dirname(path), f"folder{number}")
print(len(outside()))
"""
    count = int(printed(sandbox, _OUTSIDE + program))
    for path in [f"file{i}" for i in range(count)] + [f"folder{i}/self-check-outside" for i in range(count)]:
        try:
            sandbox.write_file(path, b"1")
        except Exception:
            continue  # refused; what it may not do is write outside
    expect_printed(sandbox, "[path for path in outside() if os.path.exists(path)]", "[]\n")


CHECKS = (
    _gives_back_the_bytes_that_it_took,
    _takes_a_file_of_five_mebibytes,
    _makes_the_directories_above_a_file,
    _replaces_a_longer_file,
    _reads_files_that_the_code_wrote,
    _lets_the_code_change_files_that_it_took,
    _takes_names_of_any_characters,
    _names_a_file_that_is_missing,
    _refuses_what_is_no_file,
    _refuses_what_is_no_path,
    _refuses_paths_that_lead_out,
    _reads_through_no_link_that_leads_out,
    _writes_through_no_link_that_leads_out,
)
