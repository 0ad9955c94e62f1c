"""Data parallelism over processes of one machine: a few collectives (gloo) and a launcher.

`launch(fn, n, args)` runs `fn(ranks, *args)` in n processes; with n = 1 it is a plain call. There is no elastic restart
and no second machine.
"""

from __future__ import annotations

import ctypes
import multiprocessing as mp
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import connection
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..core.errors import ConfigError, PalaestraError, RankFailed

Result = TypeVar("Result")

COLLECTIVE_TIMEOUT = timedelta(hours=6)
"""How long a process waits for its peers; they may be evaluating, and a dead peer is noticed at once."""
KILL_AFTER_S = 5.0
"""When a process has failed, the others get this long to end by themselves."""
_STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM}
_STOP_NOTE = "stopping at the end of this step; press Ctrl-C again to stop at once"


class Ranks:
    """This process's place among the data-parallel processes, and what they do together.

    Every method that communicates must be called by all ranks in the same order. With one process all of them are
    no-ops that give back what they were given.
    """

    def __init__(self, rank: int = 0, size: int = 1, stop_flag: Callable[[], bool] = lambda: False) -> None:
        self.rank, self.size = rank, size
        self._stop_flag = stop_flag

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    @property
    def stop_requested(self) -> bool:
        """Whether this process was asked to stop (Ctrl-C, SIGTERM). Others may not know yet: see `any`."""
        return self._stop_flag()

    def should_stop(self) -> bool:
        """Whether any rank was asked to stop; all ranks get the same answer, so that they stop at the same step."""
        return self.any(self.stop_requested)

    def gather_objects(self, item: Any) -> list[Any]:
        """Gives every rank the list of all ranks' items (picklable)."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def broadcast_object(self, item: Any) -> Any:
        """Gives every rank the first rank's item."""
        if self.size == 1:
            return item
        box = [item]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def broadcast_model(self, model: nn.Module) -> None:
        """Copies the first rank's parameters and buffers to every rank."""
        if self.size > 1:
            for tensor in [*model.parameters(), *model.buffers()]:
                dist.broadcast(tensor.data, src=0)

    def sum_gradients(self, parameters: Iterable[Tensor], extras: Sequence[float] = ()) -> list[float]:
        """Sums the gradients over all ranks, in place; a missing gradient counts as zero.

        Args:
            parameters: The same parameters in the same order on all ranks.
            extras: A few numbers that are summed (in float32) in the same round trip.

        Returns:
            The summed extras.
        """
        parameters = list(parameters)
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.size == 1:
            return list(extras)
        gradients = [p.grad for p in parameters if p.grad is not None]
        tail = torch.tensor(list(extras), dtype=torch.float32, device=gradients[0].device)
        flat = torch.cat([*(gradient.flatten().float() for gradient in gradients), tail])
        dist.all_reduce(flat)
        parts = flat.split([*(gradient.numel() for gradient in gradients), len(tail)])
        for gradient, part in zip(gradients, parts[:-1], strict=True):
            gradient.copy_(part.view_as(gradient))
        return parts[-1].tolist()

    def sum_floats(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums each named number over all ranks (in float64)."""
        if self.size == 1:
            return dict(values)
        sums = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(sums)
        return dict(zip(values, sums.tolist(), strict=True))

    def mean_floats(self, values: Mapping[str, float]) -> dict[str, float]:
        """Averages each named number over all ranks."""
        return {name: value / self.size for name, value in self.sum_floats(values).items()}

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on at least one rank."""
        return self.sum_floats({"flag": float(flag)})["flag"] > 0

    def barrier(self) -> None:
        """Waits until all ranks are here."""
        self.any(False)


def launch(
    fn: Callable[..., Result],
    processes: int,
    args: tuple[Any, ...] = (),
    how_to_go_on: str = "resume from the last checkpoint",
) -> Result:
    """Runs `fn(ranks, *args)` in `processes` processes and gives the first rank's result.

    The first Ctrl-C or SIGTERM asks all ranks to stop at the end of a step (`Ranks.should_stop`); the second one stops
    them at once. When a rank fails or is killed, the others are ended. No process outlives this call, nor this process.

    Args:
        fn: A function of a module (it is pickled when there is more than one process).
        processes: How many.
        args: Further arguments, picklable.
        how_to_go_on: What the error says to do when a rank was killed.

    Raises:
        PalaestraError: The error of the rank that failed first, unchanged.
        RankFailed: A rank failed in any other way, or was killed; one line that names the rank and the reason.
        KeyboardInterrupt: Ctrl-C was pressed twice.
    """
    if processes < 1:
        raise ConfigError(f"processes={processes}: must be at least 1")
    if processes == 1:
        with _signals_as_flag() as flag:
            return fn(Ranks(0, 1, flag.is_set), *args)
    with tempfile.TemporaryDirectory(prefix="palaestra-ranks-") as folder, _signals_as_flag() as flag:
        return _Launcher(fn, processes, args, Path(folder) / "rendezvous", flag, how_to_go_on).run()


class _StopFlag:
    """Set by a signal handler, read by the loop: a plain attribute, because a handler must not take locks."""

    def __init__(self) -> None:
        self.signals = 0

    def is_set(self) -> bool:
        return self.signals > 0


@contextmanager
def _signals_as_flag() -> Iterator[_StopFlag]:
    """Turns the first SIGINT or SIGTERM into a flag and the second into KeyboardInterrupt (in the main thread)."""
    flag = _StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handle(number: int, frame: object) -> None:
        flag.signals += 1
        if flag.signals > 1:
            raise KeyboardInterrupt
        os.write(
            sys.stderr.fileno() if sys.stderr and hasattr(sys.stderr, "fileno") else 2, f"\n{_STOP_NOTE}\n".encode()
        )

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Blocks the stop signals in this thread, and in processes that are started meanwhile until they unblock them."""
    from multiprocessing import resource_tracker  # POSIX only

    resource_tracker.ensure_running()  # else the first process's start does it, which unblocks the signals
    old = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


class _Launcher:
    """The parent's side: starts the ranks, watches them, and ends them."""

    def __init__(
        self,
        fn: Callable[..., Any],
        processes: int,
        args: tuple[Any, ...],
        rendezvous: Path,
        flag: _StopFlag,
        how_to_go_on: str,
    ) -> None:
        self._flag, self._how_to_go_on = flag, how_to_go_on
        context = mp.get_context("spawn")
        self._stop = context.RawValue("b", 0)  # lock-free: a killed rank cannot leave it locked
        self._results: dict[int, Any] = {}
        self._failures: list[tuple[float, int, BaseException]] = []
        self._pipes: dict[int, connection.Connection] = {}
        self._ranks: list[Any] = []
        for rank in range(processes):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_rank_main,
                args=(rank, processes, str(rendezvous), os.getpid(), self._stop, theirs, fn, args),
                name=f"palaestra-rank-{rank}",
            )
            with _signals_held_back():  # until the rank can handle them: it would die of Ctrl-C while it imports
                process.start()
            theirs.close()
            self._pipes[rank] = ours
            self._ranks.append(process)

    def run(self) -> Any:
        try:
            while self._alive() and not self._failures:
                self._watch(timeout_s=0.2)
            if self._failures:
                self._wait_for_the_rest()
        finally:
            self._kill_all()
        if self._failures:
            raise min(self._failures, key=lambda failure: failure[0])[2]
        return self._results[0]

    def _alive(self) -> bool:
        return any(process.is_alive() for process in self._ranks) or bool(self._pipes)

    def _wait_for_the_rest(self) -> None:
        deadline = time.monotonic() + KILL_AFTER_S
        while self._alive() and time.monotonic() < deadline:
            self._watch(timeout_s=0.1)

    def _watch(self, timeout_s: float) -> None:
        """Reads reports of ranks that ended, and notices those that died without one."""
        if self._flag.is_set():
            self._stop.value = 1
        by_pipe = {pipe: rank for rank, pipe in self._pipes.items()}
        for pipe in connection.wait(list(by_pipe), timeout=timeout_s):
            rank = by_pipe[pipe]  # type: ignore[index]
            try:
                when, error, result = pickle.loads(self._pipes[rank].recv_bytes())
            except (EOFError, OSError):
                self._ranks[rank].join()
                # a killed rank makes its peers fail: it comes first whenever it is noticed
                when, error, result = 0.0, RankFailed(self._death(rank)), None
            del self._pipes[rank]
            if error is not None:
                self._failures.append((when, rank, error))
            self._results[rank] = result

    def _death(self, rank: int) -> str:
        exitcode = self._ranks[rank].exitcode
        if exitcode is not None and exitcode < 0:
            name = signal.Signals(-exitcode).name
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            return f"training process {rank} was killed by {name}{hint}; {self._how_to_go_on}"
        return f"training process {rank} ended without a result (exit status {exitcode})"

    def _kill_all(self) -> None:
        for process in self._ranks:
            if process.is_alive() and not self._results.keys() >= set(range(len(self._ranks))):
                process.kill()
        for process in self._ranks:
            process.join(timeout=KILL_AFTER_S)
            if process.is_alive():
                process.kill()
                process.join()


