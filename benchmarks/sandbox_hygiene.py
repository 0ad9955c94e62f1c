"""What a long life of the sandbox leaves behind.

Sessions are opened and closed by the thousand, some crash, and the supervisor is killed now and then. Every call that
had its answer keeps it; every other one must say `sandbox_died`, and nothing else. At the end no process, descriptor,
mount or folder may be left, and this process and its jail may not have grown.

Usage: python benchmarks/sandbox_hygiene.py [--json FILE] [--sessions 10000] [--callers 4] [--kills 2]
       [--isolation auto] [--seed 0]
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from palaestra.sandboxes import ExecStatus, Limits, Sandbox, open_sandbox, shutdown

LIMITS = Limits(timeout_s=10)
TARGETS = {"leaked processes": 0, "leaked descriptors": 0, "leaked mounts": 0, "leaked folders": 0, "wrong answers": 0}
MOST_GROWTH_MIB = 20.0
CRASHES = ("import os\nos._exit(7)", "import os\nos.kill(os.getpid(), 9)", "import ctypes\nctypes.string_at(0)")


@dataclass
class Tally:
    """What the callers saw, all together."""

    statuses: Counter[str] = field(default_factory=lambda: Counter[str]())
    wrong: list[str] = field(default_factory=lambda: list[str]())
    done: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, status: str, wrong: str = "") -> None:
        """Counts a call, and keeps what was wrong with it."""
        with self.lock:
            self.statuses[status] += 1
            if wrong:
                self.wrong.append(wrong)


def descendants(root: int) -> list[int]:
    """The living processes below `root`, by their ids here."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                if state not in "ZX":
                    parents[int(folder.name)] = int(parent)
    tree = [root]
    for pid in tree:
        tree += [child for child, parent in parents.items() if parent == pid]
    return tree[1:]


def memory_mib() -> float:
    """Proportional memory of this process and of all below it."""
    total = 0
    for pid in (os.getpid(), *descendants(os.getpid())):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total / 1024


def abandoned_folders() -> set[str]:
    """The folders and control groups of sessions that no living process holds."""
    found: set[str] = set()
    groups = Path("/sys/fs/cgroup").rglob("palaestra-jail-*")
    for path in (*Path(tempfile.gettempdir()).glob("palaestra-sessions-*"), *groups):
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                found.add(path.name)
            finally:
                os.close(fd)
    return found


def one_session(rng: random.Random, number: int, isolation: str, tally: Tally) -> None:
    """Opens a session, uses it, may crash it, may copy it, and closes it."""
    with open_sandbox(isolation=isolation, limits=LIMITS) as sandbox:
        if not expect(sandbox, f"x = {number}\nx + 1", f"{number + 1}\n", tally):
            return
        kind = rng.random()
        if kind < 0.05:
            result = sandbox.exec(rng.choice(CRASHES))
            wrong = "" if result.status in (ExecStatus.KILLED, ExecStatus.SANDBOX_DIED) else f"a crash gave {result}"
            tally.add(result.status, wrong)
        elif kind < 0.10:
            sandbox.exec("import subprocess\nsubprocess.Popen(['sleep', '1000'], start_new_session=True)")
        elif kind < 0.13:
            with contextlib.suppress(RuntimeError):  # the supervisor may have been killed
                for copy in sandbox.fork(2):
                    expect(copy, "x", f"{number}\n", tally)
                    copy.close()
        elif kind < 0.2:
            sandbox.reset()
            expect(sandbox, "'x' in globals()", "False\n", tally)


def expect(sandbox: Sandbox, code: str, stdout: str, tally: Tally) -> bool:
    result = sandbox.exec(code)
    right = result.ok and result.stdout == stdout
    wrong = "" if right or result.status is ExecStatus.SANDBOX_DIED else f"{code!r} gave {result}"
    tally.add(result.status, wrong)
    return right


def kill_supervisor() -> None:
    """Kills the process that serves this one, as a machine out of memory might."""
    below = descendants(os.getpid())
    supervisors = [pid for pid in below if b"main.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(supervisors[1] if len(supervisors) > 1 else supervisors[0], signal.SIGKILL)


def run(sessions: int, callers: int, kills: int, isolation: str, seed: int) -> tuple[Tally, float]:
    """Lets callers open and close sessions, kills the supervisor at equal distances; gives the tally and seconds."""
    tally = Tally()
    numbers = iter(range(sessions))
    kill_at = {sessions * (index + 1) // (kills + 1) for index in range(kills)}
    began = time.monotonic()

    def work(caller: int) -> None:
        rng = random.Random(f"{seed}/{caller}")
        while True:
            with tally.lock:
                number = next(numbers, None)
                if number is None:
                    return
                tally.done += 1
                if tally.done % max(1, sessions // 20) == 0:
                    print(f"{tally.done} sessions, {time.monotonic() - began:.0f} s", file=sys.stderr)
            if number in kill_at:
                kill_supervisor()
            one_session(rng, number, isolation, tally)

    threads = [threading.Thread(target=work, args=(caller,)) for caller in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally, time.monotonic() - began


def main() -> int:
    """Measures, prints, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--isolation", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    run(100, arguments.callers, 0, arguments.isolation, arguments.seed)  # what is loaded once is no leak
    memory, fds = memory_mib(), len(os.listdir("/proc/self/fd"))
    mounts, made = Path("/proc/self/mounts").read_text(), abandoned_folders()
    tally, seconds = run(arguments.sessions, arguments.callers, arguments.kills, arguments.isolation, arguments.seed)
    time.sleep(2)
    growth = memory_mib() - memory
    leaked_fds = len(os.listdir("/proc/self/fd")) - fds
    shutdown()
    time.sleep(1)
    values = {
        "leaked processes": len(descendants(os.getpid())),
        "leaked descriptors": max(0, leaked_fds),
        "leaked mounts": int(Path("/proc/self/mounts").read_text() != mounts),
        "leaked folders": len(abandoned_folders() - made),
        "wrong answers": len(tally.wrong),
    }
    targets = {
        name: {"target": target, "value": values[name], "met": values[name] <= target}
        for name, target in TARGETS.items()
    }
    targets["growth MiB"] = {"target": MOST_GROWTH_MIB, "value": round(growth, 2), "met": growth <= MOST_GROWTH_MIB}
    figures = {
        "sessions": arguments.sessions, "kills": arguments.kills, "isolation": arguments.isolation,
        "seconds": round(seconds, 1), "calls": dict(tally.statuses), "wrong": tally.wrong[:5], "targets": targets,
    }  # fmt: skip
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0 if all(target["met"] for target in targets.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
