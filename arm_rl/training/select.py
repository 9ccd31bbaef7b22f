"""The choice of what a step trains on: the fate of each trajectory of a group, decided once.

group -> too old? flat? -> each trajectory: broken? unscored? overlong? -> its fate
"""

from dataclasses import dataclass
from typing import Literal, get_args

from arm_rl.core.advantage import is_zero_variance
from arm_rl.core.stage_config import AlgorithmConfig
from arm_rl.training.group import Group

Fate = Literal["trained", "flat", "too_old", "overlong", "unscored", "broken"]
FATES: tuple[Fate, ...] = get_args(Fate)


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """A group, and what becomes of each of its trajectories."""

    number: int  # of the group, in the order in which groups were drawn
    group: Group
    is_too_old: bool  # the group was dropped for its age
    fates: tuple[Fate, ...]  # one a trajectory

    @property
    def trains(self) -> bool:
        """Whether a trajectory of the group is trained on."""
        return "trained" in self.fates


def select(number: int, group: Group, version: int, algorithm: AlgorithmConfig) -> Selection:
    """Decide which trajectories of a group are trained on, and why the others are not.

    Args:
        number: Number of the group, in the order in which groups were drawn.
        group: The scored group.
        version: Version of the weights that the step starts from.
        algorithm: Its keys `max_staleness`, `drop_flat_groups` and `mask_overlong` decide.
    """
    whole: Fate = "trained"
    if group.age(version) > algorithm.max_staleness:
        whole = "too_old"
    elif algorithm.drop_flat_groups and is_zero_variance(group.rewards):
        whole = "flat"
    fates: list[Fate] = []
    for one in group.scored:
        if one.trajectory.end == "aborted":
            fates.append("broken")
        elif one.reward is None:
            fates.append("unscored")
        elif whole == "trained" and algorithm.mask_overlong and one.trajectory.end == "length":
            fates.append("overlong")
        else:
            fates.append(whole)
    return Selection(number=number, group=group, is_too_old=whole == "too_old", fates=tuple(fates))
