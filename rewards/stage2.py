"""Stage 2, accuracy and efficiency (ARM-Thinker, stage 2).

format broken                       0
wrong, no call                      R_f
wrong, a call                       R_f + R_try
right, no successful call           R_f + R_a
right, a successful call            R_f + R_a + R_succ
"""

from arm_rl.core.config import RewardConfig
from rewards.outcome import Outcome


def stage2(outcome: Outcome, values: RewardConfig) -> dict[str, float]:
    """Named parts of the reward: a tool pays best where it helped to be right."""
    if not outcome.format_ok:
        return {}
    parts = {"format": values.format}
    if outcome.correct:
        parts["accuracy"] = values.accuracy
        if outcome.num_successful_calls > 0:
            parts["success"] = values.success
    elif outcome.num_calls > 0:
        parts["attempt"] = values.attempt
    return parts
