"""The configuration: frozen dataclasses that check themselves. A key's comment is its help text; `config_file` reads and writes them."""

import importlib.util
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from omegaconf import MISSING

from arm_rl.core.errors import UserError

Transfer = Literal["file", "nccl", "ipc"]  # how weights come to the engines


class ConfigError(UserError):
    """A configuration that cannot work; the message starts with the key's path."""


def _require(condition: bool, key: str, message: str) -> None:
    if not condition:
        raise ConfigError(f"{key}: {message}")


def _require_package(name: str, key: str) -> None:
    _require(
        importlib.util.find_spec(name) is not None, key, f"the package {name} is not installed (pip install {name})"
    )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    name: str = MISSING  # name of the run; its folder is root/name
    root: str = "runs"  # folder of all runs
    seed: int = 0  # seed of data order, sampling and initialisation
    max_broken_sessions: float = 0.1  # the run ends when more than this share of a step's sessions is broken (0..1)
    # an engine, tool executor or scorer that gives no sign of life for so long is started anew
    stall_seconds: float = 600.0
    # times that the learners are started anew from the last checkpoint without getting further than before
    max_restarts: int = 3

    def __post_init__(self) -> None:
        fits = (
            Path(self.name).name == self.name == self.name.strip()
            and self.name.strip(".") != ""
            and self.name.isprintable()
        )
        _require(
            fits and len(self.name) <= 200 and self.name[0] not in "=-",
            "run.name",
            f"a name for a folder, not {self.name!r:.80}",
        )
        _require(
            0 <= self.max_broken_sessions <= 1,
            "run.max_broken_sessions",
            f"between 0 and 1, not {self.max_broken_sessions}",
        )
        _require(0 < self.stall_seconds < math.inf, "run.stall_seconds", f"above 0, not {self.stall_seconds}")
        _require(self.max_restarts >= 0, "run.max_restarts", f"not negative, not {self.max_restarts}")

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.root) / self.name


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    path: str = MISSING  # Hugging Face folder, or a name on the hub
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of weights and activations, in engine and learner
    min_pixels: int | None = None  # smallest view of an image, in pixels; by default the processor's own
    max_pixels: int | None = None  # largest view of an image, in pixels; by default the processor's own
    # in the learner: sdpa, flash_attention_2, ...; by default flash where it is installed and can run
    attention: str | None = None

    def __post_init__(self) -> None:
        low, high = self.min_pixels, self.max_pixels
        _require(low is None or low >= 1, "model.min_pixels", f"at least 1, not {low}")
        _require(
            high is None or high >= (low or 1),
            "model.max_pixels",
            f"at least model.min_pixels ({low or 1}), not {high}",
        )


@dataclass(frozen=True, kw_only=True)
class TemplateConfig:
    system_prompt: str = "configs/prompts/judge.txt"  # file with the system prompt
    # file that words a question and its answers, where the judge is asked as a product
    question: str = "configs/prompts/question.jinja"
    tool_format: str = "hermes"  # how tools are shown and calls are written


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    train: tuple[str, ...] = ()  # parquet files, or folders of them
    held_out: tuple[str, ...] = ()  # parquet files for evaluation, or folders of them
    # of each track: its share of an epoch; by default as many as there are
    weights: dict[str, float] = field(default_factory=dict)
    # a row that cannot be used ends the run before it starts, or is left out and counted
    broken_rows: Literal["stop", "skip"] = "stop"
    # folder that image files of rows may not leave, links followed; by default that of the row's file
    image_root: str | None = None

    def __post_init__(self) -> None:
        for key in ("train", "held_out"):
            files = getattr(self, key)
            _require(all(file.strip() for file in files), f"data.{key}", f"names of files, not {list(files)}")
            _require(len({*files}) == len(files), f"data.{key}", f"each file once, not {list(files)}")
        fit = all(0 <= weight < math.inf for weight in self.weights.values()) and (
            not self.weights or sum(self.weights.values()) > 0
        )
        _require(fit, "data.weights", f"none negative and one above 0, not {dict(self.weights)}")
        _require(
            self.image_root is None or Path(self.image_root).is_dir(),
            "data.image_root",
            f"there is no folder {self.image_root!r}",
        )


