"""The outer jail: own namespaces, no network, and a private read-only root with nothing in it but an interpreter.

Works alike for root and for ordinary users, with nothing installed. Started as root, the process first becomes a user
that exists nowhere else; it never keeps the host's user 0 (the root of a rootless container is an ordinary user of the
host, and treated as one). Inside, `/` is a read-only tmpfs with read-only binds of
/usr and the interpreter; /workspace and /tmp are empty mount points that each session covers with its own.
"""

from __future__ import annotations

import os
import signal

from . import kernel

_FIRST_JAIL_ID = 0x70000000  # user ids that no account has; each jail of a machine gets another one
_FIRST_USER, _FIRST_SMALL_USER = 0x71000000, 20_000
USERS = 40_000
"""How many ids there are for sessions; the smaller ones are for containers that map few."""
_SYSTEM = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")
_ETC = ("/etc/ld.so.cache", "/etc/alternatives")
_DEVICES = {"full": "full", "null": "null", "random": "random", "urandom": "urandom", "zero": "full"}
"""Device -> what stands in its place. `full` gives zeros too, and cannot be mapped: shared pages of `zero` belong to no
process and stay when they are unmapped."""
_HOSTNAME = b"sandbox"
_PASSWD = "agent:x:1000:1000:agent:/workspace:/bin/sh\n"
_GROUP = "agent:x:1000:\n"
SESSION_ID = 1000
"""User and group id that a session sees as its own."""


JAIL_FILES = "/palaestra/jail"
"""Where the jail's own source files are found inside."""


def enter(prefixes: list[str], hidden: list[str], jail_files: str, groups: list[int]) -> None:
    """Moves this process into the outer jail; returns in process 1 of it, and never in the caller's own process.

    Args:
        prefixes: Directories that the interpreter needs besides /usr.
        hidden: Directories that are empty inside, should they lie below one of those.
        jail_files: The folder of this package.
        groups: Descriptors of folders of control groups, which are to belong to the jail's user.

    Raises:
        OSError: The kernel refuses a step; `strerror` names it.
    """
    uid, gid = os.getuid(), os.getgid()
    namespaces = (
        kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    )
    jail_id = _FIRST_JAIL_ID + os.getpid()
    becomes_another_user = uid == 0 and exists(jail_id)
    if becomes_another_user:
        for folder in groups:
            os.chown(folder, jail_id, jail_id)
            os.chown("cgroup.procs", jail_id, jail_id, dir_fd=folder)
        kernel.unshare(namespaces)
    else:
        kernel.unshare(namespaces | kernel.CLONE_NEWUSER)
        kernel.IdMaps(SESSION_ID, uid, gid).write()
    child = os.fork()
    if child:
        _wait_for(child)
    kernel.set_hostname(_HOSTNAME)
    _build_root(prefixes, hidden, jail_files)
    if becomes_another_user:
        os.setgroups([])
        os.setresgid(jail_id, jail_id, jail_id)
        os.setresuid(jail_id, jail_id, jail_id)
    kernel.perform([kernel.capabilities()])
    kernel.set_no_new_privileges()
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)  # after the change of user, which clears it


def lose_privileges(isolation: str) -> None:
    """What takes the outer jail's place where there are no namespaces.

    Root stays root, without most of its capabilities: it gives each session a user of its own. With `landlock`, an
    ordinary user does without that.

    Raises:
        OSError: The kernel refuses a step, or root lacks what it needs.
    """
    if os.getuid() == 0:
        if not (exists(first_user()) and _has(kernel.CAP_SETUID) and _has(kernel.CAP_SETGID)):
            raise OSError("root without the capabilities SETUID and SETGID cannot give sessions users of their own")
        kernel.perform([kernel.capabilities(*(kept for kept in kernel.CAPS_OF_KEEPERS if _has(kept)))])
    elif isolation == "uid":
        raise OSError("it is not root")
    kernel.set_no_new_privileges()


def first_user() -> int:
    """The first of `USERS` user ids that nobody else has."""
    return _FIRST_USER if exists(_FIRST_USER) and exists(_FIRST_USER + USERS) else _FIRST_SMALL_USER


def _has(capability: int) -> bool:
    for line in _read("/proc/self/status").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> capability & 1)
    return False


def can_reach(uid: int, folders: list[str], directory: str) -> bool:
    """Whether another user can read folders, and what is his below a directory; asked as that user, by root."""
    os.seteuid(uid)
    try:
        can_read = all(os.access(folder, os.R_OK | os.X_OK, effective_ids=True) for folder in folders)
        return can_read and os.access(directory, os.X_OK, effective_ids=True)
    finally:
        os.seteuid(0)


def visible_folders() -> list[str]:
    """Everything in a container's root directory that is not the kernel's, the jail's or the sessions'."""
    names = set(os.listdir("/")) - {"dev", "proc", "sys", "sessions", "palaestra"}
    return [f"/{name}" for name in sorted(names)]


def exists(uid: int) -> bool:
    """Whether a user id can be taken here: the root of a rootless container has a few only."""
    for line in _read("/proc/self/uid_map").splitlines():
        first, _, count = map(int, line.split())
        if first <= uid < first + count:
            return True
    return False


def _wait_for(child: int) -> None:
    """What the launching process does from here on: live as long as process 1 of the jail."""
    os.closerange(0, 1024)
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _build_root(prefixes: list[str], hidden: list[str], jail_files: str) -> None:
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    wanted = [path for path in ("/usr", *prefixes, *_ETC) if os.path.exists(path)]
    sources = {name: _read(f"{jail_files}/{name}") for name in os.listdir(jail_files) if name.endswith(".py")}
    held = [(os.open(path, os.O_PATH), path) for path in wanted]  # `root` may cover some of them
    root = next(path for path in ("/tmp", "/mnt", "/run", "/var") if os.path.isdir(path))
    kernel.mount("tmpfs", root, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,mode=0755")
    for fd, target in held:
        _bind(fd, root + target)
        os.close(fd)
    for path in hidden:
        if os.path.isdir(root + path) and os.listdir(root + path):  # each mount costs every session a little
            kernel.mount("tmpfs", root + path, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=4k,mode=0555")
    _copy_system_links(root)
    os.makedirs(root + JAIL_FILES)
    for name, text in sources.items():
        _write(f"{root}{JAIL_FILES}/{name}", text)
    os.makedirs(f"{root}/etc", exist_ok=True)
    _write(f"{root}/etc/passwd", _PASSWD)
    _write(f"{root}/etc/group", _GROUP)
    _make_dev(root)
    for name, mode in (("proc", 0o555), ("workspace", 0o755), ("tmp", 0o755)):
        os.mkdir(f"{root}/{name}", mode)
    kernel.make_tree_read_only(root)
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("proc", f"{root}/proc", "proc", flags)
    kernel.pivot_to(root)


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
    for name, source in _DEVICES.items():
        _write(f"{root}/dev/{name}", "")
        kernel.mount(f"/dev/{source}", f"{root}/dev/{name}", None, kernel.MS_BIND)
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(target, f"{root}/dev/{name}")
    os.symlink("/tmp", f"{root}/dev/shm")


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()
