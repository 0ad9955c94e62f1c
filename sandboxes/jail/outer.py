"""The outer jail: own namespaces, no network, and a private read-only root with nothing in it but an interpreter.

Works alike for root and for ordinary users, with nothing installed. Started as root, the process first becomes a user
that exists nowhere else; it never keeps the host's user 0. Inside, `/` is a read-only tmpfs with read-only binds of
/usr and the interpreter; /workspace and /tmp are empty mount points that each session covers with its own.
"""

from __future__ import annotations

import os
import signal

from . import kernel

_FIRST_JAIL_ID = 0x70000000  # user ids that no account has; each jail of a machine gets another one
_SYSTEM = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")
_ETC = ("ld.so.cache", "alternatives")
_DEVICES = ("full", "null", "random", "urandom", "zero")
_PASSWD = "agent:x:1000:1000:agent:/workspace:/bin/sh\n"
_GROUP = "agent:x:1000:\n"
SESSION_ID = 1000
"""User and group id that a session sees as its own."""


def enter(prefixes: list[str]) -> None:
    """Moves this process into the outer jail; returns in process 1 of it, and never in the caller's own process.

    Args:
        prefixes: Directories that the interpreter needs besides /usr.

    Raises:
        OSError: The kernel refuses a step; `strerror` names it.
    """
    uid = os.getuid()
    namespaces = (
        kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    )
    if uid == 0:
        kernel.unshare(namespaces)
    else:
        gid = os.getgid()
        kernel.unshare(namespaces | kernel.CLONE_NEWUSER)
        kernel.map_ids(SESSION_ID, uid, gid)
    launcher = os.getpid()
    child = os.fork()
    if child:
        _wait_for(child)
    _build_root(prefixes)
    if uid == 0:
        jail_id = _FIRST_JAIL_ID + launcher
        os.setgroups([])
        os.setresgid(jail_id, jail_id, jail_id)
        os.setresuid(jail_id, jail_id, jail_id)
    kernel.drop_capabilities()
    kernel.set_no_new_privileges()
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # nobody inside reads or traces the trusted processes
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)  # after the change of user, which clears it


def _wait_for(child: int) -> None:
    """What the launching process does from here on: live as long as process 1 of the jail."""
    os.closerange(0, 1024)
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _build_root(prefixes: list[str]) -> None:
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    wanted = ["/usr", *prefixes]
    held = {path: os.open(path, os.O_PATH) for path in wanted}  # they may lie below the directory that is covered next
    base = next(path for path in ("/tmp", "/mnt", "/run", "/var") if os.path.isdir(path))
    held_etc = {name: os.open(f"/etc/{name}", os.O_PATH) for name in _ETC if os.path.exists(f"/etc/{name}")}
    kernel.mount("tmpfs", base, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,mode=0755")
    root = base
    for path, fd in held.items():
        _bind(fd, root + path)
    _copy_system_links(root)
    os.mkdir(f"{root}/etc")
    for name, fd in held_etc.items():
        _bind(fd, f"{root}/etc/{name}")
    _write(f"{root}/etc/passwd", _PASSWD)
    _write(f"{root}/etc/group", _GROUP)
    _make_dev(root)
    for name, mode in (("proc", 0o555), ("workspace", 0o755), ("tmp", 0o755)):
        os.mkdir(f"{root}/{name}", mode)
    kernel.make_tree_read_only(root)
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("proc", f"{root}/proc", "proc", flags)
    kernel.pivot_to(root)
    for fd in (*held.values(), *held_etc.values()):
        os.close(fd)


def _bind(fd: int, target: str) -> None:
    source = f"/proc/self/fd/{fd}"
    if os.path.isdir(source):
        os.makedirs(target, 0o755, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
        _write(target, "")
    kernel.mount(source, target, None, kernel.MS_BIND | kernel.MS_REC)


def _copy_system_links(root: str) -> None:
    for name in _SYSTEM:
        path = f"/{name}"
        if os.path.islink(path):
            os.symlink(os.readlink(path), root + path)
        elif os.path.isdir(path):
            fd = os.open(path, os.O_PATH)
            _bind(fd, root + path)
            os.close(fd)


def _make_dev(root: str) -> None:
    os.mkdir(f"{root}/dev")
    for name in _DEVICES:
        _write(f"{root}/dev/{name}", "")
        kernel.mount(f"/dev/{name}", f"{root}/dev/{name}", None, kernel.MS_BIND)
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(target, f"{root}/dev/{name}")
    os.symlink("/tmp", f"{root}/dev/shm")


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
