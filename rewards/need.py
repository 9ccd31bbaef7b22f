"""Accuracy, and a bonus for being right in the way that the group shows to be called for: with the tool where it is needed, else without.

How much a sample needs the tool is read from the direct answers of its own group. Let q be the share of them that is right, with one right
and one wrong answer added, so that a single one proves little, and none leaves it at 1/2, a guess between two:

    need = 2 (1 - q), and 1 where q <= 1/2
    right, a successful call    R_f + R_a + R_succ * need
    right, no call              R_f + R_a + R_succ * (1 - need)
    wrong, a call               R_f + R_try * need
    else                        as in stage 2

With no direct answer in the group this is stage 2.
"""

from arm_rl.core.config import RewardConfig
from rewards.outcome import GroupFacts, Outcome


def need_of(group: GroupFacts) -> float:
    """How much a sample needs the tool, 0..1, by its group's direct answers."""
    right = (group.num_direct_right + 1) / (group.num_direct + 2)
    return min(1.0, 2 * (1 - right))


def need(outcome: Outcome, values: RewardConfig) -> dict[str, float]:
    """Named parts of the reward: where direct answers are right, they pay best."""
    if not outcome.format_ok:
        return {}
    needed = need_of(outcome.group)
    parts = {"format": values.format}
    if outcome.correct:
        parts["accuracy"] = values.accuracy
        if outcome.num_calls == 0:
            parts["direct"] = values.success * (1 - needed)
        elif outcome.num_successful_calls > 0:
            parts["success"] = values.success * needed
    elif outcome.num_calls > 0:
        parts["attempt"] = values.attempt * needed
    return parts
