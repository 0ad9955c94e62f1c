"""Equal seeds give equal episodes: again, elsewhere, in another process; and global randomness is nobody's business."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from .bench import SEED, Bench, Skip, act, as_data, begin, canonical, check, content, difference, expect, plain, play
from .other_process import play_elsewhere

_DRAW = (
    "Draw from the task or from self.np_random; never from the module random, the clock, hash(), id() or the order of "
    "a set."
)


@check(_DRAW)
def _repeats_resets_of_one_seed(bench: Bench) -> None:
    with bench.make() as env:
        first = as_data(play(env, (), 7))
        for _ in range(5):
            parted = difference(first, as_data(play(env, (), 7)))
            expect(not parted, f"reset(seed=7) gave something else the next time: {parted}")


@check(_DRAW)
def _repeats_episodes_of_one_seed(bench: Bench) -> None:
    for actions in bench.scripts():
        parted = difference(as_data(bench.episode(actions)), as_data(bench.episode(actions)))
        expect(not parted, f"the same actions after reset(seed={SEED}) gave something else: {parted}")


@check("Set all state in _start(task), not in __init__ or in the class: each episode begins there.")
def _starts_each_episode_afresh(bench: Bench) -> None:
    with bench.make() as env:
        for actions in bench.scripts():
            play(env, actions, SEED)  # what this leaves behind must not show
            parted = difference(as_data(bench.episode(actions)), as_data(play(env, actions, SEED)))
            expect(not parted, f"an episode shows what was done in the one before: {parted}")


@check("Keep state in self, never in the class or the module: environments run side by side.")
def _keeps_environments_apart(bench: Bench) -> None:
    for actions in bench.scripts():
        alone = as_data(bench.episode(actions))
        with bench.make() as env, bench.make() as other:
            first = begin(env, SEED)
            play(other, [*actions, *actions], 14)
            parted = difference(alone, as_data([first, *act(env, actions)]))
        expect(not parted, f"what is done in one environment shows in another: {parted}")


@check(_DRAW)
def _repeats_episodes_in_another_process(bench: Bench) -> None:
    scripts = bench.scripts()
    elsewhere = play_elsewhere(bench, scripts, SEED)
    for actions, there in zip(scripts, elsewhere, strict=True):
        parted = difference(as_data(bench.episode(actions)), there)
        expect(not parted, f"the same seed and actions gave something else in another process: {parted}")


@check("Draw tasks from the seed that generate(seed, split, level) is given: random.Random(f'{seed} {split} {level}').")
def _gives_other_tasks_for_other_seeds(bench: Bench) -> None:
    with bench.make() as env:
        tasks = plain(env).task_set
        if tasks.fixed:
            raise Skip("the tasks come from a file")
        seen = {content(tasks.task(seed)) for seed in range(20)}
    expect(len(seen) >= 5, f"20 seeds gave {len(seen)} different {'task' if len(seen) == 1 else 'tasks'}")


@check(
    "Make a generator of your own, random.Random(seed), or use self.np_random; never seed the module random or numpy."
)
def _leaves_global_randomness_alone(bench: Bench) -> None:
    before, numpys = random.getstate(), canonical(_numpy_state())
    for actions in bench.scripts():
        bench.episode(actions)
    expect(random.getstate() == before, "an episode changed the state of the module random")
    expect(canonical(_numpy_state()) == numpys, "an episode changed the state of numpy.random")


CHECKS = (
    _repeats_resets_of_one_seed,
    _repeats_episodes_of_one_seed,
    _repeats_episodes_in_another_process,
    _starts_each_episode_afresh,
    _keeps_environments_apart,
    _gives_other_tasks_for_other_seeds,
    _leaves_global_randomness_alone,
)


def _numpy_state() -> list[int]:
    state: Any = np.random.get_state(legacy=False)  # only read
    return [*state["state"]["key"].tolist(), state["state"]["pos"]]
