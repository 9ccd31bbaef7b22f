"""Ablation: accuracy, and a fixed bonus for each successful call, right or wrong: it teaches to call and call again."""

from arm_rl.core.config import RewardConfig
from rewards.accuracy import accuracy
from rewards.outcome import Outcome


def call_bonus(outcome: Outcome, values: RewardConfig) -> dict[str, float]:
    """Named parts of the reward."""
    parts = accuracy(outcome, values)
    if parts and outcome.num_successful_calls > 0:
        parts["success"] = values.success * outcome.num_successful_calls
    return parts
