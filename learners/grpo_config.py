"""Configuration of GRPO, validated; one line per problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ..core.errors import ConfigError
from ..core.tasks import TaskSet
from .curriculum import LevelCurriculum
from .entropy import EntropyController
from .kl import KLController
from .losses import LossSettings, PolicyLoss
from .precision import Autocast
from .ranges import check_choices, check_ranges
from .temperature import Shape, temperature_at

Advantage = Literal["group", "rloo", "gigpo", "tree"]
LossNormaliser = Literal["tokens", "constant", "sequences"]
Schedule = Literal["refill", "fixed"]
Curriculum = Literal["none", "success"]

_RANGES = {
    "steps": "[0, inf)",
    "groups_per_step": "[1, inf)",
    "group_size": "[2, inf)",
    "temperature": "(0, inf)",
    "temperature_final": "(0, inf)",
    "temperature_share": "[0, 1]",
    "curriculum_floor": "[0, 1]",
    "curriculum_decay": "(0, 1]",
    "learning_rate": "(0, inf)",
    "betas": "[0, 1)",
    "weight_decay": "[0, 1)",
    "warmup_steps": "[0, inf)",
    "decay_from": "[0, 1]",
    "min_lr_share": "[0, 1]",
    "max_grad_norm": "(0, inf)",
    "minibatches": "[1, inf)",
    "micro_batch_tokens": "[1, inf)",
    "tokens_per_episode": "(0, inf)",
    "step_weight": "[0, inf)",
    "step_discount": "(0, 1]",
    "clip_low": "(0, 1]",
    "clip_high": "(0, inf)",
    "kl_beta": "[0, inf)",
    "kl_target": "(0, inf)",
    "kl_gain": "(0, inf)",
    "kl_limit": "(0, inf)",
    "kl_smoothing": "[0, 1)",
    "kl_beta_min": "[0, inf)",
    "kl_beta_max": "[0, inf]",
    "entropy_bonus": "[0, inf)",
    "entropy_target": "(0, inf)",
    "entropy_gain": "(0, inf)",
    "entropy_limit": "(0, inf)",
    "entropy_min": "(0, inf)",
    "entropy_max": "(0, inf]",
    "importance_cap": "[1, inf)",
    "checkpoint_every": "[0, inf)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GRPOConfig:
    """How to train with GRPO. Sizes and learning rate suit a small model that SFT has trained from scratch."""

    steps: int = 100
    groups_per_step: int = 32
    """Tasks per step, over all processes."""
    group_size: int = 8
    """Episodes per task."""
    temperature: float = 1.0
    """Of sampling; the loss divides the logits by it as well."""
    temperature_final: float | None = None
    """What the temperature moves to; None = it never changes. Evaluation samples at temperature 1 in any case."""
    temperature_schedule: Shape = "linear"
    temperature_share: float = 1.0
    """Share of the steps over which it moves."""
    curriculum: Curriculum = "none"
    """`success`: levels are drawn by their recent success p, most often near 1/2: in proportion to
    floor + (1 - floor) 4 p (1 - p) (arXiv 2408.15099)."""
    curriculum_floor: float = 0.1
    """Share of its weight that a level keeps where p is 0 or 1."""
    curriculum_decay: float = 0.9
    """What episodes count in p, per step that has gone by since."""
    schedule: Schedule = "refill"
    """`fixed` promises bit-exact reruns and resume; `refill` only the same tasks and distribution, but is faster."""

    learning_rate: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup_steps: int = 4
    decay_from: float = 0.5
    """Share of the steps after which the learning rate falls linearly; 1 = never."""
    min_lr_share: float = 0.1
    max_grad_norm: float = 1.0
    minibatches: int = 1
    """Updates per step; with 1 every gradient is on-policy."""
    micro_batch_tokens: int = 4000
    """Padded tokens of one forward and backward pass; changes memory and speed, not the gradient."""
    share_prompts: bool = True
    """Compute the prompt of a task once for its episodes; changes memory and speed, not the gradient."""
    autocast: Autocast = "auto"

    advantage: Advantage = "group"
    """`group`: against the group's mean (GRPO); `rloo`: against the mean of the others (arXiv 2402.14740); `gigpo`: as
    `group`, and each turn against the turns of its group that began in an equal state (arXiv 2505.10978); `tree`: as
    `group`, and each turn by the branches below it (with `rollout.branching`; arXiv 2410.01679, 2506.11902)."""
    normalise_std: bool = True
    """Divide advantages by the group's standard deviation, and those of turns by their state's. Dr. GRPO (arXiv
    2503.20783) is False, with `loss_normaliser="constant"`."""
    step_weight: float = 1.0
    """With `gigpo` and `tree`: what a turn's own advantage counts, beside its episode's."""
    step_discount: float = 0.95
    """With `gigpo`: discount per turn of a turn's return; below 1, a reward is worth more where it comes sooner."""
    loss: PolicyLoss = "clipped"
    """`clipped`: the clipped surrogate (PPO, GRPO); `gspo`: the same with one ratio per trajectory, the geometric mean
    of its tokens' (arXiv 2507.18071); `cispo`: no clipped gradient, but a bounded weight (arXiv 2506.13585). They
    differ where `minibatches` is above 1: in the first update of a step all ratios are 1."""
    loss_normaliser: LossNormaliser = "tokens"
    """`tokens`: mean over all sampled tokens of the step; `constant`: `tokens_per_episode` for every episode, so that
    the step's size does not shrink when answers grow (Dr. GRPO, arXiv 2503.20783); `sequences`: mean over the tokens of
    each trajectory, then over trajectories (GRPO as published, GSPO)."""
    tokens_per_episode: float = 20.0
    clip_low: float = 0.2
    """The ratio's lower bound is 1 - clip_low. MiniMax-M1 has none: 1 with `cispo`."""
    clip_high: float = 0.28
    """The ratio's upper bound is 1 + clip_high. A trajectory's ratio stays near 1: with `gspo` the paper has 3e-4 and
    4e-4."""

    kl_beta: float = 0.1
    """First weight of the KL to the reference policy."""
    kl_target: float | None = None
    """Nats per trajectory that the weight is steered to; None = fixed weight."""
    kl_gain: float = 0.15
    kl_limit: float = 0.15
    kl_smoothing: float = 0.7
    kl_beta_min: float = 0.03
    kl_beta_max: float = 0.2
    kl_on_all_groups: bool = False
    """Whether groups without spread in their rewards, which have no advantage, still take part in the loss's KL (and
    entropy)."""
    entropy_bonus: float = 0.0
    """Weight of the entropy per token in the loss (nats, exact over the vocabulary), which favours policies that leave
    more open; with `entropy_target` its first value."""
    entropy_target: float | None = None
    """Nats per sampled token that the entropy shall not fall below: the bonus grows while it is below, and rests while
    it is above; None = fixed bonus."""
    entropy_gain: float = 0.3
    entropy_limit: float = 0.3
    entropy_min: float = 1e-4
    entropy_max: float = 0.1

    importance_cap: float | None = None
    """Truncates the weight exp(sum(log pi_train - log pi_rollout)) of each trajectory, which corrects for an engine
    whose probabilities differ from training's (Yao et al. 2025); None = no correction, and no extra forward pass."""
    shuffle_rewards: bool = False
    """A control: rewards are dealt out at random, so that nothing can be learnt."""
    checkpoint_every: int = 20
    """Steps between two checkpoints; 0 = only when the run is stopped."""

    def __post_init__(self) -> None:
        check_ranges(self, "grpo.", _RANGES)
        check_choices(
            self,
            "grpo.",
            {
                "advantage": get_args(Advantage),
                "autocast": get_args(Autocast),
                "curriculum": get_args(Curriculum),
                "loss": get_args(PolicyLoss),
                "loss_normaliser": get_args(LossNormaliser),
                "schedule": get_args(Schedule),
                "temperature_schedule": get_args(Shape),
            },
        )
        if self.kl_target is not None and not self.kl_beta_min <= self.kl_beta <= self.kl_beta_max:
            raise ConfigError(
                f"grpo.kl_beta={self.kl_beta}: must be in [{self.kl_beta_min}, {self.kl_beta_max}], "
                "the bounds kl_beta_min and kl_beta_max (or leave kl_target unset)"
            )
        if self.entropy_target is not None and not self.entropy_min <= self.entropy_bonus <= self.entropy_max:
            raise ConfigError(
                f"grpo.entropy_bonus={self.entropy_bonus}: must be in [{self.entropy_min}, {self.entropy_max}], "
                "the bounds entropy_min and entropy_max (or leave entropy_target unset)"
            )
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.advantage == "rloo" and self.normalise_std:
            raise ConfigError(
                "grpo.normalise_std=True: rloo divides by no deviation; set grpo.normalise_std=false "
                "(or grpo.advantage='group')"
            )
        if self.loss == "gspo" and self.loss_normaliser != "sequences":
            raise ConfigError(
                f"grpo.loss_normaliser={self.loss_normaliser!r}: gspo counts every trajectory once; "
                "set grpo.loss_normaliser='sequences'"
            )
        if self.advantage == "gigpo" and self.shuffle_rewards:
            raise ConfigError(
                "grpo.shuffle_rewards=True: gigpo reads the turns' own rewards, which are not shuffled; "
                "set grpo.advantage='group'"
            )

    def loss_settings(self, kl_beta: float, entropy_bonus: float = 0.0) -> LossSettings:
        """The policy loss with the present weights of the KL and of the entropy."""
        return LossSettings(
            loss=self.loss,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            kl_beta=kl_beta,
            entropy_bonus=entropy_bonus,
        )

    def temperature_at(self, step: int) -> float:
        """The temperature that a step samples with, and that its loss divides the logits by; steps count from 1."""
        return temperature_at(
            step,
            self.steps,
            self.temperature,
            self.temperature_final,
            share=self.temperature_share,
            shape=self.temperature_schedule,
        )

    def level_curriculum(self, task_set: TaskSet) -> LevelCurriculum | None:
        """A curriculum over the levels of these tasks in its first state; None where there is none."""
        if self.curriculum == "none":
            return None
        return LevelCurriculum(task_set, floor=self.curriculum_floor, decay=self.curriculum_decay)

    def entropy_controller(self) -> EntropyController:
        """A controller of the entropy bonus in its first state."""
        return EntropyController(
            self.entropy_bonus,
            self.entropy_target,
            gain=self.entropy_gain,
            limit=self.entropy_limit,
            minimum=self.entropy_min,
            maximum=self.entropy_max,
        )

    def kl_controller(self) -> KLController:
        """A controller in its first state."""
        return KLController(
            self.kl_beta,
            self.kl_target,
            gain=self.kl_gain,
            limit=self.kl_limit,
            smoothing=self.kl_smoothing,
            minimum=self.kl_beta_min,
            maximum=self.kl_beta_max,
        )
