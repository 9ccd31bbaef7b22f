"""Whether a trajectory's judgment is the label."""

from arm_rl.core.parsing import parse_judgment
from arm_rl.core.types import Sample, Trajectory


def is_correct(trajectory: Trajectory, sample: Sample) -> bool:
    """True where the last turn's judgment is the sample's label."""
    return bool(trajectory.turns) and parse_judgment(trajectory.turns[-1].text) == sample.label
