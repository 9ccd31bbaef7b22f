"""What the sessions of a run are like: means and spreads. A plan is as good as these numbers; a run's own metrics give better ones."""

from dataclasses import dataclass, fields

import numpy as np

from arm_rl.core.errors import UserError


class WorkloadError(UserError):
    """A number of the workload that cannot be; the message says which."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """One track's worth of sessions; each number is a mean, unless it says otherwise. Keys of `--workload`."""

    prompt_tokens: float = 3000.0  # of a prompt, with the tokens of its images
    image_tokens: float = 1200.0  # of these, the images'
    turn_tokens: float = 220.0  # sampled in a turn
    calls: float = 1.12  # tool calls of a session (the paper's number for its trained judge)
    observation_tokens: float = 600.0  # that follow a call
    observation_image_tokens: float = 500.0  # of these, an image's
    tool_seconds: float = 0.3  # of a call
    score_seconds: float = 0.005  # of a group
    flat_groups: float = 0.25  # share of groups whose rewards are all equal (0..1)
    spread: float = 0.6  # of the sampled tokens' logarithm: standard deviation; lengths are log-normal

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < float("inf") or (field.name == "flat_groups" and value >= 1):
                raise WorkloadError(
                    f"--workload {field.name}: {'0 or more and below 1' if field.name == 'flat_groups' else '0 or more'}, not {value}"
                )
        if self.image_tokens > self.prompt_tokens or self.observation_image_tokens > self.observation_tokens:
            raise WorkloadError(
                "--workload: an image's tokens are part of the prompt's (image_tokens) and of the observation's"
            )

    @classmethod
    def parse(cls, changes: list[str]) -> "Workload":
        """From `key=value`.

        Raises:
            WorkloadError: an unknown key, or no number.
        """
        known = {field.name for field in fields(cls)}
        values: dict[str, float] = {}
        for change in changes:
            key, _, value = change.partition("=")
            if key not in known:
                raise WorkloadError(
                    f"--workload {change!r}: a key of {', '.join(sorted(known))} is needed, as in turn_tokens=300"
                )
            try:
                values[key] = float(value)
            except ValueError:
                raise WorkloadError(f"--workload {key}: a number, not {value!r}") from None
        return cls(**values)

    @property
    def turns(self) -> float:
        """Of a session."""
        return 1 + self.calls

    @property
    def response_tokens(self) -> float:
        """Of a session after its prompt, observations counted."""
        return self.turns * self.turn_tokens + self.calls * self.observation_tokens

    @property
    def session_tokens(self) -> float:
        """Of a session."""
        return self.prompt_tokens + self.response_tokens

    def row_tokens(self, group_size: int) -> float:
        """Return the tokens of a group in a packed row, its prompt counted once."""
        return max(self.prompt_tokens + group_size * self.response_tokens, 1)

    def loss_share(self, group_size: int) -> float:
        """Return the share of a packed group's tokens that were sampled (0..1)."""
        return group_size * self.turns * self.turn_tokens / self.row_tokens(group_size)

    def vision_share(self, group_size: int) -> float:
        """Return the share of a packed group's cost that is the vision tower's (0..1)."""
        images = self.image_tokens + group_size * self.calls * self.observation_image_tokens
        return images / (self.row_tokens(group_size) + images)

    def copied(self, group_size: int) -> float:
        """Return the keys and values that the branches of a packed group copy, as a multiple of the group's tokens.

        Each branch reads one copy of its prompt's keys and values with its own.
        """
        return group_size * self.session_tokens / self.row_tokens(group_size) if group_size > 1 else 0.0

    def draw(self, source: np.random.Generator, max_turns: int) -> "SessionLengths":
        """The lengths of one session."""
        calls = min(int(self.calls) + (source.random() < self.calls % 1), max_turns - 1)
        turns = self.turn_tokens * source.lognormal(-(self.spread**2) / 2, self.spread, calls + 1)
        tools = self.tool_seconds * source.lognormal(-(self.spread**2) / 2, self.spread, calls)
        return SessionLengths(
            turns=tuple(max(1, int(tokens)) for tokens in turns), tool_seconds=tuple(map(float, tools))
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionLengths:
    """What is drawn for one session."""

    turns: tuple[int, ...]  # sampled tokens of each turn
    tool_seconds: tuple[float, ...]  # of each call
