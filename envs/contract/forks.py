"""Copies of a live episode go on from where it stands, and by themselves."""

from __future__ import annotations

from .bench import SEED, Bench, Skip, act, as_data, begin, check, difference, expect, plain


@check("In _fork_into(copies), give each copy its own copy of what _start and the tools set (copy.deepcopy).")
def _gives_copies_that_go_their_own_way(bench: Bench) -> None:
    with bench.make() as env:
        if not plain(env).can_fork:
            raise Skip("it says that it cannot fork (can_fork is False)")
    for actions in bench.scripts():
        alone = as_data(bench.episode(actions)[1:])
        with bench.make() as env:
            begin(env, SEED)
            started = act(env, actions[:1])
            if started[-1].ended:
                continue
            first, second = plain(env).fork(2)
            try:
                act(first, [*actions[1:], *actions])
                for name, one in (("a copy", second), ("the original", env)):
                    parted = difference(alone, as_data([*started, *act(one, actions[1:])]))
                    expect(not parted, f"{name} does not go on from where the episode stood: {parted}")
            finally:
                first.close()
                second.close()


CHECKS = (_gives_copies_that_go_their_own_way,)
