"""What the quickstart learns, and the controls that say why.

    python benchmarks/learning.py --json FILE [--only NAME ...]

    quickstart         SFT on demonstrations of mixed quality, then GRPO, on each seed
    rejection          SFT on successful demonstrations only, for about the wall time that the quickstart took
    rejection_grpo     GRPO that starts from that policy
    shuffled           GRPO from the quickstart's SFT policy with rewards dealt out at random
    no_kl              GRPO from the quickstart's SFT policy with beta = 0
    repair, trace      these families, each with its own recipe
    project            the `project` family of ProjectSandbox-v0 with its own recipe
    jsonl              the quickstart's recipe on a file of tasks (`tasks=FILE`), most to train on and some held out
    null_agents        agents that cannot know the answer

Every figure is held-out success, sampled at temperature 1 and greedy. Takes about five minutes per run on two cores.
`--with KEY=VALUE` changes a key of every recipe, to try the script (`--with grpo.steps=2`); claims are made without it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from palaestra.agents.evaluation import EvalOptions, evaluate_scripted
from palaestra.agents.scripted import agent_names, null_agent_names
from palaestra.core.tasks import Split, TaskSet
from palaestra.envs import make_env
from palaestra.envs.tasks.code import FAMILIES
from palaestra.learners.config import load_recipe
from palaestra.learners.demonstration_data import demonstrations
from palaestra.learners.pipeline import run

Figures = dict[str, Any]
FILE_TASKS: dict[Split, int] = {"train": 20_000, "heldout": 720}
"""Rows of the case `jsonl`."""


@dataclass(slots=True)
class Runs:
    """The runs of one call of this script; controls start from them."""

    folder: Path
    changes: Sequence[str]
    """Overrides of every recipe (`--with`)."""
    reuse: bool
    finished: dict[str, Figures] = field(default_factory=dict[str, Figures])
    reused: list[str] = field(default_factory=list[str])
    """Runs of an earlier call that were taken over."""

    def train(self, name: str, recipe: str, *overrides: str) -> Figures:
        """Runs a recipe into `folder/name`, once."""
        summary = self.folder / name / "summary.json"
        if name not in self.finished and self.reuse and summary.exists():
            self.finished[name] = json.loads(summary.read_text())
            self.reused.append(name)
        if name not in self.finished:
            changes = [f"run={self.folder / name}", "report=false", *overrides, *self.changes]
            self.finished[name] = run(load_recipe(recipe, changes))
        return self.finished[name]

    def sft(self, name: str) -> Path:
        """The folder of a run's SFT policy."""
        return self.folder / name / "sft"


def quickstart(runs: Runs, seed: int) -> Figures:
    return runs.train(f"quickstart_s{seed}", "quickstart", f"seed={seed}")


def from_sft_of_quickstart(name: str, *overrides: str) -> Callable[[Runs, int], Figures]:
    def control(runs: Runs, seed: int) -> Figures:
        quickstart(runs, seed)
        stages = ('stages=["grpo"]', f"reference={runs.sft(f'quickstart_s{seed}')}")
        return runs.train(f"{name}_s{seed}", "quickstart", f"seed={seed}", *stages, *overrides)

    return control


def rejection(runs: Runs, seed: int) -> Figures:
    """Successful demonstrations only; epochs fill the time that SFT and GRPO together took in the quickstart."""
    base = quickstart(runs, seed)
    share = mean_length(success_only=True) / mean_length(success_only=False)
    epochs = max(1, round((base["seconds_sft"] + base["seconds_rl"]) / (base["seconds_sft"] * share)))
    overrides = ("demos.success_only=true", 'stages=["sft"]', f"sft.epochs={epochs}")
    return runs.train(f"rejection_s{seed}", "quickstart", f"seed={seed}", *overrides)


def mean_length(success_only: bool) -> float:
    """Characters per demonstration: successful ones are longer, and so is an epoch of them."""
    recipe = load_recipe("quickstart", ["demos.n=2000", f"demos.success_only={str(success_only).lower()}"])
    lengths = [
        sum(len(message["content"]) for message in turn.messages) + len(turn.action)
        for episode in demonstrations(recipe, 0, 1)
        for turn in episode.trajectories[0].turns
    ]
    return sum(lengths) / 2000


def rejection_grpo(runs: Runs, seed: int) -> Figures:
    rejection(runs, seed)
    overrides = ('stages=["grpo"]', f"reference={runs.sft(f'rejection_s{seed}')}")
    return runs.train(f"rejection_grpo_s{seed}", "quickstart", f"seed={seed}", *overrides)


def repair(runs: Runs, seed: int) -> Figures:
    return runs.train(f"repair_s{seed}", "repair", f"seed={seed}")


def project(runs: Runs, seed: int) -> Figures:
    return runs.train(f"project_s{seed}", "project", f"seed={seed}")


def trace(runs: Runs, seed: int) -> Figures:
    return runs.train(f"trace_s{seed}", "trace", f"seed={seed}")


def jsonl(runs: Runs, seed: int) -> Figures:
    """A file is all that this run knows of its tasks; the experts of `compose` can read them."""
    path = runs.folder / f"tasks_s{seed}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in task_rows(seed)))
    return runs.train(f"jsonl_s{seed}", "quickstart", f"seed={seed}", f'env.keywords.tasks="{path}"')


def task_rows(seed: int) -> Iterator[Figures]:
    """Rows of our own shape, made of tasks of `compose`."""
    recipe = load_recipe("quickstart", [])
    for split, count in FILE_TASKS.items():
        tasks = TaskSet(split=split, families=(FAMILIES["compose"],), levels=recipe.env.levels).tasks(count, seed)
        for number, task in enumerate(tasks):
            yield {
                "task_id": f"{split}-{number}",
                "split": split,
                "family": task.family,
                "level": task.level,
                "prompt": task.prompt,
                "entry_point": task.public["entry_point"],
                "tests": task.public["tests"],
                "hidden_tests": task.secret["tests"],
                "reference": task.secret["reference"],
            }


