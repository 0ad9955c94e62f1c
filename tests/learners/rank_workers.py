"""Functions that spawned processes run; light to import."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from palaestra.core.errors import ConfigError
from palaestra.learners.distributed import Ranks, launch


def collectives(ranks: Ranks) -> dict[str, Any]:
    weight = torch.nn.Parameter(torch.zeros(3))
    weight.grad = torch.full((3,), float(ranks.rank + 1))
    missing = torch.nn.Parameter(torch.zeros(2))
    extras = ranks.sum_gradients([weight, missing], [1.0, ranks.rank])
    model = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(model.weight, float(ranks.rank))
    ranks.broadcast_model(model)
    return {
        "gradient": weight.grad.tolist(),
        "missing": None if missing.grad is None else missing.grad.tolist(),
        "extras": extras,
        "gathered": ranks.gather_objects({"rank": ranks.rank}),
        "sum": ranks.sum_floats({"a": 1.5, "b": float(ranks.rank)}),
        "mean": ranks.mean_floats({"a": float(ranks.rank)}),
        "any": (ranks.any(ranks.rank == 1), ranks.any(False)),
        "broadcast": ranks.broadcast_object(f"from {ranks.rank}"),
        "weights": ranks.gather_objects(model.weight.detach().unique().tolist()),
    }


def fails_in_rank_1(ranks: Ranks, kind: str) -> None:
    """The other rank waits in a collective when rank 1 fails."""
    if ranks.rank == 1:
        if kind == "config":
            raise ConfigError("grpo.steps=-1: must be in [0, inf)")
        if kind == "bug":
            raise KeyError("no such key")
        os.kill(os.getpid(), signal.SIGKILL)
    ranks.barrier()
    time.sleep(60)


def counts_until_stopped(ranks: Ranks, folder: str) -> list[int]:
    """Writes its process id, then steps until all ranks agree to stop; gives every rank's number of steps."""
    ranks.barrier()
    Path(folder, f"pid{ranks.rank}").write_text(str(os.getpid()))
    steps = 0
    while not ranks.should_stop():
        steps += 1
        time.sleep(0.01 * (1 + ranks.rank))
    return ranks.gather_objects(steps)


def never_asks(ranks: Ranks, folder: str) -> None:
    """Is in the middle of a long step."""
    ranks.barrier()
    Path(folder, f"pid{ranks.rank}").write_text(str(os.getpid()))
    time.sleep(120)


if __name__ == "__main__":
    print(launch(globals()[sys.argv[3]], int(sys.argv[2]), (sys.argv[1],)), flush=True)
