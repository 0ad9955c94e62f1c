"""The error tree: as its docstring draws it, picklable, and helpful about typos."""

import inspect
import pickle
import re

import pytest

from palaestra.core import errors

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, errors.PalaestraError)
}


def documented_tree() -> dict[str, tuple[str | None, str | None]]:
    """Reads {class: (parent, standard-library kind)} off the drawing in the module's docstring."""
    tree: dict[str, tuple[str | None, str | None]] = {}
    ancestors: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^ {4}(?P<branch>[│├└─ ]*)(?P<name>[A-Z]\w+)(?: \((?P<kind>\w+)\))?", line)
        if match is None:
            continue
        depth = len(match["branch"]) // 4
        ancestors = [*ancestors[:depth], match["name"]]
        tree[match["name"]] = (ancestors[depth - 1] if depth else None, match["kind"])
    return tree


def test_the_docstring_draws_the_tree_that_exists() -> None:
    tree = documented_tree()
    assert set(tree) == set(CLASSES)
    for name, (parent, kind) in tree.items():
        bases = [base.__name__ for base in CLASSES[name].__bases__]
        assert bases == [base for base in (parent or "Exception", kind) if base]


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_error_survives_pickling(name: str) -> None:
    arguments = ("sandbox_died", "gone", False) if name == "EnvironmentFailure" else ("seed=-1: must be >= 0",)
    error = CLASSES[name](*arguments)
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert (str(back), back.args, vars(back)) == (str(error), error.args, vars(error))


def test_an_environment_failure_reads_as_kind_and_message() -> None:
    error = errors.EnvironmentFailure("sandbox_died", "the jail stopped answering")
    assert str(error) == "sandbox_died: the jail stopped answering"
    assert error.retryable


@pytest.mark.parametrize(
    ("name", "text"), [("levls", "; did you mean 'levels'?"), ("zzz", "; valid names: families, levels, split")]
)
def test_typos_get_the_nearest_name_or_all_names(name: str, text: str) -> None:
    assert errors.did_you_mean(name, ["split", "levels", "families"]) == text
