"""Runs a recipe: demonstrations, SFT, held-out evaluation, GRPO, held-out evaluation, summary.

Every process runs the same stages on its own share of demonstrations, groups and evaluation tasks; gradients are summed
between them (learners.distributed). The learners know nothing of recipes, and this file knows no formula.

With `model.lora` each stage trains an adapter of its own. SFT's is merged, so that `sft/` is an ordinary model: GRPO's
reference is that model, which is what its own adapter gives when it is off (learners.reference). `policy/` holds GRPO's
adapter alone.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..agents.demonstrations import check_experts
from ..agents.episode_origin import EpisodeOrigin
from ..agents.evaluation import EvalOptions, EvalResult, evaluate_policy, summarise
from ..agents.llm import LLMPolicy
from ..agents.pass_rates import wilson_interval
from ..agents.store import save_episodes
from ..core.errors import ConfigError, EnvironmentFailure, RunStopped, StorageError
from ..core.seeding import derive_seed
from ..core.trajectories import Episode
from ..envs.registration import make_env
from ..envs.vector import check_can_fork
from ..models.adapters import (
    add_adapter,
    has_adapter,
    load_trained_state,
    merge_adapter,
    merged_state,
    trained_state,
)
from ..models.chat import ChatFormat
from ..models.loading import build_model, load_model, recompute_activations, resolve_device, save_model
from ..models.tokenizers import train_tokenizer
from .checkpoint import CheckpointStore
from .collection import GroupCollector
from .config import Recipe
from .dashboards import check_installed, dashboards
from .demonstration_data import demonstrations, texts, tokenised, with_tool_calls
from .distributed import Ranks, launch
from .grpo import GRPOLearner, train_grpo
from .kept_groups import FILE as KEPT
from .kept_groups import GroupKeeper
from .logprobs import sequence_kl
from .metrics import MetricsWriter
from .progress import StageProgress, TaskProgress
from .reference import Reference
from .rollout_engine import check_engine, make_policy
from .run_folder import RunFolder
from .sft import train_sft


@dataclass(frozen=True, slots=True, kw_only=True)
class RankContext:
    """What every stage of one process needs."""

    recipe: Recipe
    folder: RunFolder
    ranks: Ranks
    metrics: MetricsWriter
    checkpoints: CheckpointStore
    progress: StageProgress
    started: float
    """Wall-clock time (seconds since the epoch) at which the run began."""


def run(recipe: Recipe, resume: bool = False) -> dict[str, Any]:
    """Runs a whole recipe and gives its summary.

    The first Ctrl-C stops at the end of a step and leaves a checkpoint that `resume=True` continues from.

    Raises:
        RunStopped: The run was stopped and can be resumed.
        PalaestraError: Anything else that the user can mend, as one line.
    """
    started = time.time()
    _check(recipe)
    folder = RunFolder(recipe.run)
    moved = folder.start(recipe, resume)
    with StageProgress(enabled=True, started=started) as progress:
        if moved:
            progress.say(f"the run that was in {folder.path} is now {moved}")
        progress.say(f"{'resuming' if resume else 'starting'} {folder.path} with {_processes(recipe.processes)}")
    go_on = f"continue with: {_resume_command(folder)}"
    try:
        launch(_run_rank, recipe.processes, (recipe, resume, started), how_to_go_on=go_on)
    except StorageError as error:
        raise StorageError(f"{error}; {go_on}") from error
    except EnvironmentFailure as error:  # of a server that samples, when its weights were due
        raise EnvironmentFailure(error.kind, f"{error.message}; {go_on}") from error
    return folder.read_summary()


def _check(recipe: Recipe) -> None:
    """Finds mistakes that only the environment or the experts know, before a run folder is touched.

    Raises:
        PalaestraError: One line that names the key or the nearest valid name.
    """
    for levels in {recipe.env.levels, recipe.env.train_levels or recipe.env.levels}:
        with make_env(recipe.env.id, **recipe.env.environment(levels)) as env:
            if recipe.rollout.branching.share:
                _check_branching(env)
            try:
                check_experts(recipe.demos.mix if "sft" in recipe.stages else {}, env)
            except ConfigError as error:
                raise ConfigError(f"demos.mix: {error}") from error
    for split in ("heldout", *(("validation",) if recipe.evaluation.every else ())):
        make_env(recipe.env.id, split=split, **recipe.env.environment()).close()  # a file may have no task for it
    resolve_device(recipe.model.device)
    check_engine(recipe)
    check_installed(recipe.log_to)


def _check_branching(env: Any) -> None:
    try:
        check_can_fork(env)
    except ConfigError as error:
        raise ConfigError(f"rollout.branching: {error}") from error


def _processes(number: int) -> str:
    return "1 process" if number == 1 else f"{number} processes"


def _resume_command(folder: RunFolder) -> str:
    return f"palaestra train {shlex.quote(str(folder.recipe))} --resume"


def _run_rank(ranks: Ranks, recipe: Recipe, resume: bool, started: float) -> None:
    torch.set_num_threads(recipe.threads)
    folder = RunFolder(recipe.run)
    with (
        StageProgress(enabled=ranks.is_first, started=started) as progress,
        MetricsWriter(
            folder.path,
            enabled=ranks.is_first,
            resume=resume,
            sinks=dashboards(recipe, resume, progress.say) if ranks.is_first else (),
        ) as metrics,
    ):
        context = RankContext(
            recipe=recipe,
            folder=folder,
            ranks=ranks,
            metrics=metrics,
            checkpoints=CheckpointStore(folder.checkpoints),
            progress=progress,
            started=started,
        )
        summary = _stages(context, resume)
    if ranks.is_first:
        folder.write_summary(summary)


def _stages(context: RankContext, resume: bool) -> dict[str, Any]:
    recipe = context.recipe
    summary: dict[str, Any] = {"name": recipe.name, "seed": recipe.seed, "resumed": resume}
    if "sft" in recipe.stages:
        began = time.time()
        model, tokenizer = sft_stage(context, resume)
        summary["seconds_sft"] = round(time.time() - began, 1)
    else:
        model, tokenizer = _load(recipe, recipe.reference)
    model.eval()
    policy = make_policy(recipe, folder=context.folder.path, model=model, tokenizer=tokenizer)
    before = evaluation_stage(context, policy, "sft")
    summary |= _figures(recipe, "sft", before)
    if "grpo" in recipe.stages:
        began = time.time()
        reference = grpo_stage(context, policy, resume)
        summary["seconds_rl"] = round(time.time() - began, 1)
        after = evaluation_stage(context, policy, "policy")
        summary |= _figures(recipe, "rl", after)
        summary["kl_seq"] = _mean_kl(context, reference, after["sampled"].episodes)
    policy.close()
    summary["heldout_n"] = before["sampled"].n
    summary["seconds_total"] = round(time.time() - context.started, 1)
    return summary


# ---------------------------------------------------------------------------------------------------------------- SFT
def sft_stage(context: RankContext, resume: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Makes or loads the model, trains it on demonstrations, and saves `sft/`; a finished one is loaded instead."""
    recipe, ranks, folder = context.recipe, context.ranks, context.folder
    if resume and folder.sft.is_dir():
        return _load(recipe, str(folder.sft))
    loaded = None if recipe.from_scratch else _load(recipe, recipe.model.path or "")  # if that fails, then at once
    episodes = _demonstrations(context)
    model, tokenizer = loaded or _new_model(context, episodes)
    if recipe.model.lora.rank:
        add_adapter(model, recipe.model.lora, seed=derive_seed(recipe.seed, "adapter", "sft"))
    tools = _tools(recipe)
    plain = recipe.demos.action_style == "plain" or (recipe.demos.action_style == "auto" and recipe.from_scratch)
    if not plain:
        episodes = with_tool_calls(episodes, tools)
    with context.progress.task("tokenising demonstrations"):
        segments = tokenised(episodes, ChatFormat(tokenizer), tools, recipe.rollout.max_context_tokens)
        if ranks.should_stop():
            raise _stopped(context, "before SFT")
    with context.progress.task("supervised fine-tuning") as task:
        result = train_sft(
            model,
            segments,
            recipe.sft,
            seed=derive_seed(recipe.seed, "sft"),
            ranks=ranks,
            metrics=context.metrics,
            checkpoints=context.checkpoints,
            resume=resume,
            on_progress=task.sft_step,
        )
    if result.stopped:
        raise _stopped(context, f"after {result.steps} steps of SFT")
    if has_adapter(model):
        merge_adapter(model)
    if ranks.is_first:
        save_model(model, tokenizer, folder.sft)
    ranks.barrier()
    return model, tokenizer


