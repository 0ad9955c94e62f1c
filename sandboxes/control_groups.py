"""Control groups for a jail's sessions: where the kernel itself keeps count of what a whole session uses.

They are an addition: where no folder of the control-group file system may be written to, watching processes must do.
Version 2 is used where its memory controller is enabled for groups that this process may make: for root, and for an
ordinary user whose service manager delegates it (systemd does for user sessions). Version 1 is used for root alone.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from .leftovers import HeldFolder

_PREFIX = "palaestra-jail-"
_JAIL = "jail"
"""The group of supervisor and zygote: whoever moves processes may do so below what both places have in common, and
groups whose members count memory have no processes themselves."""
_PATIENCE_S = 2.0


@dataclass(frozen=True)
class _Hierarchy:
    """A mounted hierarchy, and this process's own group in it."""

    mount: Path
    own: Path


class ControlGroups:
    """Folders in which a jail may make groups for its sessions.

    Args:
        pid: The jail's first process, which is moved into a group beside those.

    Raises:
        OSError: There is no hierarchy in which that is possible; the text says why.
    """

    def __init__(self, pid: int) -> None:
        self._folders: dict[str, HeldFolder] = {}
        parents = _parents()
        try:
            for kind, parent in parents.items():
                self._folders[kind] = folder = HeldFolder(str(parent), _PREFIX, _remove_groups)
                if "unified" in parents:
                    _write(folder.path, "cgroup.subtree_control", "+memory")
                os.mkdir(os.path.join(folder.path, _JAIL))
                _write(folder.path, f"{_JAIL}/cgroup.procs", str(pid))
        except OSError:
            self.remove()
            raise

    @property
    def folders(self) -> dict[str, str]:
        """The folders: `unified` for version 2, `memory` and `cpuacct` for version 1."""
        return {kind: folder.path for kind, folder in self._folders.items()}

    def remove(self) -> None:
        """Removes the groups; may be called twice. Those whose processes do not end in time a later jail removes."""
        latest = time.monotonic() + _PATIENCE_S
        for folder in self._folders.values():
            folder.remove()
            while os.path.exists(folder.path) and time.monotonic() < latest:
                time.sleep(0.005)
                folder.remove()

    def forget(self) -> None:
        """In a forked child: lets go of them."""
        for folder in self._folders.values():
            folder.forget()


def version() -> int:
    """Gives the version of control groups that sessions are counted by.

    Raises:
        OSError: They are counted by watching processes alone; the text says why.
    """
    return 2 if "unified" in _parents() else 1


def _parents() -> dict[str, Path]:
    hierarchies = _hierarchies()
    unified = hierarchies.get("unified")
    delegated = None if unified is None else closest_delegated(unified.mount, unified.own)
    return {"unified": delegated} if delegated is not None else _for_root(hierarchies)


def _hierarchies() -> dict[str, _Hierarchy]:
    """Gives the mounted hierarchies by controller; version 2 as `unified`."""
    owns: dict[str, str] = {}
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, names, own = line.split(":", 2)
        if ".." not in own.split("/"):  # else it lies outside of what is visible here
            owns.update(dict.fromkeys(names.split(",") if names else ["unified"], own))
    found: dict[str, _Hierarchy] = {}
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        fields, _, rest = line.partition(" - ")
        root, mount = fields.split(" ")[3:5]
        kind, _, options = rest.split(" ", 2)
        names = ["unified"] if kind == "cgroup2" else options.split(",") if kind == "cgroup" else []
        for name in names:
            own = owns.get(name)
            if own is not None and name not in found and os.path.commonpath([own, root]) == root:
                found[name] = _Hierarchy(Path(mount), Path(mount, os.path.relpath(own, root)).resolve())
    return found


def closest_delegated(mount: Path, own: Path) -> Path | None:
    """Gives the group of version 2 closest to one's own that may have groups which count memory, if there is one."""
    for folder in (own, *own.parents):
        if not folder.is_relative_to(mount):
            break
        if _is_writable(folder) and "memory" in _read(folder / "cgroup.subtree_control").split():
            return folder
    return None


def _for_root(hierarchies: dict[str, _Hierarchy]) -> dict[str, Path]:
    """Gives the groups of version 1 that this process is in."""
    found = {kind: hierarchies[kind].own for kind in ("memory", "cpuacct") if kind in hierarchies}
    if "memory" not in found:
        raise OSError("no control group that this process may write to has groups that count memory")
    for folder in found.values():
        if os.geteuid() != 0 or not _is_writable(folder):
            raise OSError(f"{folder} is not writable")
    return found


def _is_writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK) and os.access(folder / "cgroup.procs", os.W_OK)


def _remove_groups(path: str) -> None:
    """Removes a folder of groups, unless some have processes."""
    names = os.listdir(path) if os.path.isdir(path) else []
    for entry in [*filter(os.path.isdir, [os.path.join(path, name) for name in names]), path]:
        with contextlib.suppress(OSError):
            os.rmdir(entry)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""


def _write(folder: str, name: str, text: str) -> None:
    with open(os.path.join(folder, name), "w", encoding="ascii") as file:
        file.write(text)
