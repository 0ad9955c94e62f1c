"""Multi-turn rollouts and whole GRPO steps beside TRL's `GRPOTrainer`, measured side by side.

    python benchmarks/rollout.py [--json FILE] [--rounds 5] [--threads 1] [--cases NAME ...] [--quick]

Both sides load one small Qwen3 model (TRL's own chat template, taught to write valid calls) and play one game: the same
prompts, tools and answers, 4 groups of 8 episodes, KL to a reference policy, an update after each collection. Sides
take turns within each round, each in a process of its own with as many torch threads; a turn is one uncounted and some
counted steps. Figures are medians over the rounds of seconds per sampled token; ratios are those of medians.

What a token costs with 2, 4, 8 and 16 turns is measured twice: with episodes that are equally long (fewer turns guess
more codes in each), which shows what turns cost, and with one code in each, where 16 turns also make episodes three
times as long as 2.

TRL runs in every configuration that it has for this machine, its default among them (those that come within a quarter
of its fastest one at 3 turns go on to 8 turns; one that takes three times as long in a round is not measured again).
Ratios are to its fastest one, chosen for each figure on its own. It generates as often as we do and runs one tool call
less per episode.

Needs trl and datasets (`pip install 'palaestra[train,test]'`). Takes about half an hour on two cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # not searched where PYTHONSAFEPATH is set

from rollout_sides.orders import EQUAL, Answer, Order

OURS = "palaestra"
TRL = ("default", "fp32", "bf16", "static cache", "continuous batching")
FLAT_TURNS = tuple(turns for turns, _ in EQUAL)
TOOL_S = 0.1
FLAT = 1.25
"""Cost per token that counts as flat in the number of turns."""
IN_THE_RUNNING = 1.25
HOPELESS = 3.0
"""What takes this many times as long as the fastest of TRL in the first round is not measured again."""
QUIET = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
Figures = dict[str, Any]


def serve(side: str, folder: Path, threads: int) -> None:
    """A side's process: carries out the orders that it reads, one a line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    import torch

    torch.set_num_threads(threads)
    if side == OURS:
        from rollout_sides.palaestra_side import PalaestraSide

        contender: Any = PalaestraSide(folder)
    else:
        from rollout_sides.trl_side import TRLSide

        contender = TRLSide(folder, side.removeprefix("trl "))
    for line in sys.stdin:
        try:
            answer = dataclasses.asdict(contender.measure(Order(**json.loads(line))))
        except Exception as error:
            answer = {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}
        print(json.dumps(answer), file=answers, flush=True)


