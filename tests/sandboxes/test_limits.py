"""Limits and names are checked before anything starts."""

import pytest

from palaestra.core.errors import ConfigError
from palaestra.sandboxes import Limits, open_sandbox


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"timeout_s": -1}, "timeout_s=-1: must be > 0"),
        ({"timeout_s": float("nan")}, "timeout_s=nan: must be a number"),
        ({"timeout_s": "4"}, "timeout_s='4': must be a number"),
        ({"memory_mib": 0}, "memory_mib=0: must be > 0"),
        ({"processes": 1.5}, "processes=1.5: must be a whole number"),
        ({"inodes": True}, "inodes=True: must be a whole number"),
        ({"cpu_s": 0}, "cpu_s=0: must be > 0"),
        ({"grace_s": -0.1}, "grace_s=-0.1: must be in \\[0, 60\\]"),
        ({"memory_mb": 4}, "limits.memory_mb: unknown limit; did you mean 'memory_mib'?"),
    ],
)
def test_a_wrong_limit_is_named_with_its_range(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", "\\?")):
        Limits.from_mapping(values)


def test_limits_come_from_plain_data() -> None:
    assert Limits.from_mapping({"timeout_s": 4, "cpu_s": None}) == Limits(timeout_s=4)


def test_names_of_backends_and_modes_are_checked() -> None:
    with pytest.raises(ConfigError, match="did you mean 'local'"):
        open_sandbox("locl")
    with pytest.raises(ConfigError, match="did you mean 'namespaces'"):
        open_sandbox(isolation="namespace")
    with pytest.raises(ConfigError, match="only sandbox='docker' takes it"):
        open_sandbox(image="python:3.12")
