"""Runs one attack and says what it achieved: in a mode of isolation, where that must be nothing, and in its control."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from palaestra.core.errors import SandboxError
from palaestra.sandboxes import ExecResult, ExecStatus, Limits, Sandbox, SandboxConfig, open_sandbox

from .attack import PRELUDE, Attack
from .host import Host, kill_all_with, new_secret, outliving, processes_with
from .modes import Mode

UNISOLATED = Mode("local", "none")
ROOMY = Limits(timeout_s=40, memory_mib=4096, processes=1000, workspace_mib=256, tmp_mib=256, output_hard_mib=64)
LATE = 4
"""How many times more of the kernel's memory a program may have that is ended for it: it is seen a moment later."""
PROMPT_S = 4.0
"""How long a neighbour's small request may take, on a busy machine."""

MOVE_IN = r"""
names = [os.path.join(place, f"neighbour-{MARK}.txt") for place in places()]
for name in names: open(name, "w").write(GIVEN["secret"])
libc.prctl(15, MARK.encode(), 0, 0, 0)
os.environ["NEIGHBOUR"] = GIVEN["secret"]
held, scratch = ctypes.create_string_buffer(GIVEN["secret"].encode()), ctypes.create_string_buffer(b"untouched")
state, hits = [41], []
for number in (signal.SIGURG, signal.SIGWINCH, signal.SIGIO, signal.SIGUSR1): signal.signal(number, lambda *_: hits.append(1))
print(json.dumps({"pid": os.getpid(), "cwd": os.getcwd(), "uid": os.getuid(), "address": ctypes.addressof(held),
    "scratch": ctypes.addressof(scratch), "size": len(held) - 1, "name": MARK, "group": os.getpgrp(),
    "files": names, "control_fd": 3}))
"""
PORTRAIT = r"""
child = os.fork()
if child == 0: os._exit(7)
print(json.dumps([state, len(hits), held.value.decode(), scratch.value.decode(), os.environ["NEIGHBOUR"],
    [open(name).read() if os.path.exists(name) else None for name in names], sorted(os.listdir(".")),
    os.getpriority(os.PRIO_PROCESS, 0), sorted(os.sched_getaffinity(0)), os.sched_getscheduler(0),
    syscall("ioprio_get", 1, 0), [resource.getrlimit(kind) for kind in range(16)],
    os.waitpid(child, 0)[1], os.getcwd(), os.getpgrp(), signal.getitimer(signal.ITIMER_REAL)]))
"""


@dataclass
class Outcome:
    """What an attack did."""

    achieved: list[str] = field(default_factory=list[str])
    """Each thing that isolation is to prevent."""
    problems: list[str] = field(default_factory=list[str])
    """What kept it from being tried in full."""
    lacking: str = ""
    """What this machine lacks for a control."""


def open_in(mode: Mode, limits: Limits | None = None) -> Sandbox:
    """Opens a sandbox in a mode, without the warning that `none` gives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return open_sandbox(config_of(mode), limits=limits)


def config_of(mode: Mode) -> SandboxConfig:
    """How sandboxes of a mode are opened; `make test-docker` names an image and the engine's runtimes."""
    image = os.environ.get("PALAESTRA_TEST_IMAGE") if mode.backend == "docker" else None
    if mode.backend == "docker" and image is None:
        pytest.skip("needs a Docker engine with the test image: make test-docker")
    if mode.runtime is not None and mode.runtime not in os.environ.get("PALAESTRA_TEST_RUNTIMES", "").split():
        pytest.skip(f"needs an engine with the runtime {mode.runtime}: install it, then make test-docker")
    return SandboxConfig(backend=mode.backend, isolation=mode.isolation, image=image, runtime=mode.runtime)


def in_mode(attack: Attack, mode: Mode, host: Host, on_a_copy: bool = False) -> Outcome:
    """Tries an attack twice in one session and once in the next one.

    Args:
        attack: The attack.
        mode: How its session is isolated.
        host: The host.
        on_a_copy: Whether the neighbour is a live copy of the attacker, instead of a stranger.
    """
    limits = Limits(**{"timeout_s": 10, **attack.limits})
    with open_in(mode, limits) as attacker, attacker.fork(1)[0] if on_a_copy else open_in(mode) as victim:
        duel = Duel(host, attack, attacker, victim, limits)
        for _ in range(1 if attack.once else 2):
            if not attacker.alive:
                attacker.reset()
            duel.strike()
        attacker.reset()
        duel.ask_the_next()
        if not attack.once:
            duel.strike()
        attacker.close()
        duel.look_for_processes(patience_s=5)
        duel.look_at_the_host()
        return duel.outcome


