"""What to reward on long tasks: the outcome, each step, both, or the outcome with branches; at equal sampled tokens.

    python benchmarks/horizon.py --json FILE [--quick] [--only NAME ...] [--seeds 0 1]

    outcome      GRPO; the reward is 1 if the hidden tests pass
    steps        the change in the share of visible tests that pass, after each turn; the outcome does not enter.
                 Turn by turn returns and advantages (GiGPO)
    both         both rewards, GiGPO
    branching    the outcome alone; two trees of three in each group of eight, and advantages of turns from them

All arms start from the same SFT policy and end when they have sampled the same number of tokens. The tasks are
`compose` with three and four ambiguous phrases (`_long_compose.py`), in at most 20 turns. Held-out success is measured
once, at the end, sampled at temperature 1 and greedy; `--split validation` is for tuning. Two runs go side by side, one
thread each; their minutes are reported, too.

The whole takes about half an hour on two idle cores, `--quick` two to three minutes (and shows that it runs, no more).
`--with KEY=VALUE` changes a key of every arm, `--reuse` takes over what an earlier call left in `--runs`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

Figures = dict[str, Any]
HERE = Path(__file__).parent
ARMS: dict[str, list[str]] = {
    "outcome": ["grpo.advantage=group"],
    "steps": ["grpo.advantage=gigpo", "env.keywords.shaping={outcome = 0.0}"],
    "both": ["grpo.advantage=gigpo", "env.keywords.shaping={weight = 0.5}"],
    "branching": ["grpo.advantage=tree", "rollout.branching={share = 0.75, branches = 3}"],
}
TOKENS, QUICK_TOKENS = 400_000, 15_000
QUICK = ["demos.n=1000", "evaluation.n=40", "env.max_turns=8", "grpo.groups_per_step=4"]


@dataclass(frozen=True, slots=True)
class Plan:
    """One call of this script."""

    runs: Path
    tokens: int
    """Budget of sampled tokens of each arm and seed."""
    split: str
    changes: tuple[str, ...]
    reuse: bool


def recipe_of(plan: Plan, *overrides: str) -> Any:
    from palaestra.learners.config import load_recipe

    return load_recipe(str(HERE / "horizon.toml"), ["report=false", *plan.changes, *overrides])


def sft(plan: Plan) -> Path:
    """The policy that all arms start from."""
    from palaestra.learners.pipeline import run

    folder = plan.runs / "sft"
    if not (plan.reuse and (folder / "summary.json").exists()):
        run(recipe_of(plan, f"run={folder}", 'stages=["sft"]', "evaluation.n=8"))  # its own figures are not used
    return folder / "sft"


def success(plan: Plan, recipe: Any, policy: Any) -> Figures:
    """Sampled and greedy success, and how long the sampled episodes were."""
    from palaestra.agents.evaluation import evaluate_policy, summarise
    from palaestra.learners.pipeline import evaluation_options

    policy.weights_changed()
    figures: Figures = {}
    for mode, temperature in (("sampled", 1.0), ("greedy", 0.0)):
        options = evaluation_options(recipe, plan.split, temperature, recipe.evaluation.n)
        result = summarise(evaluate_policy(policy, recipe.env.id, options))
        figures[mode] = result.success
        figures[f"{mode}_interval"] = [result.interval_low, result.interval_high]
        figures[f"{mode}_turns"] = result.mean_turns
        figures[f"{mode}_by_level"] = {name: share for name, (share, _) in result.by_level.items()}
    return figures


def train(plan: Plan, name: str, seed: int) -> Figures:
    """Runs one arm, or only evaluates the SFT policy where the name is `sft`."""
    import torch

    from palaestra.agents.llm import LLMPolicy
    from palaestra.core.seeding import derive_seed
    from palaestra.learners.collection import GroupCollector
    from palaestra.learners.grpo import GRPOLearner

    torch.set_num_threads(1)
    recipe = recipe_of(plan, f"seed={seed}", "processes=1", *ARMS.get(name, []))
    policy = LLMPolicy.load(plan.runs / "sft" / "sft", device="cpu")
    rows: list[Figures] = []
    began, tokens = time.monotonic(), 0
    if name != "sft":
        learner = GRPOLearner(policy.model, recipe.grpo, seed=derive_seed(seed, "grpo"))
        with GroupCollector(recipe, policy, 0, 1) as collector:
            while tokens < plan.tokens:
                rows.append(learner.step(collector))
                tokens += int(rows[-1]["tokens"])
                print(_line(name, seed, tokens, rows[-1]), file=sys.stderr, flush=True)
    seconds, cpu_seconds = time.monotonic() - began, time.process_time()
    kept = ("success", "mean_turns", "tokens", "kl_seq", "entropy", "zero_variance_share", "failures", "seconds")
    curve = [{key: row[key] for key in (*kept, "forked_share", "shared_anchors") if key in row} for row in rows]
    effort = {"tokens": tokens, "steps": len(rows), "seconds": seconds, "cpu_seconds": cpu_seconds}
    return success(plan, recipe, policy) | effort | {"curve": curve}


def _line(name: str, seed: int, tokens: int, row: Figures) -> str:
    return (
        f"{name}/{seed}  step {row['step']}  {tokens} tokens  success {row['success']:.3f}  "
        f"turns {row['mean_turns']:.1f}  KL {row['kl_seq']:.2f}  {row['seconds']:.1f} s"
    )


def in_a_process(plan: Plan, name: str, seed: int) -> Figures:
    """`train` in a process of its own, so that two arms run side by side."""
    target = plan.runs / f"{name}_s{seed}.json"
    if not (plan.reuse and target.exists()):
        arguments = ["--runs", plan.runs, "--tokens", plan.tokens, "--split", plan.split, "--arm", name]
        command = [sys.executable, __file__, *map(str, arguments), "--seeds", str(seed), "--json", str(target)]
        subprocess.run([*command, "--with", *plan.changes], check=True)
    return json.loads(target.read_text())


def targets(results: dict[str, Figures]) -> dict[str, Figures]:
    """The table: every arm's mean over the seeds, and which is best. There is nothing to reach but the answer."""
    rows: dict[str, Figures] = {}
    means: dict[str, float] = {}
    for name in ("sft", *ARMS):
        runs = [figures for key, figures in results.items() if key.startswith(f"{name}/")]
        if not runs:
            continue
        means[name] = mean(run["sampled"] for run in runs)
        for mode in ("sampled", "greedy"):
            rows[f"{name}: success, {mode}"] = _reported(*(run[mode] for run in runs))
        rows[f"{name}: turns per episode"] = _reported(*(run["sampled_turns"] for run in runs))
        if name != "sft":
            rows[f"{name}: million tokens sampled"] = _reported(*(run["tokens"] / 1e6 for run in runs))
            rows[f"{name}: minutes"] = _reported(*(run["seconds"] / 60 for run in runs))
    if trained := {name: value for name, value in means.items() if name != "sft"}:
        best = max(trained, key=trained.__getitem__)
        rows["highest mean success, sampled"] = {"target": None, "value": best, "met": None}
    return rows


