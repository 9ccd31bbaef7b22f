"""Ablation: format and accuracy only; the tool earns nothing by itself."""

from arm_rl.core.config import RewardConfig
from rewards.outcome import Outcome


def accuracy(outcome: Outcome, values: RewardConfig) -> dict[str, float]:
    """Named parts of the reward."""
    if not outcome.format_ok:
        return {}
    return {"format": values.format, **({"accuracy": values.accuracy} if outcome.correct else {})}