def _demonstrations(context: RankContext) -> list[Episode]:
    with context.progress.task("making demonstrations") as task:
        return demonstrations(context.recipe, context.ranks.rank, context.ranks.size, _stoppable(context, task))


def _new_model(context: RankContext, episodes: Sequence[Episode]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A tokenizer trained on the first process's demonstrations, and a model with random weights, equal on all."""
    recipe, ranks = context.recipe, context.ranks
    trained = train_tokenizer(texts(episodes), recipe.vocab_size) if ranks.is_first else None
    tokenizer: PreTrainedTokenizerBase = ranks.broadcast_object(trained)
    vocabulary = tokenizer.get_vocab()
    model = build_model(
        recipe.model,
        len(tokenizer),
        seed=derive_seed(recipe.seed, "model") % 2**31,
        pad_id=int(vocabulary[str(tokenizer.pad_token)]),
        eos_id=int(vocabulary[str(tokenizer.eos_token)]),
    )
    ranks.broadcast_model(model)
    _prepare(recipe, model)
    return model, tokenizer


def _load(recipe: Recipe, path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model to train; an adapter that it comes with becomes part of it."""
    settings = recipe.model
    model, tokenizer = load_model(path, settings.dtype, settings.device, settings.attention)
    if has_adapter(model):
        merge_adapter(model)
    _prepare(recipe, model)
    return model, tokenizer


def _prepare(recipe: Recipe, model: PreTrainedModel) -> None:
    if recipe.model.gradient_checkpointing:
        recompute_activations(model)


def _tools(recipe: Recipe) -> list[dict[str, Any]]:
    with make_env(recipe.env.id, **recipe.env.environment()) as env:
        return env.unwrapped.tools


# --------------------------------------------------------------------------------------------------------- evaluation
def evaluation_stage(context: RankContext, policy: LLMPolicy, name: str) -> dict[str, EvalResult]:
    """Held-out success, sampled at temperature 1 and greedy; the episodes are saved under the run folder."""
    results: dict[str, EvalResult] = {}
    for mode, temperature, suffix in (("sampled", 1.0, ""), ("greedy", 0.0, "_greedy")):
        with context.progress.task(f"evaluating {name}, {mode}, held-out") as task:
            options = evaluation_options(context.recipe, "heldout", temperature, context.recipe.evaluation.n)
            results[mode] = evaluate_together(context, policy, options, _stoppable(context, task))
            task.say(_verdict(results[mode]))
        if context.ranks.is_first:
            origin = EpisodeOrigin(env_id=context.recipe.env.id, keywords=options.environment())
            save_episodes(context.folder.episodes(f"{name}_heldout{suffix}"), results[mode].episodes, origin)
    return results


def evaluation_options(recipe: Recipe, split: Any, temperature: float, n: int) -> EvalOptions:
    """How this recipe's policies are evaluated."""
    return EvalOptions(
        n=n,
        seed=recipe.evaluation.seed,
        split=split,
        temperature=temperature,
        num_envs=recipe.rollout.environments,
        max_turn_tokens=recipe.rollout.max_turn_tokens,
        max_context_tokens=recipe.rollout.max_context_tokens,
        env_kwargs=recipe.env.environment(),
    )


def evaluate_together(context: RankContext, policy: LLMPolicy, options: EvalOptions, on_progress: Any) -> EvalResult:
    """Every process evaluates its share; all of them get the result over all tasks."""
    ranks = context.ranks
    mine = evaluate_policy(
        policy, context.recipe.env.id, options, share=(ranks.rank, ranks.size), on_progress=on_progress
    )
    shares = ranks.gather_objects(mine)
    episodes: list[Episode] = [shares[i % ranks.size][i // ranks.size] for i in range(sum(map(len, shares)))]
    return summarise(episodes)


def _verdict(result: EvalResult) -> str:
    failures = f", {result.failures} failed" if result.failures else ""
    return (
        f"success {result.success:.3f} (95 %: {result.interval_low:.3f}-{result.interval_high:.3f}, n={result.n})"
        f", {result.mean_turns:.2f} turns{failures}"
    )


# --------------------------------------------------------------------------------------------------------------- GRPO
def grpo_stage(context: RankContext, policy: LLMPolicy, resume: bool) -> Reference:
    """Trains the policy in place, saves `policy/`, and gives the frozen reference."""
    recipe, ranks, folder = context.recipe, context.ranks, context.folder
    if recipe.model.lora.rank:
        policy.close()  # its engine reads a model without an adapter
        base = str(folder.sft) if "sft" in recipe.stages else recipe.reference
        add_adapter(policy.model, recipe.model.lora, seed=derive_seed(recipe.seed, "adapter", "grpo"), base=base)
    if resume and folder.policy.is_dir():
        reference = Reference(policy.model)
        trained, _ = load_model(folder.policy, recipe.model.dtype, recipe.model.device, recipe.model.attention)
        load_trained_state(policy.model, trained_state(trained))
        policy.weights_changed()
        return reference
    with (
        context.progress.task("GRPO") as task,
        GroupCollector(recipe, policy, ranks.rank, ranks.size) as collector,
    ):
        learner = GRPOLearner(
            policy.model,
            recipe.grpo,
            seed=derive_seed(recipe.seed, "grpo"),
            ranks=ranks,
            curriculum=collector.curriculum,
        )
        if ranks.is_first:
            levels = recipe.env.train_levels or recipe.env.levels
            origin = EpisodeOrigin(env_id=recipe.env.id, keywords={"split": "train", **recipe.env.environment(levels)})
            learner.on_credit = GroupKeeper(folder.episodes(KEPT), origin, recipe.grpo.steps, recipe.kept_groups)

        def after_step(step: int, row: Mapping[str, Any]) -> None:
            task.grpo_step(step, recipe.grpo.steps, row)
            if recipe.evaluation.every and step % recipe.evaluation.every == 0:
                _validate(context, policy, step, task)

        finished = train_grpo(
            learner,
            collector,
            metrics=context.metrics,
            checkpoints=context.checkpoints,
            resume=resume,
            after_step=after_step,
        )
    policy.weights_changed()
    if not finished:
        raise _stopped(context, f"after {learner.steps_done} steps of GRPO")
    if ranks.is_first:
        if recipe.model.lora.rank and recipe.model.lora.save_merged:
            save_model(policy.model, policy.tokenizer, folder.merged_policy, merged_state(policy.model))
        save_model(policy.model, policy.tokenizer, folder.policy)
    ranks.barrier()
    return learner.reference


def _validate(context: RankContext, policy: LLMPolicy, step: int, task: Any) -> None:
    policy.weights_changed()
    options = evaluation_options(context.recipe, "validation", 1.0, context.recipe.evaluation.validation_n)
    result = evaluate_together(context, policy, options, None)
    task.say(f"step {step}, validation: {_verdict(result)}")
    context.metrics.log({"stage": "validation", "step": step, "success": result.success, "n": result.n})


# ----------------------------------------------------------------------------------------------------------- stopping
def _stopped(context: RankContext, where: str) -> RunStopped:
    return RunStopped(f"stopped {where}; continue with: {_resume_command(context.folder)}")


def _stoppable(context: RankContext, task: TaskProgress) -> Callable[[int, int], None]:
    """Progress of a stage that has no steps to checkpoint: it moves the bar, and a stop ends the stage where it is.

    The ranks need not agree on the place: nothing of the stage is kept, and the first that stops ends the run.
    """

    def tick(done: int, total: int) -> None:
        task.update(done, total)
        if context.ranks.stop_requested:
            raise _stopped(context, f"while {task.name}")

    return tick


# ------------------------------------------------------------------------------------------------------------ figures
def _figures(recipe: Recipe, name: str, results: Mapping[str, EvalResult]) -> dict[str, Any]:
    sampled, greedy = results["sampled"], results["greedy"]
    figures: dict[str, Any] = {
        f"{name}_success": sampled.success,
        f"{name}_success_interval": [sampled.interval_low, sampled.interval_high],
        f"{name}_success_greedy": greedy.success,
        f"{name}_success_greedy_interval": [greedy.interval_low, greedy.interval_high],
        f"{name}_mean_turns": sampled.mean_turns,
        f"{name}_failures": sampled.failures + greedy.failures,
        f"{name}_by_level": {key: list(value) for key, value in sampled.by_level.items()},
        f"{name}_by_level_greedy": {key: list(value) for key, value in greedy.by_level.items()},
    }
    for suffix, result in (("", sampled), ("_greedy", greedy)):
        hard = [e.success for e in result.episodes if e.level in recipe.evaluation.hard_levels and not e.failed]
        if hard:
            figures[f"{name}_success_hard{suffix}"] = sum(map(bool, hard)) / len(hard)
            figures[f"{name}_success_hard{suffix}_interval"] = list(wilson_interval(sum(map(bool, hard)), len(hard)))
            figures["heldout_hard_n"] = len(hard)
    return figures


def _mean_kl(context: RankContext, reference: Reference, episodes: Sequence[Episode]) -> float:
    """`kl_seq`: nats per held-out episode, sampled at temperature 1."""
    with reference.model() as model:
        mine = sequence_kl(model, episodes[context.ranks.rank :: context.ranks.size])
    sums = context.ranks.sum_floats({"kl": sum(mine), "n": float(len(mine))})
    return sums["kl"] / max(1.0, sums["n"])
