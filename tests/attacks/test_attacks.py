"""Every attack achieves nothing in any mode of isolation, and something without."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from palaestra.rewards import grade_code
from palaestra.sandboxes import ExecStatus, Limits, shutdown

from . import escape, exhaustion, forging, memory, neighbours, network, persistence, reading
from .attack import Attack
from .forging import CHEATED_DATA, CHEATED_TESTS
from .harness import UNISOLATED, config_of, in_control, in_mode, open_in
from .host import Host
from .modes import CONTAINERS, DOCKER_GVISOR, KNOWN, KNOWN_ON_COPIES, MODES, Mode

CLASSES = {
    "reading": reading.ATTACKS,
    "network": network.ATTACKS,
    "escape": escape.ATTACKS,
    "neighbours": neighbours.ATTACKS,
    "exhaustion": (*memory.ATTACKS, *exhaustion.ATTACKS),
    "forging": forging.ATTACKS,
    "persistence": persistence.ATTACKS,
}
ATTACKS: dict[str, Attack] = {
    f"{kind}: {attack.name}": attack for kind, attacks in CLASSES.items() for attack in attacks
}
TRIES = 3
"""For what has to succeed: some races are lost on a busy machine."""
CHEATS = {cheat.name: cheat.solution for cheat in forging.CHEATS}


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """The host's secret and its keeper; jails that start from here on find it in their parent's environment."""
    folder = tmp_path_factory.mktemp(f"palaestra-{secrets.token_hex(4)}", numbered=False)
    for opened in (folder, *folder.parents):
        if opened.stat().st_mode & 0o005 == 0o005:
            break
        opened.chmod(0o755)  # only the sandbox stands in the way
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    shutdown()
    opened_host = Host(folder, shared / "kernel-memory.lock")
    os.environ["API_KEY"] = opened_host.secret
    yield opened_host
    del os.environ["API_KEY"]
    opened_host.close()


def _marks(mode: Mode) -> list[pytest.MarkDecorator]:
    if mode == DOCKER_GVISOR:
        return [pytest.mark.gvisor]
    return [pytest.mark.docker] if mode in CONTAINERS else []


def _cases(kind: str = "", but: Mode | None = None) -> list[object]:
    return [
        pytest.param(mode, name, id=f"{mode}: {name}", marks=_marks(mode))
        for mode in (*MODES, *CONTAINERS)
        if mode != but
        for name, attack in ATTACKS.items()
        if name.startswith(kind) and (not attack.modes or mode.isolation in attack.modes)
    ]


def _try(mode: Mode, name: str, host: Host, on_a_copy: bool, why_known: str | None) -> None:
    """Fails for what an attack achieves; one that is known to get through is expected to, and may not everywhere."""
    if why_known is None:
        outcome = in_mode(ATTACKS[name], mode, host, on_a_copy)
        for _ in range(TRIES):
            if not any("kernel's memory" in text for text in outcome.achieved):
                break
            outcome = in_mode(ATTACKS[name], mode, host, on_a_copy)  # another test's may have been measured, too
        assert outcome.achieved == []
        assert outcome.problems == []
        return
    for _ in range(TRIES):
        if in_mode(ATTACKS[name], mode, host, on_a_copy).achieved:
            pytest.xfail(why_known)


def _is_root() -> bool:
    """Whether this is the root of the whole machine, and not that of a container or of a namespace."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    is_everybody = Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
    cap_sys_admin = 1 << 21
    return os.geteuid() == 0 and is_everybody and bool(int(status["CapEff"], 16) & cap_sys_admin)


@pytest.mark.parametrize(("mode", "name"), _cases())
def test_an_attack_achieves_nothing(mode: Mode, name: str, host: Host) -> None:
    _try(mode, name, host, on_a_copy=False, why_known=KNOWN.get((mode, name)))


@pytest.mark.parametrize(("mode", "name"), _cases("neighbours", but=DOCKER_GVISOR))
def test_an_attack_on_a_live_copy_achieves_nothing(mode: Mode, name: str, host: Host) -> None:
    _try(mode, name, host, on_a_copy=True, why_known=KNOWN_ON_COPIES.get((mode, name)))


@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if attack.control])
def test_an_attack_succeeds_without_isolation(name: str, host: Host) -> None:
    attack = ATTACKS[name]
    if attack.control_needs_root and not _is_root():
        pytest.skip("without isolation only root could do that")
    problems: list[str] = []
    for _ in range(TRIES):
        outcome = in_control(attack, host)
        if outcome.lacking:
            pytest.skip(f"this machine lacks {outcome.lacking}")
        if outcome.achieved:
            return
        problems += outcome.problems
    pytest.fail(f"it achieves nothing: {problems}")


@pytest.mark.parametrize("tests", [CHEATED_DATA, CHEATED_TESTS], ids=["data", "source"])
@pytest.mark.parametrize("mode", [pytest.param(mode, marks=_marks(mode)) for mode in (*MODES, *CONTAINERS)], ids=str)
@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_does_not_pass(name: str, mode: Mode, tests: object) -> None:
    limits = Limits(timeout_s=5, grace_s=0.1, processes=16)
    with open_in(mode) as neighbour:
        assert neighbour.exec("x = 1").ok
        report = grade_code(
            CHEATS[name],
            tests,  # pyright: ignore
            entry_point="total",
            limits=limits,
            sandbox=config_of(mode),
        )
        assert not report.passed
        assert report.status != ExecStatus.SANDBOX_DIED
        assert neighbour.exec("x").stdout == "1\n"
    honest = grade_code(
        "def total(numbers): return sum(numbers)",
        tests,  # pyright: ignore
        entry_point="total",
        sandbox=config_of(mode),
    )
    assert honest.passed


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_passes_where_it_shares_a_process_with_its_tests(name: str) -> None:
    program = f"{CHEATS[name]}\n{CHEATED_TESTS}\ncheck(total)\nprint('PASSED')"
    with open_in(UNISOLATED) as sandbox:
        ran = sandbox.run(["python3", "-I", "-c", program])
    assert ran.exit_status == 0 or "PASSED" in ran.stdout, ran


def test_there_are_many_attacks_and_nearly_all_have_a_control() -> None:
    assert len(CHEATS) == len(forging.CHEATS)
    assert len(ATTACKS) == sum(len(attacks) for attacks in CLASSES.values()) >= 60
    without = [name for name, attack in ATTACKS.items() if attack.control is None]
    assert len(without) <= len(ATTACKS) // 20, without


def test_known_gaps_are_attacks_of_the_suite() -> None:
    assert {name for _, name in (*KNOWN, *KNOWN_ON_COPIES)} <= set(ATTACKS)
