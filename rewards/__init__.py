"""The rewards by name. A new one is one file and one line here; `reward.name` in the configuration chooses."""

from collections.abc import Callable

from arm_rl.core.config import RewardConfig
from rewards.accuracy import accuracy
from rewards.call_bonus import call_bonus
from rewards.fixed_bonus import fixed_bonus
from rewards.outcome import Outcome
from rewards.stage1 import stage1
from rewards.stage2 import stage2

# facts of a session -> named summands, of which none means 0
Reward = Callable[[Outcome, RewardConfig], dict[str, float]]

REWARDS: dict[str, Reward] = {
    "stage1": stage1,
    "stage2": stage2,
    "accuracy": accuracy,
    "fixed_bonus": fixed_bonus,
    "call_bonus": call_bonus,
}
