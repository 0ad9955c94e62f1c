"""What the kernel holds for processes and no process shows as its memory, estimated from /proc.

A control group counts most of it exactly, where there is one; nothing but /proc tells of locks, and of what was taken
before a session had its group.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping

_PAGE = os.sysconf("SC_PAGE_SIZE")
_MIB = 1 << 20
_MOST_FDS = 256
_USUAL_FDS, _FEW_FDS = 128, 32
_HELD_MIB = {"socket": 0.25, "pipe": 0.0625}
"""What one end of a socket (`net.core.wmem_default`, rounded up) and what a pipe can hold unread."""
_WATCH_MIB = 256 / _MIB
_MAPPING_MIB = 256 / _MIB
_MANY_MAPPINGS = 1 << 17
"""Bytes of a listing: some 1,500 mappings."""
_MOST_LOCKS = 10_000
_LONG_LISTING = 1 << 20
"""Bytes; more are not read, as whoever needs more is over every limit."""


def too_many_locks(pids: Collection[int]) -> str:
    """Says so if processes hold more locks on parts of files than anybody needs: each takes some 200 bytes."""
    listing = _read("/proc/locks")
    if listing.count(b"\n") <= _MOST_LOCKS:
        return ""
    held = 0
    for line in listing.splitlines():
        fields = line.split()
        held += len(fields) > 4 and fields[4].isdigit() and int(fields[4]) in pids
    return f"more than {_MOST_LOCKS} locks on parts of files" if held > _MOST_LOCKS else ""


def described_mib(pids: Collection[int], most_mib: float) -> float:
    """What processes' descriptors hold: unread data in sockets and pipes, and watches; 0 for a usual number of them.

    Args:
        pids: The processes.
        most_mib: Beyond that, counting ends.
    """
    paths: list[str] = []
    unseen = 0
    for pid in pids:
        try:
            paths += [f"/proc/{pid}/fd/{name}" for name in os.listdir(f"/proc/{pid}/fd")]
        except OSError:
            unseen += not _has_ended(pid)  # it hides them
    count = len(paths) + unseen * _MOST_FDS
    if count <= _FEW_FDS:
        return 0.0
    mib = 0.0
    held: set[str] = set()
    for path in paths:
        with contextlib.suppress(OSError):
            target = os.readlink(path)
            held.add(target)
            if target == "anon_inode:[eventpoll]":
                mib += _read(path.replace("/fd/", "/fdinfo/")).count(b"tfd:") * _WATCH_MIB
                if mib > most_mib:
                    return mib
    if count > _USUAL_FDS:
        kinds = [_HELD_MIB.get(target.partition(":")[0], 0.0) for target in held]
        mib += sum(kinds) + unseen * _MOST_FDS * _HELD_MIB["socket"]
    return mib


def most_mappings_mib(address_mib: float) -> float:
    """What the kernel needs at most to describe the mappings in address spaces of a size: one for each page."""
    return address_mib * _MIB / _PAGE * _MAPPING_MIB


def mappings_mib(address_mib: Mapping[int, float], most_mib: float) -> float:
    """What the kernel needs to describe mappings.

    Args:
        address_mib: The sizes of processes' address spaces. A process with many mappings is taken to have as many as
            fit into its own, because listing them takes too long.
        most_mib: Beyond that, counting ends.
    """
    held = 0.0
    for pid, size in address_mib.items():
        if held > most_mib:
            break
        listing = _read(f"/proc/{pid}/maps", _MANY_MAPPINGS)
        held += most_mappings_mib(size) if len(listing) >= _MANY_MAPPINGS else listing.count(b"\n") * _MAPPING_MIB
    return held


def _has_ended(pid: int) -> bool:
    return _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[:1] in ([b"Z"], [b"X"], [])


def _read(path: str, most: int = _LONG_LISTING) -> bytes:
    """Reads a file of /proc, up to a length; nothing if it is gone."""
    pieces: list[bytes] = []
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        while most > 0 and (piece := os.read(fd, min(most, 1 << 16))):
            pieces.append(piece)
            most -= len(piece)
    except OSError:
        pass
    finally:
        os.close(fd)
    return b"".join(pieces)
