"""The configuration: frozen dataclasses that check themselves. A key's comment, above it or behind it, is its help text.

This module holds the sections on the run, the model, its data, sessions, tools, rewards and records. `compute_config` holds
the sections on engines, learners and their placement, and `stage_config` the algorithm and whole stages. `config_file` reads
and writes them.
"""

import importlib.util
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from omegaconf import MISSING

from arm_rl.core.errors import UserError


class ConfigError(UserError):
    """A configuration that cannot work; the message starts with the key's path."""


def require(condition: bool, key: str, message: str) -> None:
    """Raise `ConfigError` for the key unless the condition holds."""
    if not condition:
        raise ConfigError(f"{key}: {message}")


def require_package(name: str, key: str) -> None:
    """Raise `ConfigError` for the key unless the package is installed."""
    require(
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
        require(
            fits and len(self.name) <= 200 and self.name[0] not in "=-",
            "run.name",
            f"a name for a folder, not {self.name!r:.80}",
        )
        require(
            0 <= self.max_broken_sessions <= 1,
            "run.max_broken_sessions",
            f"between 0 and 1, not {self.max_broken_sessions}",
        )
        require(0 < self.stall_seconds < math.inf, "run.stall_seconds", f"above 0, not {self.stall_seconds}")
        require(self.max_restarts >= 0, "run.max_restarts", f"not negative, not {self.max_restarts}")

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
    # of the learner's vision tower: sdpa, flash_attention_2, ...; by default flash where it is installed and can run
    attention: str | None = None

    def __post_init__(self) -> None:
        low, high = self.min_pixels, self.max_pixels
        require(low is None or low >= 1, "model.min_pixels", f"at least 1, not {low}")
        require(
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
            require(all(file.strip() for file in files), f"data.{key}", f"names of files, not {list(files)}")
            require(len({*files}) == len(files), f"data.{key}", f"each file once, not {list(files)}")
        fit = all(0 <= weight < math.inf for weight in self.weights.values()) and (
            not self.weights or sum(self.weights.values()) > 0
        )
        require(fit, "data.weights", f"none negative and one above 0, not {dict(self.weights)}")
        require(
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
        require(self.max_turns >= 1, "session.max_turns", f"at least 1, not {self.max_turns}")
        require(self.max_prompt_tokens >= 1, "session.max_prompt_tokens", "at least 1")
        require(self.max_response_tokens >= 1, "session.max_response_tokens", "at least 1")
        require(
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
        require(self.num_executors >= 1, "tools.num_executors", f"at least 1, not {self.num_executors}")
        require(self.concurrency >= 1, "tools.concurrency", f"at least 1, not {self.concurrency}")
        require(0 < self.timeout_seconds < math.inf, "tools.timeout_seconds", f"above 0, not {self.timeout_seconds}")


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
        require(self.num_scorers >= 1, "reward.num_scorers", f"at least 1, not {self.num_scorers}")
        for name in ("format", "attempt", "other_tool", "accuracy", "success"):
            require(math.isfinite(getattr(self, name)), f"reward.{name}", f"a finite number, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every: int = 20  # steps between checkpoints; 0 for only the last
    keep: int = 2  # newest ones kept

    def __post_init__(self) -> None:
        require(self.every >= 0, "checkpoint.every", f"not negative, not {self.every}")
        require(self.keep >= 1, "checkpoint.keep", f"at least 1, not {self.keep}: a run goes on from its newest one")


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
        require(self.every >= 0, "evaluation.every", f"not negative, not {self.every}")
        require(
            self.num_samples is None or self.num_samples >= 1,
            "evaluation.num_samples",
            f"at least 1, not {self.num_samples}",
        )
        require(
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
    # write timeline.json: who did what when, for Perfetto and for `report RUN --time`
    timeline: bool = True

    def __post_init__(self) -> None:
        if self.tensorboard:
            require_package("tensorboard", "metrics.tensorboard")
        require(
            self.trajectories_every >= 0, "metrics.trajectories_every", f"not negative, not {self.trajectories_every}"
        )
