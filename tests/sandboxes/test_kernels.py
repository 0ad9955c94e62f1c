"""What kernels lack that are not today's Linux (gVisor, old ones), done in another way: the same comes out."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palaestra.sandboxes.jail import copying, kernel, program, resolving, trees

PARTS = ["a", "b", "file", "in", "out", "up", "loop", "dangling", "absolute", "missing", "..", ".", ""]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A folder, opened, with links of all kinds in it; beside it is what they must not reach."""
    top = tmp_path_factory.mktemp("tree")
    (top / "root" / "a" / "b").mkdir(parents=True)
    (top / "secret").write_text("secret")
    for folder in ("root", "root/a", "root/a/b"):
        (top / folder / "file").write_text(folder)
    links = {"in": "a/b", "a/in": "b/../b", "out": "../..", "a/out": "../../..", "up": "..",
             "a/b/up": "../..", "loop": "loop", "a/loop": "../loop", "dangling": "nowhere", "absolute": "/a",
             "a/absolute": str(top)}  # fmt: skip
    for name, target in links.items():
        (top / "root" / name).symlink_to(target)
    fd = os.open(top / "root", os.O_PATH)
    yield fd
    os.close(fd)


def opened(open_in_root: Callable[[int, str, int], int], tree: int, path: str, flags: int) -> tuple[int, int] | int:
    """What was opened, or the error's number."""
    try:
        fd = open_in_root(tree, path, flags)
    except OSError as error:
        return error.errno or 0
    try:
        found = os.fstat(fd)
        return found.st_dev, found.st_ino
    finally:
        os.close(fd)


def in_one_call(tree: int, path: str, flags: int) -> int:
    for _ in range(50):
        try:
            return kernel.open_in_root(tree, path, flags)
        except BlockingIOError:  # something was renamed on this machine meanwhile
            continue
    raise AssertionError("the machine is busy renaming")


@settings(max_examples=500)
@given(
    path=st.lists(st.sampled_from(PARTS), min_size=1, max_size=7).map("/".join).filter(bool),
    flags=st.sampled_from([os.O_RDONLY | os.O_NONBLOCK, os.O_PATH | os.O_DIRECTORY, os.O_WRONLY | os.O_NONBLOCK]),
)
def test_a_walk_opens_what_openat2_opens(tree: int, path: str, flags: int) -> None:
    assert opened(resolving.walk, tree, path, flags) == opened(in_one_call, tree, path, flags)


def test_a_walk_makes_files_only_inside_and_leaves_no_descriptor_open(tmp_path: Path) -> None:
    (tmp_path / "root" / "folder").mkdir(parents=True)
    (tmp_path / "root" / "link").symlink_to("../made")
    root = os.open(tmp_path / "root", os.O_PATH)
    before = os.listdir("/proc/self/fd")
    for path in ("folder/new", "link"):
        os.close(resolving.walk(root, path, os.O_WRONLY | os.O_CREAT, 0o600))
    with pytest.raises(FileNotFoundError, match="folder/missing/new"):
        resolving.walk(root, "folder/missing/new", os.O_WRONLY | os.O_CREAT, 0o600)
    assert os.listdir("/proc/self/fd") == before
    os.close(root)
    assert (tmp_path / "root" / "folder" / "new").exists()
    assert (tmp_path / "root" / "made").exists()
    assert not (tmp_path / "made").exists()


def test_children_are_found_without_lists_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(read, 1)
        os._exit(0)
    listed = trees.children_of(os.getpid())
    monkeypatch.setattr(trees, "_HAS_LISTS", False)
    assert pid in trees.children_of(os.getpid())
    assert set(trees.children_of(os.getpid())) == set(listed)
    os.write(write, b"x")
    os.waitpid(pid, 0)
    os.close(read)
    os.close(write)


def test_content_is_copied_where_holes_are_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = os.open(tmp_path / "source", os.O_RDWR | os.O_CREAT)
    target = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    size = 40 << 20
    os.ftruncate(source, size)
    os.pwrite(source, b"middle", 17 << 20)
    os.pwrite(source, b"end", size - 3)
    seek = os.lseek

    def lseek(fd: int, at: int, how: int) -> int:
        if how in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(errno.EINVAL, "told")
        return seek(fd, at, how)

    monkeypatch.setattr(os, "lseek", lseek)
    copying.copy_content(source, target, size)
    assert (tmp_path / "target").read_bytes() == (tmp_path / "source").read_bytes()
    assert os.fstat(target).st_blocks * 512 <= 4 << 20  # the holes stayed holes
    os.close(source)
    os.close(target)


def test_input_is_a_file_without_a_name_where_none_is_born_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_ = os.open

    def refuse(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "told")
        return open_(path, flags, mode)

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(os, "open", refuse)
    fd = program.stdin_file(b"data")
    assert os.read(fd, 10) == b"data"
    assert os.listdir(tmp_path) == []
    os.close(fd)