def null_agents(runs: Runs, seed: int) -> Figures:
    figures: Figures = {}
    for family in ("compose", "repair", "trace"):
        for name in null_agent_names(family):
            options = EvalOptions(n=400, seed=seed, families=(family,))
            figures[f"{family}/{name}"] = evaluate_scripted(name, "CodeSandbox-v0", options).success
    with make_env("ProjectSandbox-v0") as env:
        env.reset(seed=seed)
        names = [name for name in agent_names(env, "project") if name.startswith("null-")]
    for name in names:
        options = EvalOptions(n=400, seed=seed, env_kwargs={"max_turns": 4})
        figures[f"project/{name}"] = evaluate_scripted(name, "ProjectSandbox-v0", options).success
    return figures


CASES: dict[str, Callable[[Runs, int], Figures]] = {
    "quickstart": quickstart,
    "rejection": rejection,
    "rejection_grpo": rejection_grpo,
    "shuffled": from_sft_of_quickstart("shuffled", "grpo.shuffle_rewards=true"),
    "no_kl": from_sft_of_quickstart("no_kl", "grpo.kl_beta=0", "grpo.kl_beta_min=0", "grpo.kl_beta_max=0"),
    "repair": repair,
    "trace": trace,
    "project": project,
    "jsonl": jsonl,
    "null_agents": null_agents,
}


def target(value: float, bound: float, at_least: bool) -> Figures:
    """One target beside what was measured."""
    met = value >= bound if at_least else value <= bound
    return {"target": f"{'>=' if at_least else '<='} {bound}", "value": round(value, 4), "met": met}


def reported(*values: float) -> Figures:
    """Figures without a target."""
    return {"target": None, "value": [round(value, 4) for value in values], "met": None}


def targets(results: dict[str, Figures]) -> dict[str, Figures]:
    """The project's targets for whatever was run."""
    found: dict[str, Figures] = {}
    for name, figures in results.items():
        if name.startswith("quickstart/"):
            found[f"{name} sft sampled"] = target(figures["sft_success"], 0.50, False)
            found[f"{name} grpo sampled"] = target(figures["rl_success"], 0.85, True)
            found[f"{name} grpo greedy"] = target(figures["rl_success_greedy"], 0.92, True)
            found[f"{name} two ambiguous phrases"] = target(figures["rl_success_hard"], 0.75, True)
            found[f"{name} kl_seq, low end"] = target(figures["kl_seq"], 1.0, True)
            found[f"{name} kl_seq, high end"] = target(figures["kl_seq"], 5.0, False)
            found[f"{name} seconds"] = target(figures["seconds_total"], 360.0, False)
        base = results.get(f"quickstart/{name.rpartition('/')[2]}")
        if name.startswith("rejection/") and base:
            ahead = base["rl_success"] - figures["sft_success"]
            found[f"{name}: grpo ahead, sampled"] = target(ahead, 0.10, True)
            behind = base["rl_success_greedy"] - figures["sft_success_greedy"]
            found[f"{name}: grpo ahead, greedy"] = target(behind, 0.0, True)
            found[f"{name} sampled, greedy"] = reported(figures["sft_success"], figures["sft_success_greedy"])
            found[f"{name} seconds, and the quickstart's"] = reported(figures["seconds_total"], base["seconds_total"])
        if name.startswith(("rejection_grpo/", "no_kl/")):
            found[f"{name} sampled, greedy"] = reported(figures["rl_success"], figures["rl_success_greedy"])
            found[f"{name} kl_seq"] = reported(figures["kl_seq"])
        if name.startswith("shuffled/"):
            found[f"{name} gain"] = target(figures["rl_success"] - figures["sft_success"], 0.05, False)
        if name.startswith(("repair/", "trace/", "project/", "jsonl/")):
            found[f"{name} gain"] = target(figures["rl_success"] - figures["sft_success"], 0.15, True)
            found[f"{name} sft sampled, greedy"] = reported(figures["sft_success"], figures["sft_success_greedy"])
            found[f"{name} grpo sampled, greedy"] = reported(figures["rl_success"], figures["rl_success_greedy"])
            found[f"{name} kl_seq"] = reported(figures["kl_seq"])
        if name.startswith(("trace/", "project/", "jsonl/")):
            found[f"{name} seconds"] = target(figures["seconds_total"], 600.0, False)
        if name.startswith("null_agents/"):
            found[f"{name} best"] = target(max(figures.values()), 0.02, False)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures and targets here")
    parser.add_argument("--only", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"), help="where the run folders go")
    parser.add_argument("--reuse", action="store_true", help="take over finished runs of an earlier call; says which")
    parser.add_argument("--with", dest="changes", nargs="*", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    runs = Runs(arguments.runs, arguments.changes, arguments.reuse)
    results: dict[str, Figures] = {}
    for name in arguments.only:
        seeds = arguments.seeds if name == "quickstart" else arguments.seeds[:1]
        for seed in seeds:
            results[f"{name}/{seed}"] = CASES[name](runs, seed)
            report = {"results": results, "reused": runs.reused, "targets": targets(results)}
            if arguments.json:
                arguments.json.parent.mkdir(parents=True, exist_ok=True)
                arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    for name, row in targets(results).items():
        verdict = {True: "met", False: "SHORT", None: ""}[row["met"]]
        print(f"{verdict:5s}  {name}: {row['value']} (target {row['target'] or 'none'})")


if __name__ == "__main__":
    main()
