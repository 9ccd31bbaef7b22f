"""Group advantages: how much better a trajectory did than the others of its group."""

import math
from collections.abc import Sequence

_EPSILON = 1e-6  # added to the standard deviation, so that a tiny spread is not blown up without bound


def is_zero_variance(rewards: Sequence[float | None]) -> bool:
    """Return whether a group teaches nothing: fewer than two rewards, or all equal to rounding."""
    known = _known_rewards(rewards)
    return len(known) < 2 or max(known) - min(known) <= 1e-9


def group_advantages(rewards: Sequence[float | None], *, scale_by_std: bool = True) -> list[float | None]:
    """Advantages of one group: A_i = (r_i - mean r) / (std r + 1e-6), DeepSeekMath (arXiv 2402.03300), section 4.1.2.

    The standard deviation is the sample's (divided by n - 1). Mean and deviation are taken over the rewards that are known.

    Args:
        rewards: of the trajectories of one group; None where the scorer failed.
        scale_by_std: divide by the deviation; without it, A_i = r_i - mean r ("Dr. GRPO", arXiv 2503.20783).

    Returns:
        One advantage a reward, None where the reward is None; all 0 where the group is flat.

    Raises:
        ValueError: a reward is not finite.
    """
    if is_zero_variance(rewards):
        return [None if reward is None else 0.0 for reward in rewards]
    known = _known_rewards(rewards)
    mean = math.fsum(known) / len(known)
    scale = 1.0
    if scale_by_std:
        scale = math.sqrt(math.fsum((reward - mean) ** 2 for reward in known) / (len(known) - 1)) + _EPSILON
    return [None if reward is None else (reward - mean) / scale for reward in rewards]


def _known_rewards(rewards: Sequence[float | None]) -> list[float]:
    known = [reward for reward in rewards if reward is not None]
    if not all(math.isfinite(reward) for reward in known):
        raise ValueError(f"a reward is not finite: {list(rewards)}")
    return known