def _reported(*values: float) -> Figures:
    return {"target": None, "value": [round(value, 4) for value in values], "met": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--only", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="*", type=int)
    parser.add_argument("--quick", action="store_true", help="everything in miniature")
    parser.add_argument("--tokens", type=int, help="sampled tokens of each arm and seed")
    parser.add_argument("--split", choices=["heldout", "validation"], default="heldout")
    parser.add_argument("--runs", type=Path, default=Path("runs/horizon"), help="where models and figures go")
    parser.add_argument("--reuse", action="store_true", help="take over what an earlier call finished")
    parser.add_argument("--with", dest="changes", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--arm", choices=["sft", *ARMS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    quick: list[str] = QUICK if options.quick else []
    plan = Plan(
        runs=options.runs,
        tokens=options.tokens or (QUICK_TOKENS if options.quick else TOKENS),
        split=options.split,
        changes=(*quick, *options.changes),
        reuse=options.reuse,
    )
    seeds: list[int] = options.seeds or ([0] if options.quick else [0, 1])
    # processes that are started from here find the environment, too
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    sys.path.insert(0, str(HERE))
    if options.arm:
        report: Figures = train(plan, options.arm, seeds[0])
    else:
        sft(plan)
        jobs = [("sft", 0), *((name, seed) for seed in seeds for name in options.only)]
        with ThreadPoolExecutor(max(1, min(2, os.cpu_count() or 1))) as pool:
            figures = list(pool.map(lambda job: in_a_process(plan, *job), jobs))
        results = {f"{name}/{seed}": result for (name, seed), result in zip(jobs, figures, strict=True)}
        report = {"budget_tokens": plan.tokens, "split": plan.split, "results": results, "targets": targets(results)}
        for name, row in report["targets"].items():
            print(f"{name}: {row['value']}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
