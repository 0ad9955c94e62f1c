"""How fast it is; only a reset that rollouts would wait for is a finding."""

from __future__ import annotations

import itertools
import statistics
import time

from ..scripts import sample_call
from .bench import Bench, check, expect, plain

MAX_RESET_MS = 1000.0
RESETS = 20
STEPPING_S = 1.0


@check("Prepare what is slow on the first tool call, or keep it between episodes: _start must be fast.")
def _resets_within_a_second(bench: Bench) -> None:
    with bench.make() as env:
        taken: list[float] = []
        for seed in range(RESETS):
            began = time.perf_counter()
            env.reset(seed=seed)
            taken.append(1000 * (time.perf_counter() - began))
            if sum(taken) > 5 * MAX_RESET_MS:
                break
    bench.figures["reset_ms"] = statistics.median(taken)
    expect(bench.figures["reset_ms"] <= MAX_RESET_MS, f"a reset takes {bench.figures['reset_ms']:.0f} ms")


@check("Nothing is too slow here; the figure is for you.")
def _takes_steps(bench: Bench) -> None:
    with bench.make() as env:
        calls = itertools.cycle([sample_call(schema) for schema in plain(env).tools])
        env.reset(seed=0)
        steps, seconds, ended = 0, 0.0, False
        while seconds < STEPPING_S and steps < 1000:
            if ended:
                env.reset(seed=steps)
            began = time.perf_counter()
            _, _, terminated, truncated, _ = env.step(next(calls))
            seconds += time.perf_counter() - began
            steps, ended = steps + 1, terminated or truncated
    bench.figures["steps_per_s"] = steps / seconds


CHECKS = (_resets_within_a_second, _takes_steps)