def _rank_main(
    rank: int, size: int, rendezvous: str, parent: int, stop: Any, pipe: Any, fn: Callable[..., Any], args: Any
) -> None:
    """What a spawned process runs."""
    _die_with_parent(parent)
    for number in (signal.SIGINT, signal.SIGTERM):
        # the parent hears Ctrl-C as well and decides; a SIGTERM to one rank alone asks all of them to stop
        signal.signal(number, lambda *_: setattr(stop, "value", 1))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
    report: tuple[float, BaseException | None, Any] = (0.0, None, None)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size, timeout=COLLECTIVE_TIMEOUT
        )
        result = fn(Ranks(rank, size, lambda: bool(stop.value)), *args)
        report = (time.monotonic(), None, result if rank == 0 else None)
    except PalaestraError as error:
        report = (time.monotonic(), error, None)
    except BaseException as error:
        failure = RankFailed(f"training process {rank} failed: {type(error).__name__}: {_first_line(error)}")
        failure.add_note(traceback.format_exc())
        report = (time.monotonic(), failure, None)
    try:
        # by value: torch has pipes carry tensors as descriptors, which the parent would ask of a rank that has ended
        pipe.send_bytes(pickle.dumps(report))
    finally:
        pipe.close()
        if dist.is_initialized() and report[1] is None:
            dist.destroy_process_group()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]


def _die_with_parent(parent: int) -> None:
    """Asks Linux to kill this process when its parent dies, however it dies."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)
