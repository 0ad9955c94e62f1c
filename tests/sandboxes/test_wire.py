"""The wire protocol under bytes that nobody meant: from the host's side, and from sessions that lie."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from palaestra.core.errors import SandboxError
from palaestra.rewards import grade_code
from palaestra.sandboxes import ExecStatus, Limits, Sandbox, open_sandbox
from palaestra.sandboxes.jail import wire
from palaestra.sandboxes.local import ProcessLink

MODES = ("namespaces", "landlock")
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
HEADS = st.dictionaries(st.sampled_from(["id", "s", "x", "m", "pids", "op", "status", "alive", "o"]), PLAIN, max_size=6)
FRAMES = st.builds(wire.pack, HEADS | st.dictionaries(st.text(max_size=4), PLAIN, max_size=3), st.binary(max_size=64))
NOISE = st.binary(min_size=1, max_size=80) | FRAMES | st.builds(
    lambda head, body, rest: wire.LENGTHS.pack(head, body) + rest,
    st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.binary(max_size=64),
)  # fmt: skip
SHORT = Limits(timeout_s=0.5)
FEW = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.dictionaries(st.text(max_size=5), PLAIN, max_size=4), st.binary(max_size=99)), max_size=5),
    st.data(),
)
def test_frames_survive_any_cuts(frames: list[tuple[dict[str, Any], bytes]], data: st.DataObject) -> None:
    stream = b"".join(wire.pack(head, body) for head, body in frames)
    reader, read = wire.FrameReader(), []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        read += reader.feed(stream[:cut])
        stream = stream[cut:]
    assert read == [(json.loads(json.dumps(head)), body) for head, body in frames]


@given(st.lists(NOISE, max_size=6))
def test_noise_is_frames_or_a_wire_error_and_nothing_else(chunks: list[bytes]) -> None:
    reader = wire.FrameReader(max_body=1 << 12)
    try:
        for chunk in chunks:
            for head, body in reader.feed(chunk):
                assert isinstance(head, dict)
                assert len(body) <= 1 << 12
    except wire.WireError:
        pass


@pytest.fixture(scope="module", params=MODES)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Sandbox, Sandbox]]:
    limits = Limits(timeout_s=0.5, grace_s=0.1)
    with open_sandbox(isolation=request.param, limits=limits) as liar, open_sandbox(isolation=request.param) as other:
        assert other.exec("x = 1").ok
        yield liar, other


def check(liar: Sandbox, other: Sandbox) -> None:
    """The neighbour kept its state and answers at once, and the liar gets a fresh session."""
    began = time.monotonic()
    assert other.exec("x").stdout == "1\n"
    assert time.monotonic() - began < 2
    liar.reset()
    assert liar.exec("6 * 7").stdout == "42\n"


@FEW
@given(noise=st.lists(NOISE, min_size=1, max_size=4))
def test_a_session_that_writes_noise_harms_nobody_else(pair: tuple[Sandbox, Sandbox], noise: list[bytes]) -> None:
    liar, other = pair
    result = liar.exec(f"import os\nfor data in {noise!r}: os.write(3, data)")
    assert result.status in (ExecStatus.OK, ExecStatus.ERROR, ExecStatus.KILLED, ExecStatus.TIMEOUT)
    liar.exec("1")
    check(liar, other)


@FEW
@given(noise=NOISE, late=st.booleans())
def test_a_session_that_lies_while_it_is_forked_harms_nobody_else(
    pair: tuple[Sandbox, Sandbox], noise: bytes, late: bool
) -> None:
    liar, other = pair
    hook = "os.register_at_fork(after_in_parent=lie)" if late else "os.register_at_fork(before=lie)"
    liar.exec(f"import os\ndef lie(): os.write(3, {noise!r})\n{hook}")
    try:
        copies = liar.fork(2)
    except SandboxError:
        copies = []
    for copy in copies:
        copy.exec("1")
        copy.close()
    check(liar, other)


@FEW
@given(noise=NOISE)
def test_an_answer_to_a_grading_is_read_or_refused(pair: tuple[Sandbox, Sandbox], noise: bytes) -> None:
    solution = f"import os\ndef f(x):\n    os.write(3, {noise!r})\n    os.write(4, {noise!r})\n    return x\n"
    assert not grade_code(solution, [{"args": [1], "expected": 2}], entry_point="f", limits=SHORT).passed
    assert not grade_code(solution, "assert candidate(1) == 2", entry_point="f", limits=SHORT).passed
    assert pair[1].exec("x").stdout == "1\n"


@settings(max_examples=15)
@given(noise=st.lists(NOISE, max_size=4), good_start=st.booleans())
def test_a_jail_that_hears_noise_from_its_host_ends_and_leaves_nothing(noise: list[bytes], good_start: bool) -> None:
    link = ProcessLink("namespaces")
    try:
        link.set_timeout(20)
        if good_start:
            assert b'"status":"ok"' in link.receive()
        for data in noise:
            try:
                link.send(data)
            except OSError:
                break
        link.hang_up()
        link.end()
        assert link._process.returncode is not None
    finally:
        link.end()
        link.close()


def test_the_sockets_of_the_tests_are_the_real_ones() -> None:
    """What the noise above is sent over is what sessions really speak over."""
    with open_sandbox() as sandbox:
        kinds = sandbox.exec("import os, stat\nstat.S_ISSOCK(os.fstat(3).st_mode)").stdout
        assert kinds == "True\n"
        forged = wire.pack({"id": 0, "s": "ok", "x": 0, "m": "forged"})
        result = sandbox.exec(f"import os\nos.write(3, {forged!r})\nprint('honest')")
        assert result.message != "forged"
