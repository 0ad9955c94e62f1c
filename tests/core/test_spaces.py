"""`Unicode` against Gymnasium's space contract."""

import copy
import pickle
import time

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate
from hypothesis import given
from hypothesis import strategies as st

from palaestra.core.spaces import Unicode


@given(st.text(st.characters(exclude_categories=())))
def test_every_string_is_a_member_up_to_the_length(text: str) -> None:
    assert text in Unicode()
    assert (text in Unicode(max_length=3)) == (len(text) <= 3)


@pytest.mark.parametrize("other", [3, None, b"bytes", ["a"], np.array("a")])
def test_other_things_are_no_members(other: object) -> None:
    assert other not in Unicode()


@given(st.integers(1, 60), st.integers(0, 2**31))
def test_samples_are_members_and_repeat_with_the_seed(max_length: int, seed: int) -> None:
    one, other = Unicode(max_length, seed=seed), Unicode(max_length)
    other.seed(seed)
    samples = [one.sample() for _ in range(5)]
    assert samples == [other.sample() for _ in range(5)]
    assert all(sample in one and (sample.replace("\n", " ").isprintable() or not sample) for sample in samples)


def test_equality_is_of_kind_and_length_alone() -> None:
    assert Unicode(5, seed=1) == Unicode(5, seed=2)
    assert Unicode(5) != Unicode(6)
    assert Unicode(5) != gym.spaces.Text(5)
    assert len({Unicode(5), Unicode(5), Unicode(6)}) == 2


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, lambda space: pickle.loads(pickle.dumps(space))])
def test_copies_are_equal_and_sample_the_same(duplicate) -> None:
    space = Unicode(40, seed=3)
    space.sample()
    twin = duplicate(copy.deepcopy(space))
    assert twin == space
    assert [twin.sample() for _ in range(3)] == [space.sample() for _ in range(3)]


def test_json_form_and_repr_round_trip() -> None:
    space = Unicode(9)
    samples = ["", "a\n", "語"]
    assert space.from_jsonable(space.to_jsonable(samples)) == samples
    assert eval(repr(space), {"Unicode": Unicode}) == space


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="max_length=0"):
        Unicode(0)
    with pytest.raises(ValueError, match="no mask"):
        Unicode().sample(mask=np.ones(2))
    assert not Unicode().is_np_flattenable


def test_membership_takes_no_time_for_a_long_string() -> None:
    space, text = Unicode(10**9), "x" * 50_000_000
    start = time.perf_counter()
    for _ in range(1000):
        assert text in space
    assert time.perf_counter() - start < 0.1  # reading 50 MB a thousand times takes seconds


def test_gymnasium_batches_it() -> None:
    batch = batch_space(Unicode(7), n=3)
    sample = batch.sample()
    assert len(sample) == 3
    assert sample in batch
    values = ("a", "b\n", "語")
    gathered = concatenate(Unicode(7), values, create_empty_array(Unicode(7), n=3))
    assert tuple(gathered) == values
    assert list(iterate(batch, gathered)) == list(values)


def test_it_lives_inside_composite_spaces() -> None:
    space = gym.spaces.Dict(text=Unicode(20), n=gym.spaces.Discrete(3))
    space.seed(1)
    assert space.sample() in space
    assert {"text": "x" * 21, "n": 0} not in space
