"""What flows through the system: Sample -> Trajectory -> ScoredTrajectory -> TrainingSample -> Batch.

A `Sample` is a row of the data. `session.run` turns it into a `Trajectory`: what the policy sampled, token by token, and what the
environment answered. A scorer makes it `ScoredTrajectory`; the driver's group advantages make it a `TrainingSample`; samples packed for the
data-parallel ranks are a `Batch`. Everything here is frozen. Pixels are never part of these types: an image is known by its key.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
ToolStatus = Literal["ok", "bad_arguments", "unknown_tool", "timeout", "failed"]
End = Literal["answered", "length", "turn_limit", "aborted"]
FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRef:
    """Where an image of the data lies; read by the actor that needs it (`images.load`)."""

    path: str  # an image file, or a parquet file with an `images` column
    row: int | None = None  # in a parquet file: the row ...
    index: int = 0  # ... and the place in that row's list


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagePart:
    """An image inside a message, by its name in the session's memory (`original_image`, `observation_1`)."""

    name: str

    @classmethod
    def original(cls, number: int) -> "ImagePart":
        """Image `number`, from 1 on, of those that a conversation begins with: `original_image`, `original_image_2`, ..."""
        return cls(name="original_image" if number == 1 else f"original_image_{number}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One message of a conversation: text and images in reading order."""

    role: Role
    parts: tuple[str | ImagePart, ...]

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def image_names(self) -> tuple[str, ...]:
        """Names of the images, in reading order."""
        return tuple(part.name for part in self.parts if isinstance(part, ImagePart))


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One thing to judge."""

    id: str
    track: str  # which kind of task: metrics are split by it
    messages: tuple[Message, ...]  # without the tools' section, which the template adds
    images: tuple[ImageRef, ...] = ()  # in the order of the `ImagePart`s
    texts: tuple[str, ...] = ()  # the candidate answers: `text_0`, `text_1`, ... in the memory
    label: str  # the right judgment: "1".."N" for the better answer, or "true" / "false"
    tools: tuple[str, ...] = ()  # tools offered; none offered: the judge must answer at once
    expected_tools: tuple[str, ...] = ()  # tools that fit this sample; empty where that is not known
    # the beginning of the judge's first turn, written for it: no loss; for evaluation in an engine only
    prefill: str = ""
    # x1, y1, x2, y2 in 0..1000: where the evidence is, for evaluation only
    target_box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """What the policy asked for. `error` says why it could not be read; then the name and the arguments are what could be saved of it."""

    name: str
    arguments: dict[str, Any]
    error: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolEvent:
    """What the environment did about one call. The only evidence, for rewards too, that a tool was called and whether it succeeded."""

    call: ToolCall
    status: ToolStatus
    text: str  # the observation's text, cut to the session's limit
    image_names: tuple[str, ...] = ()  # new images, by their names in the memory
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One turn of the policy, and the observation that followed it."""

    token_ids: tuple[int, ...]  # sampled by the policy: T ids
    # of the sampled ids under the distribution they were sampled from: T, or empty where unknown
    logprobs: tuple[float, ...]
    text: str  # the ids decoded, tags kept, end token left out
    finish_reason: FinishReason
    tool_events: tuple[ToolEvent, ...] = ()
    observation_ids: tuple[int, ...] = ()  # the environment's ids after this turn, images expanded; no loss
    # no call was possible in this turn: the engine could not sample the call's first token
    call_forbidden: bool = False
    policy_version: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageInfo:
    """An image of a trajectory: its name in the memory and the key of its content."""

    name: str
    key: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Trajectory:
    """One session. The context of turn k is `prompt_ids` and, for each turn before k, its `token_ids` and `observation_ids`."""

    sample_id: str
    track: str
    group_id: str  # trajectories of one sample, sampled for one step
    index: int  # in the group
    prompt_ids: tuple[int, ...]  # images expanded: one pad id for each image token
    turns: tuple[Turn, ...]
    images: tuple[ImageInfo, ...] = ()  # those shown to the policy, in the order of their pads
    end: End
    error: str | None = None  # why it was aborted: a traceback
    seconds: float = 0.0

    @property
    def tool_events(self) -> tuple[ToolEvent, ...]:
        """All calls of the session, in order."""
        return tuple(event for turn in self.turns for event in turn.tool_events)

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole conversation."""
        return len(self.prompt_ids) + sum(len(turn.token_ids) + len(turn.observation_ids) for turn in self.turns)

    @property
    def num_sampled_tokens(self) -> int:
        """Tokens that the policy sampled."""
        return sum(len(turn.token_ids) for turn in self.turns)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredTrajectory:
    """A trajectory with its reward; None where the scorer failed: it is left out and counted, never 0."""

    trajectory: Trajectory
    reward: float | None
    parts: dict[str, float] = field(default_factory=dict)  # named summands of the reward
    correct: bool = False  # the judgment is the label
    format_ok: bool = False
    error: str | None = None  # why the scorer failed


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSample:
    """What the learner sees of one trajectory. The four sequences have one length, T."""

    key: str = ""  # tells the trajectory from all others of a step; needed where samples are scored
    token_ids: tuple[int, ...]  # the whole conversation, images expanded
    loss_mask: tuple[bool, ...]  # True where the policy sampled the token
    logprobs: tuple[float, ...]  # of the behaviour policy; 0 where the mask is False
    advantages: tuple[float, ...]  # 0 where the mask is False
    # T, or empty for nowhere: the distribution was without the call's first token
    call_forbidden: tuple[bool, ...] = ()
    # T, or empty where not recomputed: of the weights that the driver's step started from
    proximal_logprobs: tuple[float, ...] = ()
    image_keys: tuple[str, ...] = ()  # in the order of their pads
    image_tokens: tuple[int, ...] = ()  # pads of each of them
    # leading tokens without loss, which samples with the same ones share; 0: nothing is shared
    num_prompt_tokens: int = 0
    num_prompt_images: int = 0  # images in these

    def __post_init__(self) -> None:
        if any(self.loss_mask[: self.num_prompt_tokens]):
            raise ValueError("a prompt carries loss")
        length = len(self.token_ids)
        for name in ("loss_mask", "logprobs", "advantages"):
            if len(getattr(self, name)) != length:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {length} token_ids")
        for name in ("call_forbidden", "proximal_logprobs"):
            if getattr(self, name) and len(getattr(self, name)) != length:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {length} token_ids")

    @property
    def num_loss_tokens(self) -> int:
        """Tokens that carry loss."""
        return sum(self.loss_mask)

    @property
    def prompt_key(self) -> Hashable:
        """Key that is equal for samples that share a prompt."""
        if not self.num_prompt_tokens:
            return id(self)
        return self.token_ids[: self.num_prompt_tokens], self.image_keys[: self.num_prompt_images]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One optimizer step, cut for the data-parallel ranks: every rank has the same number of micro-batches."""

    # [rank][micro-batch][sample]; a micro-batch may be empty
    micro_batches: tuple[tuple[tuple[TrainingSample, ...], ...], ...]
    num_loss_tokens: int  # over all ranks: the loss is normalised by it
    num_samples: int  # over all ranks
    num_repeated_prompts: int = 0  # prompts that are computed once more because their group is in several rows
