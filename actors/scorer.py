"""Scorers: stateless actors that turn trajectories into rewards with named parts."""

import math
import traceback
from collections.abc import Sequence

from arm_rl.core.config import RewardConfig
from arm_rl.core.parsing import TOOL_FORMATS, ToolFormat
from arm_rl.core.types import Sample, Scored, Trajectory
from rewards import REWARDS
from rewards.outcome import Outcome


def score(trajectory: Trajectory, sample: Sample, values: RewardConfig, tool_format: ToolFormat) -> Scored:
    """Scores one trajectory. A broken session, or a reward that raises, has no reward: None, never 0."""
    if trajectory.end == "aborted":
        return Scored(trajectory=trajectory, reward=None, error=trajectory.error)
    try:
        outcome = Outcome.of(trajectory, sample, tool_format)
        parts = REWARDS[values.name](outcome, values)
        reward = sum(parts.values())
        if not math.isfinite(reward):
            raise ValueError(f"{values.name} gave {parts}")
    except Exception:  # a reward may be the user's own code: its failure is counted, not hidden as a 0
        return Scored(trajectory=trajectory, reward=None, error=traceback.format_exc())
    return Scored(trajectory=trajectory, reward=reward, parts=parts, correct=outcome.correct, format_ok=outcome.format_ok)


class Scorer:
    """Scores the trajectories of a sample."""

    def __init__(self, values: RewardConfig, tool_format: str) -> None:
        self._values = values
        self._tool_format = TOOL_FORMATS[tool_format]

    def score(self, sample: Sample, trajectories: Sequence[Trajectory]) -> list[Scored]:
        """One result for each trajectory, in their order."""
        return [score(trajectory, sample, self._values, self._tool_format) for trajectory in trajectories]