class Comparison:
    """The sides' processes and what they measured."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._folder, self._threads = folder, threads
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self.turns: dict[str, dict[str, list[Answer]]] = {}
        """Case -> side -> one answer per round."""
        self.skipped: dict[str, str] = {}

    def rounds(self, case: str, sides: Sequence[str], order: Order, count: int) -> None:
        """Lets sides take turns; each round begins with another one."""
        for number in range(count):
            first = number % len(sides)
            measured = self.turns.get(case, {})
            for side in (*sides[first:], *sides[:first]):
                if side in self.skipped or (number and side in _hopeless(measured)):
                    continue
                answer = self._ask(side, order)
                if isinstance(answer, str):
                    self.skipped[side] = answer
                    print(f"skipped  {side}: {answer}", flush=True)
                    continue
                self.turns.setdefault(case, {}).setdefault(side, []).append(answer)
                per_token = 1e6 * answer.seconds_rollout / answer.sampled_tokens
                print(
                    f"{case:22s} round {number + 1}  {side:24s} {per_token:8.0f} us/token  "
                    f"step {answer.seconds / order.steps:7.3f} s  {answer.valid:.1%} of the actions are calls",
                    flush=True,
                )

    def _ask(self, side: str, order: Order) -> Answer | str:
        process = self._processes.get(side) or self._started(side)
        assert process.stdin is not None
        assert process.stdout is not None
        print(json.dumps(dataclasses.asdict(order)), file=process.stdin, flush=True)
        line = process.stdout.readline()
        if not line:
            del self._processes[side]
            return f"its process ended with status {process.wait()}"
        answer = json.loads(line)
        return answer["failed"] if "failed" in answer else Answer(**answer)

    def _started(self, side: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": str(self._threads), "OMP_WAIT_POLICY": "PASSIVE", **QUIET}
        command = [sys.executable, __file__, "--serve", side, "--model", str(self._folder)]
        self._processes[side] = process = subprocess.Popen(
            [*command, "--threads", str(self._threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip
        return process

    def close(self) -> None:
        """Ends the processes."""
        for process in self._processes.values():
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def rollout_us(answer: Answer) -> float:
    return 1e6 * answer.seconds_rollout / answer.sampled_tokens


def step_us(answer: Answer) -> float:
    return 1e6 * answer.seconds / answer.sampled_tokens


def median(answers: Sequence[Answer], figure: Callable[[Answer], float]) -> float:
    return statistics.median(map(figure, answers))


def prefilled_per_sampled(answers: Sequence[Answer]) -> float:
    return sum(a.prefilled_tokens for a in answers) / sum(a.sampled_tokens for a in answers)


def figures_of(answers: Sequence[Answer], order: Order) -> Figures:
    """Medians of one side in one case."""
    steps = order.steps * len(answers)
    return {
        "rollout_us_per_token": round(median(answers, rollout_us), 1),
        "step_us_per_token": round(median(answers, step_us), 1),
        "rollout_s_per_turn": round(median(answers, lambda each: each.seconds_rollout) / order.steps / order.turns, 4),
        "step_s": round(median(answers, lambda each: each.seconds) / order.steps, 4),
        "tokens_per_action": round(sum(a.sampled_tokens for a in answers) / sum(a.actions for a in answers), 2),
        "prefilled_per_sampled": round(prefilled_per_sampled(answers), 3),
        "actions_per_step": sum(a.actions for a in answers) / steps,
        "valid": round(statistics.mean(a.valid for a in answers), 4),
        "episode_tokens": round(statistics.mean(a.episode_tokens for a in answers), 1),
        "prompt_tokens": round(statistics.mean(a.prompt_tokens for a in answers), 1),
        "rounds": len(answers),
    }


def ratio(case: Mapping[str, Sequence[Answer]], figure: Callable[[Answer], float]) -> tuple[float, str] | None:
    """How many times as long TRL's fastest configuration takes, and which that is; None if a side is missing."""
    theirs = {side: median(answers, figure) for side, answers in case.items() if side != OURS}
    if not theirs or OURS not in case:
        return None
    fastest = min(theirs, key=lambda side: theirs[side])
    return theirs[fastest] / median(case[OURS], figure), fastest


def in_the_running(case: Mapping[str, Sequence[Answer]]) -> list[str]:
    """TRL's configurations that came near its fastest one, in rollouts or in whole steps; all of them if none ran."""
    found: list[str] = []
    for figure in (rollout_us, step_us):
        theirs = {side: median(answers, figure) for side, answers in case.items() if side != OURS}
        best = min(theirs.values(), default=0.0)
        found += [side for side, value in theirs.items() if value <= IN_THE_RUNNING * best]
    return list(dict.fromkeys(found)) or [f"trl {name}" for name in TRL]


def _hopeless(case: Mapping[str, Sequence[Answer]]) -> list[str]:
    theirs = {side: median(answers, step_us) for side, answers in case.items() if side != OURS}
    return [side for side, value in theirs.items() if value > HOPELESS * min(theirs.values())]


def judged(sign: str, bound: float, value: float | None, reason: str = "not measured") -> Figures:
    if value is None:
        return {"target": f"{sign} {bound}", "value": None, "met": False, "reason": reason}
    return {
        "target": f"{sign} {bound}",
        "value": round(value, 3),
        "met": value >= bound if sign == ">=" else value <= bound,
    }


