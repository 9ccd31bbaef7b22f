"""A GRPO group: the scored trajectories of one sample."""

from collections.abc import Iterator
from dataclasses import dataclass

import ray

from arm_rl.core.errors import UserError
from arm_rl.core.types import Sample, ScoredTrajectory, Turn


class RunStopped(UserError):
    """The run cannot continue; the message says why and what to look at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """The scored trajectories of one sample, and a reference to their images."""

    sample: Sample
    scored: tuple[ScoredTrajectory, ...]
    images: ray.ObjectRef  # of a dict[key, Image]: pixels never pass through the driver

    @property
    def turns(self) -> Iterator[Turn]:
        """All turns of all trajectories."""
        return (turn for one in self.scored for turn in one.trajectory.turns)

    @property
    def rewards(self) -> list[float | None]:
        """Reward of each trajectory; None where the scorer failed."""
        return [one.reward for one in self.scored]

    def age(self, version: int) -> int:
        """Return the number of versions by which the group's oldest token is older than `version`."""
        return max((version - turn.policy_version for turn in self.turns), default=0)


def group_name(number: int, sample: Sample) -> str:
    """Return the id of the group that was drawn as this number: part of its sessions' seeds."""
    return f"{number}/{sample.id}"


def number_of(group_id: str) -> int:
    """Return the number in a group's id."""
    return int(group_id.partition("/")[0])
