"""Forks: live copies that share a past and nothing else. Checked where the implementation has them."""

from __future__ import annotations

from ..base import ExecStatus, Limits
from .bench import Bench, expect, expect_printed, expect_refused, expect_status, printed, run_at_once

_DRAW = "print([random.random() for _ in range(3)], random.getrandbits(64))"
_DRAW_NUMPY = "print(None if np is None else np.random.random(3).tolist())"
_SEED_NUMPY = "try:\n    import numpy as np\n    np.random.random()\nexcept ImportError:\n    np = None"


def _copies_the_state(bench: Bench) -> None:
    original = bench.open()
    printed(original, "import math as m, os\nx = {'a': [1]}\ndef f(y):\n    return x['a'] + [y]")
    printed(
        original, "def count():\n    yield 1\n    yield 2\nc = count()\nnext(c)\nos.mkdir('below')\nos.chdir('below')"
    )
    for copy in bench.fork(original, 2):
        expect_printed(copy, "print(f(2), m.floor(2.5), next(c), os.path.basename(os.getcwd()))", "[1, 2] 2 2 below\n")
    expect_printed(original, "print(f(2), next(c))", "[1, 2] 2\n")


def _copies_a_session_that_nobody_used(bench: Bench) -> None:
    original = bench.open()
    copy, _ = bench.fork(original, 2)
    printed(copy, "x = 1")
    expect("NameError" in original.exec("x").stderr, "the original has a variable of its copy")


def _keeps_the_state_of_copies_apart(bench: Bench) -> None:
    original = bench.open()
    printed(original, "x = [0]")
    sessions = [original, *bench.fork(original, 2)]
    for number, session in enumerate(sessions):
        printed(session, f"x.append({number})")
    for number, session in enumerate(sessions):
        expect_printed(session, "x", f"[0, {number}]\n")


def _copies_files_and_keeps_them_apart(bench: Bench) -> None:
    original = bench.open()
    original.write_file("folder/a", b"before")
    printed(
        original, "import os, tempfile\nopen(os.path.join(tempfile.gettempdir(), 'b'), 'w').write('t')\n_ = tempfile"
    )
    sessions = [original, *bench.fork(original, 2)]
    for number, session in enumerate(sessions):
        expect(session.read_file("folder/a") == b"before", "a copy has another file than the original")
        printed(session, "path = os.path.join(tempfile.gettempdir(), 'b')")  # a copy's folder may be another one
        expect_printed(session, f"print(open(path).read())\n_ = open(path, 'w').write('{number}')", "t\n")
        session.write_file("folder/a", f"{number}".encode())
        printed(session, f"open('new{number}', 'w').close()")
    for number, session in enumerate(sessions):
        expect(
            session.read_file("folder/a") == f"{number}".encode(), "copies share a file that was written from outside"
        )
        expect_printed(session, "print(open(path).read())", f"{number}\n")
        expect_printed(session, "sorted(os.listdir())", f"['folder', 'new{number}']\n")


def _copies_the_random_state(bench: Bench) -> None:
    original = bench.open()
    printed(original, "import random\n_ = random.random()\n" + _SEED_NUMPY)
    copies = bench.fork(original, 2)
    for draw in (_DRAW, _DRAW_NUMPY):
        drawn = [printed(session, draw) for session in (original, *copies)]
        expect(len(set(drawn)) == 1, f"copies draw other random numbers: {drawn[0].strip()} and {drawn[1].strip()}")


def _makes_copies_of_copies(bench: Bench) -> None:
    session = bench.open()
    printed(session, "x = [0]")
    generations = [session]
    for number in range(1, 5):
        session = bench.fork(session, 1)[0]
        generations.append(session)
        expect_printed(session, f"x.append({number})\nx", f"{list(range(number + 1))}\n")
        session.write_file(f"{number}", b"")
    for number, session in enumerate(generations):
        expect_printed(session, "len(x)", f"{number + 1}\n")
        expect_printed(session, "import os\nlen(os.listdir())", f"{number}\n")