def targets(turns: Mapping[str, Mapping[str, Sequence[Answer]]]) -> dict[str, Figures]:
    """The project's targets for whatever was measured."""
    found: dict[str, Figures] = {}
    counts = ", ".join(map(str, FLAT_TURNS))

    def versus(name: str, case: str, figure: Callable[[Answer], float], bound: float) -> None:
        if case in turns and (result := ratio(turns[case], figure)):
            found[f"{name}: times as fast as TRL's fastest"] = judged(">=", bound, result[0]) | {"peer": result[1]}

    versus("generation, 3 turns", "3 turns", rollout_us, 2.5)
    versus("generation, 8 turns", "8 turns", rollout_us, 3.5)
    versus("whole step, 3 turns", "3 turns", step_us, 2.0)
    versus("whole step, 8 turns", "8 turns", step_us, 2.0)
    if ours := turns.get("slow tools", {}).get(OURS):
        per_turn = median(ours, lambda each: each.seconds_rollout / (each.actions / 32))
        found["32 environments, 0.1 s of tool time: s per turn"] = judged("<=", 0.4, per_turn)
    for name, label in (("equal", "cost per token of equally long episodes"), ("growing", "cost per token")):
        ours = [turns.get(f"{name}, {count} turns", {}).get(OURS, ()) for count in FLAT_TURNS]
        if not all(ours):
            continue
        costs = [median(answers, rollout_us) for answers in ours]
        found[f"{label}, dearest of {counts} turns against 2 turns"] = judged("<=", FLAT, max(costs) / costs[0])
        if name == "growing":
            prefilled = [prefilled_per_sampled(answers) for answers in ours]
            found[f"tokens prefilled per token sampled, most of {counts} turns against 2 turns"] = judged(
                "<=", 1.05, max(prefilled) / prefilled[0]
            )
    return found


def run(options: argparse.Namespace, folder: Path) -> tuple[Comparison, dict[str, Order]]:
    """Every case, in interleaved rounds."""
    trl = [f"trl {name}" for name in TRL]
    rounds = 1 if options.quick else options.rounds
    comparison = Comparison(folder, options.threads)
    orders: dict[str, Order] = {}

    def case(name: str, sides: Sequence[str], order: Order, count: int = rounds) -> None:
        if options.cases and not name.startswith(tuple(options.cases)):
            return
        orders[name] = order
        comparison.rounds(name, sides, order, count)

    try:
        case("3 turns", [OURS, *trl], Order(turns=3))
        case("8 turns", [OURS, *in_the_running(comparison.turns.get("3 turns", {}))], Order(turns=8))
        case("slow tools", [OURS, "trl fp32", "trl async tools"], Order(turns=3, tool_s=TOOL_S), min(rounds, 2))
        for number in range(rounds):  # what is compared here are cases: they take turns, too
            for turns, codes in EQUAL:
                sides = [OURS, "trl fp32"] if number == 0 else [OURS]
                case(f"equal, {turns} turns", sides, Order(turns=turns, codes=codes), 1)
                case(f"growing, {turns} turns", [OURS], Order(turns=turns), 1)
    finally:
        comparison.close()
    return comparison, orders


def show(report: Mapping[str, Any]) -> None:
    print(f"\n{'case':20s} {'side':24s} {'us/token':>9s} {'step s':>8s} {'s/turn':>8s} {'prefilled/sampled':>18s}")
    for case, sides in report["figures"].items():
        for side, row in sides.items():
            print(
                f"{case:20s} {side:24s} {row['rollout_us_per_token']:9.0f} {row['step_s']:8.3f} "
                f"{row['rollout_s_per_turn']:8.3f} {row['prefilled_per_sampled']:18.2f}"
            )
    for side, reason in report["skipped"].items():
        print(f"skipped  {side}: {reason}")
    print()
    for name, row in report["targets"].items():
        peer = f" ({row['peer']})" if "peer" in row else ""
        print(f"{'met' if row['met'] else 'SHORT':5s}  {name}: {row['value']} (target {row['target']}){peer}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures and targets here")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="torch threads of each side")
    parser.add_argument("--hidden", type=int, default=128, help="width of the model, a multiple of 64")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--model", type=Path, help="keep the prepared model here, and take it if it is there")
    parser.add_argument("--cases", nargs="+", default=[], metavar="NAME", help="only these, such as '8 turns' or equal")
    parser.add_argument("--quick", action="store_true", help="one round, to try the script")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.model, options.threads)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.model or Path(temporary) / "model"
        prepared: Figures = {"model": str(folder), "prepared": "earlier"}
        if not (folder / "config.json").exists():
            from rollout_sides.preparing import prepare

            print("preparing the model", flush=True)
            prepared = prepare(folder, hidden=options.hidden, layers=options.layers)
        comparison, orders = run(options, folder)
    report = {
        "threads": options.threads,
        "model": prepared,
        "orders": {name: dataclasses.asdict(order) for name, order in orders.items()},
        "figures": {
            case: {side: figures_of(answers, orders[case]) for side, answers in sides.items()}
            for case, sides in comparison.turns.items()
        },
        "skipped": comparison.skipped,
        "targets": targets(comparison.turns),
    }
    show(report)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
