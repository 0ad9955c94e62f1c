"""State: what one execution leaves is there for the next one."""

from __future__ import annotations

from .bench import Bench, expect, expect_printed, printed


def _keeps_variables_functions_and_classes(bench: Bench) -> None:
    sandbox = bench.open()
    printed(sandbox, "x = [1]\ndef f(y):\n    return x + [y]\nclass A:\n    z = 5")
    printed(sandbox, "x.append(2)\na = A()\na.z += 1")
    expect_printed(sandbox, "print(f(3), a.z)", "[1, 2, 3] 6\n")


def _keeps_imports(bench: Bench) -> None:
    sandbox = bench.open()
    printed(sandbox, "import math as m\nfrom json import dumps\nm.mark = 1")
    expect_printed(sandbox, "print(dumps([m.floor(2.5), m.mark]))", "[2, 1]\n")


def _keeps_the_working_directory_and_the_environment(bench: Bench) -> None:
    sandbox = bench.open()
    printed(sandbox, "import os\nos.mkdir('below')\nos.chdir('below')\nos.environ['MARK'] = 'set'")
    expect_printed(sandbox, "print(os.path.basename(os.getcwd()), os.environ['MARK'])", "below set\n")


def _keeps_what_ran_before_an_error(bench: Bench) -> None:
    sandbox = bench.open()
    sandbox.exec("x = 1\nx = 2\nraise ValueError\nx = 3")
    expect_printed(sandbox, "print(x)", "2\n")


def _runs_code_as_main(bench: Bench) -> None:
    sandbox = bench.open()
    expect_printed(sandbox, "if __name__ == '__main__':\n    print('main')", "main\n")
    printed(sandbox, "import pickle\nclass A:\n    pass")
    expect_printed(sandbox, "print(type(pickle.loads(pickle.dumps(A()))) is A)", "True\n")


def _echoes_the_last_expression(bench: Bench) -> None:
    sandbox = bench.open()
    for code, echo in (
        ("1 + 1", "2\n"),
        ("x = 5\nx", "5\n"),
        ("'a'  # a comment\n\n", "'a'\n"),
        ("print('a')\n(1,\n 2)", "a\n(1, 2)\n"),
        ("def f():\n    return 3\nf()", "3\n"),
        ("'''\ntext\n'''", "'\\ntext\\n'\n"),
    ):
        expect_printed(sandbox, code, echo)


def _echoes_nothing_else(bench: Bench) -> None:
    sandbox = bench.open()
    for code in ("x = 5", "None", "for i in range(3):\n    i", "1; x = 2", "if True:\n    7", "def f():\n    8"):
        expect_printed(sandbox, code, "")


def _takes_code_that_does_nothing(bench: Bench) -> None:
    sandbox = bench.open()
    for code in ("", "\n\n", "   ", "# a comment", "pass", '"""A docstring."""\nx = 1'):
        expect_printed(sandbox, code, "")


def _begins_in_an_empty_workspace_that_can_be_written_to(bench: Bench) -> None:
    sandbox = bench.open()
    expect_printed(sandbox, "import os\nos.listdir()", "[]\n")
    expect_printed(sandbox, "_ = open('a', 'w').write('1')\nprint(os.listdir(), open('a').read())", "['a'] 1\n")


def _draws_other_random_numbers_than_another_session(bench: Bench) -> None:
    code = "import random, uuid\nrandom.random(), uuid.uuid4()"
    expect(printed(bench.open(), code) != printed(bench.open(), code), "two sessions drew the same random numbers")


def _runs_threads_and_child_processes(bench: Bench) -> None:
    sandbox = bench.open()
    threads = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(2) as pool:
    print(list(pool.map(abs, [-1, -2])))
"""
    processes = """
import os, subprocess
r, w = os.pipe()
if os.fork() == 0:
    os.write(w, b"child")
    os._exit(4)
print(os.read(r, 10).decode(), os.waitstatus_to_exitcode(os.wait()[1]))
print(subprocess.run(["echo", "hi"], capture_output=True, text=True).stdout)
"""
    expect_printed(sandbox, threads, "[1, 2]\n")
    expect_printed(sandbox, processes, "child 4\nhi\n\n")


CHECKS = (
    _keeps_variables_functions_and_classes,
    _keeps_imports,
    _keeps_the_working_directory_and_the_environment,
    _keeps_what_ran_before_an_error,
    _runs_code_as_main,
    _echoes_the_last_expression,
    _echoes_nothing_else,
    _takes_code_that_does_nothing,
    _begins_in_an_empty_workspace_that_can_be_written_to,
    _draws_other_random_numbers_than_another_session,
    _runs_threads_and_child_processes,
)