@dataclass(frozen=True, kw_only=True)
class SessionConfig:
    max_turns: int = 5  # assistant turns at most; the last one must answer
    max_prompt_tokens: int = 65000  # samples with a longer prompt are left out and counted
    max_response_tokens: int = 8192  # tokens of a session after the prompt, observations counted
    max_tool_response_chars: int = 4096  # longer observations lose their middle
    # added to the observation before the last turn
    last_turn_notice: str = "No more tool calls are allowed. Give the answer now."

    def __post_init__(self) -> None:
        _require(self.max_turns >= 1, "session.max_turns", f"at least 1, not {self.max_turns}")
        _require(self.max_prompt_tokens >= 1, "session.max_prompt_tokens", "at least 1")
        _require(self.max_response_tokens >= 1, "session.max_response_tokens", "at least 1")
        _require(
            self.max_tool_response_chars >= 32,
            "session.max_tool_response_chars",
            "at least 32: the mark of a cut needs its place",
        )


@dataclass(frozen=True, kw_only=True)
class ToolsConfig:
    files: tuple[str, ...] = ()  # YAML files that list the tools
    num_executors: int = 1  # executor actors
    concurrency: int = 32  # calls that one executor runs at a time
    timeout_seconds: float = 30.0  # limit for one call

    def __post_init__(self) -> None:
        _require(self.num_executors >= 1, "tools.num_executors", f"at least 1, not {self.num_executors}")
        _require(self.concurrency >= 1, "tools.concurrency", f"at least 1, not {self.concurrency}")
        _require(0 < self.timeout_seconds < math.inf, "tools.timeout_seconds", f"above 0, not {self.timeout_seconds}")


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    num_actors: int = 1  # engines
    tensor_parallel_size: int = 1  # GPUs of one engine
    temperature: float = 1.0  # of the sampling in training
    max_concurrent_sessions: int = 256  # sessions that one actor runs at a time
    max_model_len: int = 73728  # tokens of a session at most, prompt and images counted
    max_num_seqs: int = 256  # sequences that the engine decodes at a time
    max_images: int = 16  # images in one session at most
    gpu_memory_utilization: float = 0.85  # share of a GPU's memory that the engine takes
    cpu_kv_cache_gib: int = 1  # key-value cache of an engine without a GPU
    block_size: int | None = None  # of the key-value cache; on CPU a multiple of 32
    enforce_eager: bool = False  # no CUDA graphs

    def __post_init__(self) -> None:
        for name in (
            "num_actors",
            "tensor_parallel_size",
            "max_concurrent_sessions",
            "max_num_seqs",
            "max_images",
            "cpu_kv_cache_gib",
        ):
            _require(getattr(self, name) >= 1, f"rollout.{name}", f"at least 1, not {getattr(self, name)}")
        _require(
            0 <= self.temperature <= 2,
            "rollout.temperature",
            f"from 0 to 2 (what vLLM samples at), not {self.temperature}",
        )
        _require(
            self.block_size is None or self.block_size >= 1, "rollout.block_size", f"at least 1, not {self.block_size}"
        )
        share = self.gpu_memory_utilization
        _require(0 < share <= 1, "rollout.gpu_memory_utilization", f"above 0 and at most 1, not {share}")


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    name: str = "stage2"  # a key of rewards.REWARDS
    format: float = 0.3  # R_f: the format is right
    attempt: float = 0.1  # R_try: a tool was called
    other_tool: float = 1.0  # share of R_try for a call to a tool that the sample does not name as fitting (stage 1)
    accuracy: float = 0.7  # R_a: the judgment is right
    success: float = 0.5  # R_succ: right, and a call succeeded
    num_scorers: int = 1  # scorer actors

    def __post_init__(self) -> None:
        _require(self.num_scorers >= 1, "reward.num_scorers", f"at least 1, not {self.num_scorers}")
        for name in ("format", "attempt", "other_tool", "accuracy", "success"):
            _require(
                math.isfinite(getattr(self, name)), f"reward.{name}", f"a finite number, not {getattr(self, name)}"
            )


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfig:
    samples_per_step: int = 512  # samples drawn for a step
    group_size: int = 16  # trajectories a sample
    mini_batch_samples: int | None = None  # samples (groups) an optimizer step; by default all of the step's
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
        _require(self.samples_per_step >= 1, "algorithm.samples_per_step", "at least 1")
        _require(
            self.group_size >= 2,
            "algorithm.group_size",
            f"at least 2 (an advantage needs a group), not {self.group_size}",
        )
        mini = self.mini_batch_samples
        _require(
            mini is None or (1 <= mini <= self.samples_per_step and self.samples_per_step % mini == 0),
            "algorithm.mini_batch_samples",
            f"a divisor of algorithm.samples_per_step ({self.samples_per_step}), not {mini}",
        )
        _require(self.max_staleness >= 0, "algorithm.max_staleness", f"not negative, not {self.max_staleness}")
        _require(
            self.drop_flat_groups or not self.refill_flat,
            "algorithm.refill_flat",
            "only with algorithm.drop_flat_groups: it replaces these",
        )
        _require(self.max_empty_steps >= 1, "algorithm.max_empty_steps", f"at least 1, not {self.max_empty_steps}")
        _require(self.fixed_length >= 1, "algorithm.fixed_length", f"at least 1, not {self.fixed_length}")
        _require(
            0 <= self.kl_coefficient < math.inf,
            "algorithm.kl_coefficient",
            f"not negative and finite, not {self.kl_coefficient}",
        )
        _require(
            math.isfinite(self.entropy_coefficient),
            "algorithm.entropy_coefficient",
            f"a finite number, not {self.entropy_coefficient}",
        )
        _require(0 < self.clip_low < 1, "algorithm.clip_low", f"between 0 and 1, not {self.clip_low}")
        _require(0 < self.clip_high < math.inf, "algorithm.clip_high", f"above 0, not {self.clip_high}")
        _require(self.max_mismatch > 0, "algorithm.max_mismatch", f"above 0, not {self.max_mismatch}")
        _require(self.importance_cap > 0, "algorithm.importance_cap", f"above 0, not {self.importance_cap}")
        _require(self.epochs_per_step >= 1, "algorithm.epochs_per_step", "at least 1")

    @property
    def updates_per_step(self) -> int:
        """Optimizer steps in a step of the driver."""
        return self.samples_per_step // (self.mini_batch_samples or self.samples_per_step) * self.epochs_per_step


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    num_ranks: int = 1  # data-parallel learner ranks
    zero_stage: Literal[0, 1, 2, 3] = 3  # DeepSpeed ZeRO
    offload_optimizer: bool = False  # optimizer states in the host's memory
    offload_parameters: bool = False  # and the weights that are not in use (ZeRO 3)
    num_threads: int = 1  # CPU threads of a rank where there is no GPU
    # tokens of one forward pass at most, padding and images counted; a longer trajectory is alone
    micro_batch_tokens: int = 16384
    learning_rate: float = 2e-6  # at its peak
    schedule: Literal["constant", "cosine", "linear"] = "constant"  # after the warm-up
    warmup_ratio: float = 0.0  # share of the run's optimizer steps
    weight_decay: float = 0.01  # AdamW's
    betas: tuple[float, float] = (0.9, 0.95)  # AdamW's
    max_grad_norm: float = 1.0  # gradients are clipped to this norm
    freeze_vision: bool = True  # the vision tower is not trained
    freeze_projector: bool = True  # nor the layer that projects its features
    lora_rank: int = 0  # of low-rank adapters, which are trained in place of the weights; 0: the weights themselves
    lora_alpha: int = 32  # adapters count lora_alpha / lora_rank
    # their matrices
    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    gradient_checkpointing: bool = False  # recompute activations in the backward pass
    # a collective that takes longer takes the learners back to the last checkpoint
    collective_timeout_seconds: float = 1800.0
    call_timeout_seconds: float = 7200.0  # so does a step, a checkpoint or an export that takes longer: a rank hangs

    def __post_init__(self) -> None:
        _require(self.num_ranks >= 1, "learner.num_ranks", f"at least 1, not {self.num_ranks}")
        _require(
            self.micro_batch_tokens >= 1, "learner.micro_batch_tokens", f"at least 1, not {self.micro_batch_tokens}"
        )
        _require(
            0 <= self.learning_rate < math.inf,
            "learner.learning_rate",
            f"not negative and finite, not {self.learning_rate}",
        )
        _require(self.num_threads >= 1, "learner.num_threads", f"at least 1, not {self.num_threads}")
        _require(
            all(0 <= beta < 1 for beta in self.betas), "learner.betas", f"each from 0 to below 1, not {self.betas}"
        )
        _require(
            0 <= self.weight_decay < math.inf,
            "learner.weight_decay",
            f"not negative and finite, not {self.weight_decay}",
        )
        for name in ("collective_timeout_seconds", "call_timeout_seconds"):
            _require(0 < getattr(self, name) < math.inf, f"learner.{name}", f"above 0, not {getattr(self, name)}")
        _require(0 <= self.warmup_ratio <= 1, "learner.warmup_ratio", f"between 0 and 1, not {self.warmup_ratio}")
        _require(self.max_grad_norm > 0, "learner.max_grad_norm", f"above 0, not {self.max_grad_norm}")
        stage = f"not {self.zero_stage}"
        _require(
            not self.offload_optimizer or self.zero_stage > 0,
            "learner.offload_optimizer",
            f"only with learner.zero_stage from 1, {stage}",
        )
        _require(
            not self.offload_parameters or self.zero_stage == 3,
            "learner.offload_parameters",
            f"only with learner.zero_stage 3, {stage}",
        )
        self._check_lora()

    def _check_lora(self) -> None:
        _require(self.lora_rank >= 0, "learner.lora_rank", f"not negative, not {self.lora_rank}")
        if not self.lora_rank:
            return
        _require(self.lora_alpha > 0, "learner.lora_alpha", f"above 0, not {self.lora_alpha}")
        _require(bool(self.lora_targets), "learner.lora_targets", "at least one name of a linear layer")
        frozen = self.freeze_vision and self.freeze_projector
        _require(
            frozen,
            "learner.lora_rank",
            "only with learner.freeze_vision and learner.freeze_projector: adapters are the language model's",
        )
        _require_package("peft", "learner.lora_rank")

    @property
    def shares_prompts(self) -> bool:
        """Whether a prompt is computed once for the trajectories of its group: through kept keys and values, which checkpointing drops."""
        return not self.gradient_checkpointing