def in_control(attack: Attack, host: Host) -> Outcome:
    """Tries an attack once where nothing is to hold it back."""
    limits = Limits(**{"timeout_s": 10, **attack.limits})
    with open_in(UNISOLATED, ROOMY) as attacker, open_in(UNISOLATED, ROOMY) as victim:
        duel = Duel(host, attack, victim if attack.control == "holder" else attacker, victim, limits, unisolated=True)
        if not duel.can_be_tried():
            return Outcome(lacking=attack.control_needs)
        try:
            duel.strike()
            if attack.control != "same session":
                attacker.reset()
            duel.ask_the_next()
            attacker.close()
            duel.look_for_processes(patience_s=1)
            if not duel.outcome.achieved:
                time.sleep(0.3)  # the host's process notes some things a moment later
                duel.look_at_the_host()
        finally:
            duel.clean_up()
        return duel.outcome


class Duel:
    """A session that attacks, a neighbour that is attacked, and the host of both.

    Args:
        unisolated: Whether this is a control: programs are then confined, by what they are given, to what is harmless
            to the machine.
    """

    def __init__(
        self, host: Host, attack: Attack, attacker: Sandbox, victim: Sandbox, limits: Limits, unisolated: bool = False
    ) -> None:
        self.outcome = Outcome()
        self._host = host
        self._attack = attack
        self._attacker = attacker
        self._victim = victim
        self._limits = limits
        self._unisolated = unisolated
        self._mark = f"pal{secrets.token_hex(4)}"
        self._secret = new_secret()
        self._victim_place = self._move_in()
        self._portrait = self._victim.exec(PORTRAIT).stdout

    def _move_in(self) -> dict[str, Any]:
        mark = f"nbr{secrets.token_hex(4)}"
        setup = self._attack.control_twin if self._unisolated else ""
        moved = self._victim.exec(self._prelude(mark=mark, secret=self._secret, victim={}) + setup + MOVE_IN)
        assert moved.ok, moved
        place = json.loads(moved.stdout)
        seen_by_host = processes_with(mark)
        place["pids"] = sorted({place["pid"], *seen_by_host})
        if self._attack.victim:
            said = self._victim.exec(self._prelude(mark=mark, secret=self._secret, victim=place) + self._attack.victim)
            assert said.ok, said
            place["said"] = said.stdout.strip()
        return place

    def _prelude(self, **given: Any) -> str:
        attacker_can_scan = not self._unisolated and "victim" in given and given["victim"]
        victim = given["victim"]
        targets = [*victim.get("pids", ()), self._host.places["pid"]]
        everything = {
            "host": self._host.places,
            "pids": sorted({*targets, *(range(1, 300) if attacker_can_scan else ())}),
            "roots": [self._host.places["playground"]] if self._unisolated else ["/"],
            "places": [".", self._host.places["playground"]] if self._unisolated else [],
            "mark": self._mark,
            "limits": {name: getattr(self._limits, name) for name in Limits.__dataclass_fields__},
            **given,
        }
        return PRELUDE.replace("@GIVEN@", repr(json.dumps(everything)))

    # --- one attack

    def can_be_tried(self) -> bool:
        """Whether the machine has what a control needs."""
        needed = self._attack.control_needs or "True"
        asked = self._attacker.exec(f"{self._prelude(victim={})}print(bool(attempt(lambda: {needed})))")
        return asked.stdout == "True\n"

    def strike(self) -> None:
        """Runs the program and looks at everything that it was not to touch."""
        attack = self._attack
        cwd = self._where()
        prelude = self._prelude(victim=self._victim_place)
        setup = attack.control_setup + "\n" if self._unisolated else ""
        with self._host.kernel_memory(watch=attack.kernel_mib > 0) as grown_mib:
            result = self._attacker.exec(f"{prelude}{setup}{attack.program}\nprint('tried')")
        most_mib = attack.kernel_mib if "tried\n" in result.stdout else LATE * attack.kernel_mib
        if attack.kernel_mib and grown_mib[0] >= most_mib:
            self._note(f"{grown_mib[0]:.0f} MiB of the kernel's memory")
        self._judge(result)
        if "tried\n" not in result.stdout and result.status.value not in attack.ends:
            self.outcome.problems.append(f"it ended as {result}")
        self._let_the_host_work(cwd)
        if attack.late_s:
            self._wait_for_a_late_success()
        self._look_at_the_victim(prelude)
        for change in self._host.changes():
            self._note(change)

    def _where(self) -> str:
        """The attacker's folder; in a new session if the last attack ended the old one late."""
        asked = self._attacker.exec("import os\nprint(os.getcwd())")
        if not asked.ok:
            self._attacker.reset()
            asked = self._attacker.exec("import os\nprint(os.getcwd())")
        return asked.stdout.strip()

    def _wait_for_a_late_success(self) -> None:
        """Until a process of the attack says that it is done, or all are gone."""
        deadline, missed = time.monotonic() + self._attack.late_s, 0
        while missed < 10 and time.monotonic() < deadline:
            if processes_with(f"{self._mark}!"):
                self._note("a process went on beyond its session's limits")
                return
            missed = 0 if processes_with(self._mark) else missed + 1
            time.sleep(0.02)

    def _note(self, achieved: str) -> None:
        self.outcome.achieved.append(achieved)

    def _judge(self, result: ExecResult) -> None:
        """What a result tells: that the attack succeeded, or that the sandbox passed on what it must not."""
        said = result.stdout + result.stderr + result.message
        for line in said.splitlines():
            if "ESCAPED" in line:
                self._note(line[:300])
        for secret in (self._host.secret, self._secret):
            if secret in said:
                self._note("it read a secret")
        if result.status is ExecStatus.SANDBOX_DIED:
            self._note(f"the sandbox died: {result.message}")
        if not result.message.isprintable() or not _is_exit_status(result.exit_status):
            self._note(f"a forged result: {result.message!r}, {result.exit_status!r}")
        if max(len(result.stdout), len(result.stderr)) > self._limits.output_kib * 1024 + 200:
            self._note("more output than is kept")

    def _look_at_the_victim(self, prelude: str) -> None:
        begun = time.perf_counter()
        portrait = self._victim.exec(PORTRAIT)
        seconds = time.perf_counter() - begun
        if portrait.stdout != self._portrait:
            self._note(f"the neighbour was {self._portrait} and is {portrait}")
            self._portrait = portrait.stdout
        if seconds > PROMPT_S:
            self._note(f"the neighbour took {seconds:.1f} s")
        if self._attack.check:
            self._judge(self._victim.exec(prelude + self._attack.check))

    # --- the host's part

    def _let_the_host_work(self, cwd: str) -> None:
        for path in (path.format(**self._host.places) for path in self._attack.reads):
            begun = time.perf_counter()
            data = b""
            with contextlib.suppress(SandboxError):
                data = self._attacker.read_file(path)
            if self._unisolated:
                data += self._read_carelessly(f"{cwd}/{path}")
            if self._host.secret.encode() in data:
                self._note(f"the host read its secret from {path}")
            if time.perf_counter() - begun > PROMPT_S:
                self._note(f"the host waited for {path}")
        for path in (path.format(**self._host.places) for path in self._attack.writes):
            if self._unisolated:
                with contextlib.suppress(OSError), open(f"{cwd}/{path}", "wb") as file:
                    file.write(b"written by the host")
            else:
                with contextlib.suppress(SandboxError):
                    self._attacker.write_file(path, b"written by the host")

    def _read_carelessly(self, path: str) -> bytes:
        """Reads as a host would that trusts its session's files."""
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                self._note(f"the host would wait for {path}, or read it for ever")
                return b""
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
                return file.read(1 << 20)
        except OSError:
            return b""

    # --- afterwards

    def look_at_the_host(self) -> None:
        """Looks for what happened to the host's process and files."""
        for change in self._host.changes():
            self._note(change)

    def ask_the_next(self) -> None:
        """Runs the program of the next session."""
        if self._attack.later:
            self._judge(self._attacker.exec(self._prelude(victim=self._victim_place) + self._attack.later))

    def look_for_processes(self, patience_s: float) -> None:
        """Looks for processes that outlive their session."""
        if self._attack.leaves_processes and outliving(self._mark, patience_s):
            self._note("processes outlive their session")
            kill_all_with(self._mark)

    def clean_up(self) -> None:
        """After a control: removes what it left, and puts the host's files back."""
        if self._attack.leaves_processes:
            kill_all_with(self._mark)
        for path in Path(self._host.places["playground"]).iterdir():
            with contextlib.suppress(OSError):
                path.unlink()
        self._host.restore()


def _is_exit_status(value: object) -> bool:
    return value is None or (type(value) is int and -128 < value < 256)
