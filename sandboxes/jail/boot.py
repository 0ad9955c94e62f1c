"""The first program in a container: `python3 -s -S -B -c TEXT_OF_THIS_FILE`.

Images hold nothing of ours, and no folder of the host can be mounted where the engine runs on another machine or in a
VM. So the jail's files arrive on stdin: a length of 4 bytes, then JSON, {file name: text}. They are unpacked, `main.py`
gets stdin and stdout as its line to the host, and whatever else writes to or reads from those two meets /dev/null.

It is written so that any python3 understands it: an old one has to say that it is too old.
"""

import sys

sys.path[:] = [path for path in sys.path if path]  # not the working directory

import json  # noqa: E402
import os  # noqa: E402

_FOLDER = "/palaestra/jail"
_NEEDED = (3, 11)
_OPEN_IN_GVISOR = (("/tmp", 0o755), ("/dev/net", 0o700), ("/dev/fuse", 0o600))
"""What gVisor adds to a container, for everybody to use: a /tmp on no disk where the image's is empty, and devices."""
_LISTING = "import sys; sys.stdout.write('\\0'.join(sys.path))"


def main() -> None:
    """Takes the files, and becomes the jail's first process."""
    if sys.version_info < _NEEDED:
        sys.exit("the image's python3 is {}.{}: 3.11 or newer is needed".format(*sys.version_info))
    _close_what_is_open()
    listing = _start_listing()
    text = _unpack(_receive())
    more = {"packages": _finish_listing(listing)}
    read_fd, write_fd = _take_away(0, os.O_RDONLY), _take_away(1, os.O_WRONLY)
    path = os.path.join(_FOLDER, "main.py")
    sys.argv = [path, str(read_fd), str(write_fd), json.dumps(more)]
    sys.orig_argv[:] = [sys.executable, path]
    exec(compile(text, path, "exec"), {"__name__": "__main__", "__file__": path})


def _close_what_is_open() -> None:
    for path, mode in _OPEN_IN_GVISOR:
        try:
            os.chmod(path, mode)
        except OSError:  # a part of the image, which cannot be changed, or not there
            continue


def _start_listing() -> "tuple[int, int]":
    """Asks the image's Python where it looks for modules, as the image sets it up (by a virtual environment, PYTHONPATH
    or .pth files); it answers while the files arrive.
    """
    read, write = os.pipe()
    nothing = (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)
    arguments = [sys.executable, "-P", "-c", _LISTING]
    actions = [nothing, (os.POSIX_SPAWN_DUP2, write, 1)]
    pid = os.posix_spawn(sys.executable, arguments, os.environ, file_actions=actions)
    os.close(write)
    return pid, read


def _finish_listing(listing: "tuple[int, int]") -> "list[str]":
    pid, read = listing
    with open(read, encoding="utf-8", errors="surrogateescape") as file:
        paths = file.read().split("\0")
    os.waitpid(pid, 0)
    return [path for path in dict.fromkeys(paths) if path not in sys.path and os.path.isdir(path)]


def _receive() -> bytes:
    size = int.from_bytes(_read(4), "big")
    return _read(size)


def _read(size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = os.read(0, size - len(data))
        if not more:
            sys.exit("the host hung up before it had sent the jail's files")
        data += more
    return data


def _unpack(archive: bytes) -> str:
    """Writes the files and gives the text of `main.py`."""
    os.mkdir(_FOLDER)
    files = json.loads(archive.decode())
    for name, text in files.items():
        with open(os.path.join(_FOLDER, name), "w", encoding="utf-8") as file:
            file.write(text)
    return files["main.py"]


def _take_away(fd: int, flags: int) -> int:
    """Moves a descriptor to a number that nothing uses by habit, and leaves /dev/null in its place."""
    moved = os.dup(fd)
    nothing = os.open("/dev/null", flags)
    os.dup2(nothing, fd)
    os.close(nothing)
    return moved


if __name__ == "__main__":
    main()