def _makes_sixteen_copies_at_once(bench: Bench) -> None:
    original = bench.open()
    printed(original, "x = 100")
    original.write_file("a", b"1")
    copies = bench.fork(original, 16)
    for number, copy in enumerate(copies):
        printed(copy, f"x += {number}\nopen('{number}', 'w').close()")
    for number, copy in enumerate(copies):
        expect_printed(copy, f"import os\nprint(x, set(os.listdir()) == {{'a', '{number}'}})", f"{100 + number} True\n")


def _keeps_copies_when_the_original_goes(bench: Bench) -> None:
    for end in ("close", "reset", "die"):
        original = bench.open()
        printed(original, "x = 1")
        original.write_file("a", b"1")
        copy = bench.fork(original, 1)[0]
        if end == "die":
            original.exec("import os\nos._exit(1)")
        else:
            getattr(original, end)()
        expect(copy.alive, f"a copy is not alive after {end}() of the original")
        expect_printed(copy, "x", "1\n")
        expect(copy.read_file("a") == b"1", f"a copy lost its file after {end}() of the original")


def _keeps_the_others_when_a_copy_goes(bench: Bench) -> None:
    original = bench.open()
    printed(original, "x = 1")
    closed, dead, fresh, left = bench.fork(original, 4)
    closed.close()
    dead.exec("import os\nos._exit(1)")
    fresh.reset()
    for session in (original, left):
        expect(session.alive, "a session is not alive after a copy of it ended")
        expect_printed(session, "x", "1\n")
    expect("NameError" in fresh.exec("x").stderr, "a copy kept its state over a reset")
    expect(not dead.alive and not closed.alive, "a copy that ended is still alive")


def _keeps_limits_in_copies(bench: Bench) -> None:
    original = bench.open(Limits(timeout_s=1, grace_s=5, memory_mib=128, output_kib=2))
    copy = bench.fork(bench.fork(original, 1)[0], 1)[0]
    expect(len(copy.exec("print('x' * 100_000)").stdout) < 3 * 1024, "a copy keeps more output than its original")
    result = expect_status(copy.exec("while True:\n    pass"), ExecStatus.TIMEOUT)
    expect(result.seconds < 5, f"what may take 1 s took {result.seconds:.1f} s in a copy")
    expect_status(copy.exec("x = b'x' * (1 << 30)"), ExecStatus.MEMORY_LIMIT)


def _lets_copies_run_side_by_side(bench: Bench) -> None:
    original = bench.open()
    printed(original, "import time")
    copies = bench.fork(original, 4)
    seconds = run_at_once([lambda copy=copy: printed(copy, "time.sleep(0.5)") for copy in copies])
    expect(seconds < 1.5, f"four copies that sleep for 0.5 s at once took {seconds:.1f} s")


def _runs_commands_in_copies(bench: Bench) -> None:
    original = bench.open()
    original.write_file("a", b"1")
    copy = bench.fork(original, 1)[0]
    result = expect_status(copy.run(["sh", "-c", "cat; cat a; echo 2 > a"], stdin=b"in"), ExecStatus.OK)
    expect(result.stdout == "in1", f"a command in a copy printed {result.stdout!r}")
    expect(original.read_file("a") == b"1", "a command in a copy changed a file of the original")


def _refuses_to_copy_what_has_ended(bench: Bench) -> None:
    original = bench.open()
    bench.fork(original, 1)
    original.exec("import os\nos._exit(1)")
    expect_refused(lambda: original.fork(1), "copying a dead session")
    original.close()
    expect_refused(lambda: original.fork(1), "copying a closed sandbox")


CHECKS = (
    _copies_the_state,
    _copies_a_session_that_nobody_used,
    _keeps_the_state_of_copies_apart,
    _copies_files_and_keeps_them_apart,
    _copies_the_random_state,
    _makes_copies_of_copies,
    _makes_sixteen_copies_at_once,
    _keeps_copies_when_the_original_goes,
    _keeps_the_others_when_a_copy_goes,
    _keeps_limits_in_copies,
    _lets_copies_run_side_by_side,
    _runs_commands_in_copies,
    _refuses_to_copy_what_has_ended,
)
