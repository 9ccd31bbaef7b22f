"""The algorithm's section of the configuration, and the configurations of whole stages: what must fit together is checked here."""

import math
from dataclasses import dataclass, field
from typing import Literal

from arm_rl.core.compute_config import LearnerConfig, PlacementConfig, RolloutConfig, Transfer
from arm_rl.core.config import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    MetricsConfig,
    ModelConfig,
    RewardConfig,
    RunConfig,
    SessionConfig,
    TemplateConfig,
    ToolsConfig,
    require,
    require_package,
)


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfig:
    samples_per_step: int = 512  # samples drawn for a step
    group_size: int = 16  # trajectories a sample
    # samples (groups) an optimizer step at most, by default all of the step's; groups that are left are split evenly
    mini_batch_samples: int | None = None
    epochs_per_step: int = 1  # passes over a step's trajectories
    scale_by_std: bool = True  # divide advantages by the group's standard deviation
    max_staleness: int = 0  # steps that rollouts may be ahead of the learners; 0: strictly in turns
    drop_flat_groups: bool = True  # leave out groups whose rewards are all equal
    refill_flat: bool = False  # draw other samples in their place, until a step is full (DAPO's dynamic sampling)
    mask_overlong: bool = False  # leave out trajectories that ran out of tokens
    max_empty_steps: int = 10  # tries before a step in which every group was dropped ends the run
    # how token losses are averaged
    loss_aggregation: Literal["token_mean", "sequence_mean", "fixed_length"] = "token_mean"
    fixed_length: int = 8192  # divisor of a sequence's loss under fixed_length
    clip_low: float = 0.2  # ratio is clipped at 1 - clip_low
    clip_high: float = 0.2  # ratio is clipped at 1 + clip_high
    ratio: Literal["token", "sequence"] = "token"  # of each token (PPO), or one for a whole trajectory (GSPO)
    # ratio against the engine, or against the weights at the step's start
    proximal: Literal["behaviour", "recomputed"] = "behaviour"
    # with recomputed proximal log-probabilities: cap of the weights that correct for the engine
    importance_cap: float = 2.0
    kl_coefficient: float = 0.0  # of the penalty towards the reference policy; 0 loads no reference
    kl_kind: Literal["k1", "k2", "k3"] = "k3"  # estimator of the KL divergence
    entropy_coefficient: float = 0.0  # of the entropy bonus
    # the run ends where engine and learner differ by more, in the mean over a batch's log-probabilities
    max_mismatch: float = 2.0

    def __post_init__(self) -> None:
        require(self.samples_per_step >= 1, "algorithm.samples_per_step", "at least 1")
        require(
            self.group_size >= 2,
            "algorithm.group_size",
            f"at least 2 (an advantage needs a group), not {self.group_size}",
        )
        mini = self.mini_batch_samples
        require(
            mini is None or (1 <= mini <= self.samples_per_step and self.samples_per_step % mini == 0),
            "algorithm.mini_batch_samples",
            f"a divisor of algorithm.samples_per_step ({self.samples_per_step}), not {mini}",
        )
        require(self.max_staleness >= 0, "algorithm.max_staleness", f"not negative, not {self.max_staleness}")
        require(
            self.drop_flat_groups or not self.refill_flat,
            "algorithm.refill_flat",
            "only with algorithm.drop_flat_groups: it replaces these",
        )
        require(self.max_empty_steps >= 1, "algorithm.max_empty_steps", f"at least 1, not {self.max_empty_steps}")
        require(self.fixed_length >= 1, "algorithm.fixed_length", f"at least 1, not {self.fixed_length}")
        require(
            0 <= self.kl_coefficient < math.inf,
            "algorithm.kl_coefficient",
            f"not negative and finite, not {self.kl_coefficient}",
        )
        require(
            math.isfinite(self.entropy_coefficient),
            "algorithm.entropy_coefficient",
            f"a finite number, not {self.entropy_coefficient}",
        )
        require(0 < self.clip_low < 1, "algorithm.clip_low", f"between 0 and 1, not {self.clip_low}")
        require(0 < self.clip_high < math.inf, "algorithm.clip_high", f"above 0, not {self.clip_high}")
        require(self.max_mismatch > 0, "algorithm.max_mismatch", f"above 0, not {self.max_mismatch}")
        require(self.importance_cap > 0, "algorithm.importance_cap", f"above 0, not {self.importance_cap}")
        require(self.epochs_per_step >= 1, "algorithm.epochs_per_step", "at least 1")

    @property
    def updates_per_step(self) -> int:
        """Optimizer steps in a step of the driver."""
        return self.samples_per_step // (self.mini_batch_samples or self.samples_per_step) * self.epochs_per_step


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One GRPO stage: `python -m jobs.train`."""

    num_steps: int | None = None  # steps of the run; by default num_epochs passes over the data
    num_epochs: int = 3  # passes over the data, where num_steps is not given
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    template: TemplateConfig = field(default_factory=TemplateConfig)
    data: DataConfig = field(default_factory=DataConfig)
    session: SessionConfig = field(default_factory=SessionConfig)
    tools: ToolsConfig = field(default_factory=ToolsConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)

    def __post_init__(self) -> None:
        require(bool(self.data.train), "data.train", "at least one parquet file is needed")
        require(self.num_steps is None or self.num_steps >= 1, "num_steps", f"at least 1, not {self.num_steps}")
        require(self.num_epochs >= 1, "num_epochs", f"at least 1, not {self.num_epochs}")
        tokens = self.session.max_prompt_tokens + self.session.max_response_tokens
        require(
            self.rollout.max_model_len >= tokens,
            "rollout.max_model_len",
            f"at least session.max_prompt_tokens + session.max_response_tokens = {tokens}, not {self.rollout.max_model_len}",
        )
        require(
            self.rollout.temperature > 0, "rollout.temperature", "above 0 in training: greedy groups have no spread"
        )
        algorithm = self.algorithm
        trajectories = (algorithm.mini_batch_samples or algorithm.samples_per_step) * algorithm.group_size
        require(
            trajectories >= self.learner.num_ranks,
            "learner.num_ranks",
            f"at most the trajectories of an optimizer step ({trajectories}), not {self.learner.num_ranks}",
        )
        _require_gpus(self.placement, self.learner.num_ranks, self.rollout)
        _require_attention(self.model, self.placement)
        size = self.rollout.block_size
        require(
            self.placement.use_gpu or size is None or size % 32 == 0,
            "rollout.block_size",
            f"a multiple of 32 on CPU, not {size}",
        )
        direct = self.placement.weight_transfer not in ("auto", "file")
        require(
            not (direct and self.learner.lora_rank),
            "placement.weight_transfer",
            "file with learner.lora_rank: adapters are small",
        )
        require(
            not (self.placement.use_gpu and self.placement.kind == "shared" and algorithm.max_staleness),
            "algorithm.max_staleness",
            "0 where learners and engines take turns on the same GPUs (placement.kind=shared)",
        )

    @property
    def transfer(self) -> Transfer:
        """How weights come to the engines."""
        placement = self.placement
        if placement.weight_transfer != "auto":
            return placement.weight_transfer
        if not placement.use_gpu or self.learner.lora_rank:
            return "file"
        return "ipc" if placement.kind == "shared" else "nccl"


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """The supervised cold start: `python -m jobs.sft`."""

    num_epochs: int = 1  # passes over the data
    batch_size: int = 256  # trajectories an optimizer step at most, over all ranks: an epoch is split evenly
    max_tokens: int | None = None  # longer demonstrations are left out and counted; by default none are
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    template: TemplateConfig = field(default_factory=TemplateConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tools: ToolsConfig = field(default_factory=ToolsConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)

    def __post_init__(self) -> None:
        require(bool(self.data.train), "data.train", "at least one parquet file is needed")
        require(self.num_epochs >= 1, "num_epochs", f"at least 1, not {self.num_epochs}")
        require(self.max_tokens is None or self.max_tokens >= 1, "max_tokens", f"at least 1, not {self.max_tokens}")
        require(
            self.batch_size >= self.learner.num_ranks,
            "batch_size",
            f"at least learner.num_ranks ({self.learner.num_ranks}), not {self.batch_size}",
        )
        _require_gpus(self.placement, self.learner.num_ranks, None)
        _require_attention(self.model, self.placement)


def _require_gpus(placement: PlacementConfig, num_ranks: int, rollout: RolloutConfig | None) -> None:
    """Engines must fit on whole nodes, and shared GPUs must be as many on both sides."""
    if not placement.use_gpu or rollout is None:
        return
    size = rollout.tensor_parallel_size
    require(
        placement.gpus_per_node % size == 0,
        "rollout.tensor_parallel_size",
        f"a divisor of placement.gpus_per_node ({placement.gpus_per_node}), not {size}",
    )
    if placement.kind == "shared":
        require(
            size == 1,
            "rollout.tensor_parallel_size",
            f"1 where GPUs are shared (an engine sits beside one rank), not {size}",
        )
        require(
            rollout.num_actors == num_ranks,
            "rollout.num_actors",
            f"learner.num_ranks ({num_ranks}) where GPUs are shared, not {rollout.num_actors}",
        )


def _require_attention(model: ModelConfig, placement: PlacementConfig) -> None:
    """Flash attention wants its package, a GPU and bfloat16."""
    if model.attention is None or not model.attention.startswith("flash_attention"):
        return
    fits = placement.use_gpu and model.dtype == "bfloat16"
    require(fits, "model.attention", f"{model.attention} only with placement.use_gpu and model.dtype=bfloat16")
    if model.attention == "flash_attention_2":
        require_package("flash_attn", "model.attention")
