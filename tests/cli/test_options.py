from __future__ import annotations

import pytest

from palaestra.cli import options
from palaestra.core.errors import ConfigError


def test_lists_are_split_at_commas() -> None:
    assert options.names("compose, repair") == ("compose", "repair")
    assert options.names(None) == options.names("") == ()
    assert options.levels("1,2,2,3") == (1, 2, 2, 3)


def test_shares_need_not_sum_to_one() -> None:
    assert options.shares("careful=1,hasty=3.5", "--experts") == {"careful": 1.0, "hasty": 3.5}


def test_keyword_values_are_read_as_toml_where_that_works() -> None:
    pairs = ["max_turns=6", "prompt_style=compact", "limits={timeout_s = 2.5}", "path=a=b"]
    assert options.keywords(pairs, "--env") == {
        "max_turns": 6,
        "prompt_style": "compact",
        "limits": {"timeout_s": 2.5},
        "path": "a=b",
    }


@pytest.mark.parametrize("text", ["careful", "careful=", "careful=x", "careful=-1", "=1", "careful=nan", "careful=inf"])
def test_a_bad_share_says_what_to_write(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--experts: .*NAME=SHARE"):
        options.shares(text, "--experts")


def test_shares_that_are_all_zero_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one share must be > 0"):
        options.shares("careful=0,hasty=0", "--experts")


def test_bad_levels_and_keywords_say_what_to_write() -> None:
    with pytest.raises(ConfigError, match="--levels=1,two: write whole numbers"):
        options.levels("1,two")
    with pytest.raises(ConfigError, match="--env 'max_turns': write KEY=VALUE"):
        options.keywords(["max_turns"], "--env")