@dataclass(frozen=True, kw_only=True)
class PlacementConfig:
    # learners and engines on GPUs of their own, or taking turns on the same ones
    kind: Literal["apart", "shared"] = "apart"
    use_gpu: bool = True  # false: everything on CPU
    gpus_per_node: int = 8  # GPUs of one machine
    may_grow: bool = False  # the cluster gets more nodes (an autoscaler): what does not fit on it now is waited for
    # new weights through shared memory, or from GPU to GPU
    weight_transfer: Literal["auto", "file", "nccl", "ipc"] = "auto"

    def __post_init__(self) -> None:
        _require(self.gpus_per_node >= 1, "placement.gpus_per_node", f"at least 1, not {self.gpus_per_node}")
        fitting = {"apart": "nccl", "shared": "ipc"}[self.kind] if self.use_gpu else "file"
        _require(
            self.weight_transfer in ("auto", "file", fitting),
            "placement.weight_transfer",
            f"file, or nccl on GPUs apart, or ipc on shared ones, not {self.weight_transfer}",
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every: int = 20  # steps between checkpoints; 0 for only the last
    keep: int = 2  # newest ones kept

    def __post_init__(self) -> None:
        _require(self.every >= 0, "checkpoint.every", f"not negative, not {self.every}")
        _require(self.keep >= 1, "checkpoint.keep", f"at least 1, not {self.keep}: a run goes on from its newest one")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    every: int = 0  # steps between evaluations on data.held_out; 0 for none in between
    initial: bool = False  # evaluate before the first step
    final: bool = True  # evaluate after the last step, where data.held_out is given
    num_samples: int | None = None  # by default all
    temperature: float = 1.0  # of the sampling
    without_tools: bool = False  # evaluate with tools forbidden as well
    # the beginning of each first turn there: a judge that always calls may else say nothing of use
    prefill_without_tools: str = ""
    # evaluate as well with this as the beginning of each first turn: that of a call shows what forced use brings
    prefill: str = ""

    def __post_init__(self) -> None:
        _require(self.every >= 0, "evaluation.every", f"not negative, not {self.every}")
        _require(
            self.num_samples is None or self.num_samples >= 1,
            "evaluation.num_samples",
            f"at least 1, not {self.num_samples}",
        )
        _require(
            0 <= self.temperature <= 2,
            "evaluation.temperature",
            f"from 0 to 2 (what vLLM samples at), not {self.temperature}",
        )


@dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    # Weights & Biases; auto: online where a key for it is found
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    wandb_project: str = "arm_rl"  # its project
    # what it keeps: every checkpoint, or the model at the end
    wandb_artifacts: Literal["none", "checkpoint", "export"] = "none"
    tensorboard: bool = False  # event files for TensorBoard as well
    trajectories_every: int = 10  # steps between writes of a step's trajectories; 0 for none
    # write timeline.json: who did what when, for Perfetto and for `python -m jobs.report RUN --time`
    timeline: bool = True

    def __post_init__(self) -> None:
        if self.tensorboard:
            _require_package("tensorboard", "metrics.tensorboard")
        _require(
            self.trajectories_every >= 0, "metrics.trajectories_every", f"not negative, not {self.trajectories_every}"
        )


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
        _require(bool(self.data.train), "data.train", "at least one parquet file is needed")
        _require(self.num_steps is None or self.num_steps >= 1, "num_steps", f"at least 1, not {self.num_steps}")
        _require(self.num_epochs >= 1, "num_epochs", f"at least 1, not {self.num_epochs}")
        tokens = self.session.max_prompt_tokens + self.session.max_response_tokens
        _require(
            self.rollout.max_model_len >= tokens,
            "rollout.max_model_len",
            f"at least session.max_prompt_tokens + session.max_response_tokens = {tokens}, not {self.rollout.max_model_len}",
        )
        _require(
            self.rollout.temperature > 0, "rollout.temperature", "above 0 in training: greedy groups have no spread"
        )
        algorithm = self.algorithm
        trajectories = (algorithm.mini_batch_samples or algorithm.samples_per_step) * algorithm.group_size
        _require(
            trajectories >= self.learner.num_ranks,
            "learner.num_ranks",
            f"at most the trajectories of an optimizer step ({trajectories}), not {self.learner.num_ranks}",
        )
        _require_gpus(self.placement, self.learner.num_ranks, self.rollout)
        _require_attention(self.model, self.placement)
        size = self.rollout.block_size
        _require(
            self.placement.use_gpu or size is None or size % 32 == 0,
            "rollout.block_size",
            f"a multiple of 32 on CPU, not {size}",
        )
        direct = self.placement.weight_transfer not in ("auto", "file")
        _require(
            not (direct and self.learner.lora_rank),
            "placement.weight_transfer",
            "file with learner.lora_rank: adapters are small",
        )
        _require(
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
    batch_size: int = 256  # trajectories an optimizer step, over all ranks
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
        _require(bool(self.data.train), "data.train", "at least one parquet file is needed")
        _require(self.num_epochs >= 1, "num_epochs", f"at least 1, not {self.num_epochs}")
        _require(self.max_tokens is None or self.max_tokens >= 1, "max_tokens", f"at least 1, not {self.max_tokens}")
        _require(
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
    _require(
        placement.gpus_per_node % size == 0,
        "rollout.tensor_parallel_size",
        f"a divisor of placement.gpus_per_node ({placement.gpus_per_node}), not {size}",
    )
    if placement.kind == "shared":
        _require(
            size == 1,
            "rollout.tensor_parallel_size",
            f"1 where GPUs are shared (an engine sits beside one rank), not {size}",
        )
        _require(
            rollout.num_actors == num_ranks,
            "rollout.num_actors",
            f"learner.num_ranks ({num_ranks}) where GPUs are shared, not {rollout.num_actors}",
        )


def _require_attention(model: ModelConfig, placement: PlacementConfig) -> None:
    """Flash attention wants its package, a GPU and bfloat16."""
    if model.attention is None or not model.attention.startswith("flash_attention"):
        return
    fits = placement.use_gpu and model.dtype == "bfloat16"
    _require(fits, "model.attention", f"{model.attention} only with placement.use_gpu and model.dtype=bfloat16")
    if model.attention == "flash_attention_2":
        _require_package("flash_attn", "model.attention")
