"""Stage 1, tool selection: R_tool = R_f + R_try * 1[tool_calls > 0], and 0 where the format is broken (ARM-Thinker, stage 1).

Where a sample names the tools that fit it, R_try is multiplied with the mean over the calls of 1 for a tool that fits and
`reward.other_tool` for another one: at its default of 1, the formula above.
"""

from arm_rl.core.config import RewardConfig
from rewards.outcome import Outcome


def stage1(outcome: Outcome, values: RewardConfig) -> dict[str, float]:
    """Named parts of the reward: whether the judgment is right plays no role yet."""
    if not outcome.format_ok:
        return {}
    parts = {"format": values.format}
    if outcome.num_calls > 0:
        fitting = outcome.num_fitting_calls / outcome.num_calls
        parts["attempt"] = values.attempt * (fitting + (1 - fitting) * values.other_tool)
    return parts
