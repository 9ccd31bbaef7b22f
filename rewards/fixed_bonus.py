"""Ablation: accuracy, and a fixed bonus for a successful call, right or wrong: it teaches to call for the bonus's sake."""

from arm_rl.core.config import RewardConfig
from rewards.accuracy import accuracy
from rewards.outcome import Outcome


def fixed_bonus(outcome: Outcome, values: RewardConfig) -> dict[str, float]:
    """Named parts of the reward."""
    parts = accuracy(outcome, values)
    if parts and outcome.num_successful_calls > 0:
        parts["success"] = values.success
    return parts
