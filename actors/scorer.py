"""Scorers: stateless actors that turn trajectories into rewards with named parts."""

import math
import traceback
from collections.abc import Sequence
from typing import NamedTuple

from actors.supervision import SupervisedActor
from arm_rl.core import tracing
from arm_rl.core.config import RewardConfig
from arm_rl.core.parsing import TOOL_FORMATS, ToolFormat
from arm_rl.core.tracing import SpanBatch, recorded
from arm_rl.core.types import Sample, ScoredTrajectory, Trajectory
from rewards import REWARDS
from rewards.outcome import Outcome


def score(trajectory: Trajectory, sample: Sample, values: RewardConfig, tool_format: ToolFormat) -> ScoredTrajectory:
    """Scores one trajectory. A broken session, or a reward that raises, has no reward: None, never 0."""
    if trajectory.end == "aborted":
        return ScoredTrajectory(trajectory=trajectory, reward=None, error=trajectory.error)
    try:
        outcome = Outcome.of(trajectory, sample, tool_format)
        parts = REWARDS[values.name](outcome, values)
        reward = sum(parts.values())
        if not math.isfinite(reward):
            raise ValueError(f"{values.name} gave {parts}")
    except Exception:  # a reward may be the user's own code: its failure is counted, not hidden as a 0
        return ScoredTrajectory(trajectory=trajectory, reward=None, error=traceback.format_exc())
    return ScoredTrajectory(
        trajectory=trajectory, reward=reward, parts=parts, correct=outcome.correct, format_ok=outcome.format_ok
    )


class Score(NamedTuple):
    """What `ScoredTrajectory` says beside the trajectory, which has not to travel back. A tuple, because there are many."""

    reward: float | None
    parts: dict[str, float]
    correct: bool
    format_ok: bool
    error: str | None

    def to_scored_trajectory(self, trajectory: Trajectory) -> ScoredTrajectory:
        """Return the scored trajectory that joins this score and its trajectory."""
        return ScoredTrajectory(trajectory=trajectory, **self._asdict())


class Scorer(SupervisedActor):
    """Scores the trajectories of a sample."""

    def __init__(self, values: RewardConfig, tool_format: str) -> None:
        self._values = values
        self._tool_format = TOOL_FORMATS[tool_format]

    @recorded("score")
    def score(self, sample: Sample, trajectories: Sequence[Trajectory]) -> list[Score]:
        """One result for each trajectory, in their order."""
        scored = (score(trajectory, sample, self._values, self._tool_format) for trajectory in trajectories)
        return [Score(one.reward, one.parts, one.correct, one.format_ok, one.error) for one in scored]

    def spans(self) -> SpanBatch:
        """What this actor did since the last call, for the timeline."""
        return tracing.take()
