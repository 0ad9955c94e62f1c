"""Runs a repository's tests and calls its functions: source text that a session loads, and what it says as data.

The modules come from texts, not from files. Whatever the session says is what the agent's code lets it say: good enough
for visible tests, whose report only the agent reads. Verdicts come from hidden tests alone, which are calls whose
answers are compared outside (`rewards.data_tests`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

LOADER = '''
import sys
from _frozen_importlib import ModuleSpec  # what importlib.machinery gives, a millisecond sooner

class Repository:
    """Modules of a repository, from their texts; in front of all others while it is installed."""

    def __init__(self, files):
        self.files, self.hidden, self.loaded = files, {}, []

    def find_spec(self, name, path=None, target=None):
        stem = name.replace(".", "/")
        for place, is_package in ((f"{stem}.py", False), (f"{stem}/__init__.py", True)):
            if place in self.files:
                return ModuleSpec(name, self, origin=place, is_package=is_package)
        if any(place.startswith(f"{stem}/") for place in self.files):
            return ModuleSpec(name, self, origin=f"{stem}/", is_package=True)
        return None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        place = module.__spec__.origin
        self.loaded.append(module.__name__)
        exec(compiled(self.files.get(place, ""), place), module.__dict__)

    def __enter__(self):
        tops = {place.partition("/")[0].removesuffix(".py") for place in self.files}
        for top in tops & sys.modules.keys():
            for name in [name for name in sys.modules if name.partition(".")[0] == top]:
                self.hidden[name] = sys.modules.pop(name)
        sys.meta_path.insert(0, self)
        return self

    def __exit__(self, *_):
        sys.meta_path.remove(self)
        for name in self.loaded:
            sys.modules.pop(name, None)
        sys.modules.update(self.hidden)

def compiled(text, place, asserts=None):
    if asserts is None:
        return compile(text, place, "exec")
    return compile(asserts.visit(ast.parse(text, place)), place, "exec")

def call(module, function, arguments):
    """Calls a function of the installed repository, for the hidden tests."""
    __import__(module)
    return getattr(sys.modules[module], function)(*arguments)
'''
TESTING = '''
import ast, io

class Mismatch(AssertionError):
    pass

def compare(got, want):
    if not got == want:
        raise Mismatch(short(got), short(want))

def short(value):
    text = repr(value)
    return text if len(text) <= 200 else text[:197] + "..."

class Asserts(ast.NodeTransformer):
    """Has `assert a == b` say what a was; remembers the texts of all asserts by their lines."""

    def __init__(self):
        self.said = {}

    def visit_Assert(self, node):
        test = node.test
        is_equal = isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq)
        self.said[node.lineno] = ast.unparse(test.left if is_equal else test)
        if not is_equal:
            return node
        name = ast.Name("__compare__", ast.Load())
        call = ast.Call(name, [test.left, test.comparators[0]], [])
        return ast.fix_missing_locations(ast.copy_location(ast.Expr(call), node))

def frames_of(error, files):
    """Where it was raised, from the outside in, as far as that is in the repository."""
    frames, trace = [], error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    return [frame for frame in frames if frame[0] in files]

def failure_of(path, error, said, files):
    """Where a test failed, the expression that did, and got/want or the exception."""
    frames = frames_of(error, files)
    line = next((line for name, line in reversed(frames) if name == path), 0)
    shown = said.get(line, "")
    if isinstance(error, Mismatch):
        return [f"{path}:{line}", shown, error.args[0], error.args[1], ""]
    where = f" ({frames[-1][0]}:{frames[-1][1]})" if frames and frames[-1][0] != path else ""
    kind = "assertion failed" if isinstance(error, AssertionError) and not error.args else type(error).__name__
    text = f"{kind}: {error}" if str(error) else kind
    return [f"{path}:{line}", shown, "", "", text[:200] + where]

def run_file(path, files, failures):
    """Runs the functions test... of one file; gives how many there are."""
    asserts = Asserts()
    names = {"__name__": path.removesuffix(".py").replace("/", "."), "__file__": path, "__compare__": compare}
    try:
        exec(compiled(files[path], path, asserts), names)
    except (Exception, SystemExit) as error:
        failures.append(failure_of(path, error, asserts.said, files))
        return 1
    tests = [test for name, test in names.items() if name.startswith("test") and callable(test)]
    for test in tests:
        try:
            test()
        except (Exception, SystemExit) as error:
            failures.append(failure_of(path, error, asserts.said, files))
    return len(tests)

def run_tests(files, paths):
    """Runs test files: how many tests there are, the failures, and what was printed."""
    failures, printed, total = [], io.StringIO(), 0
    streams = sys.stdout, sys.stderr
    sys.stdout = sys.stderr = printed
    try:
        with Repository(files):
            for path in paths:
                total += run_file(path, files, failures)
    finally:
        sys.stdout, sys.stderr = streams
    return {"total": total, "failures": failures, "output": printed.getvalue()[:10000]}
'''
HARNESS = LOADER + TESTING
"""What runs the visible tests; each run loads it in a fresh session, so that it imports nothing that takes long."""
_TEST_FILE = re.compile(r"(?:.*/)?(?:test_[^/]*|[^/]*_test)\.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """One test that failed.

    Example: `Failed(where="test_shop.py:5", what="total([3, 4])", got="7", want="12")`.
    """

    where: str
    what: str = ""
    got: str = ""
    want: str = ""
    error: str = ""
    """What was raised, instead of `got` and `want`."""

    def __str__(self) -> str:
        said = f"error {self.error}" if self.error else f"got {self.got}\nwant {self.want}"
        return f"{self.where} {self.what}".rstrip() + f"\n{said}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TestsReport:
    """What a run of the visible tests gave."""

    __test__ = False

    total: int = 0
    failures: tuple[Failed, ...] = ()
    output: str = ""
    """What tests and modules printed."""
    stopped: str = ""
    """One line, when the tests did not come to their end."""
    repeatable: bool = True
    """Whether the same files would give the same report on any machine."""

    @property
    def passed(self) -> bool:
        """Whether there are tests, and all of them passed."""
        return bool(self.total) and not self.failures and not self.stopped

    def shown(self, most: int) -> str:
        """The report as the agent reads it.

        Args:
            most: How many failures are told in full.
        """
        if self.stopped:
            return self.stopped
        if not self.total:
            return "there are no tests"
        if self.passed:
            return f"all {self.total} passed"
        failed = f"{len(self.failures)} of {self.total} failed"
        return "\n".join([*map(str, self.failures[:most]), failed])


def is_test_file(path: str) -> bool:
    """Whether a file holds tests by its name: `test_*.py` or `*_test.py`."""
    return _TEST_FILE.fullmatch(path) is not None


def paths_of_tests(files: Mapping[str, str]) -> list[str]:
    """The paths of all test files, in order."""
    return sorted(filter(is_test_file, files))


def python_files(files: Mapping[str, str]) -> dict[str, str]:
    """All Python files."""
    return {path: text for path, text in files.items() if path.endswith(".py")}


def installed(files: Mapping[str, str]) -> str:
    """Source text that makes a repository's modules importable: all but its tests, for `call` of `LOADER`."""
    modules = {path: text for path, text in python_files(files).items() if not is_test_file(path)}
    return f"{LOADER}\nRepository({modules!r}).__enter__()"


def read_report(answer: Any) -> TestsReport:
    """The report in what a session said; anything else is a session that ended its own tests."""
    broken = TestsReport(stopped="error: the tests did not report")
    if not isinstance(answer, dict):
        return broken
    said = cast(dict[str, Any], answer)
    total, rows, output = said.get("total"), said.get("failures"), said.get("output")
    if type(total) is not int or not isinstance(rows, list) or not isinstance(output, str):
        return broken
    failures: list[Failed] = []
    for row in cast(list[Any], rows):
        if not isinstance(row, list) or len(cast(list[Any], row)) != 5:
            return broken
        where, what, got, want, error = map(str, cast(list[Any], row))
        failures.append(Failed(where=where, what=what, got=got, want=want, error=error))
    return TestsReport(total=total, failures=tuple(failures), output=output)
