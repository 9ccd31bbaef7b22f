"""Stage 1, tool selection: R_tool = R_f + R_try * 1[tool_calls > 0], and 0 where the format is broken (ARM-Thinker, stage 1)."""

from arm_rl.core.config import RewardConfig
from rewards.outcome import Outcome


def stage1(outcome: Outcome, values: RewardConfig) -> dict[str, float]:
    """Named parts of the reward: whether the judgment is right plays no role yet."""
    if not outcome.format_ok:
        return {}
    parts = {"format": values.format}
    if outcome.num_calls > 0:
        parts["attempt"] = values.attempt
    return parts
