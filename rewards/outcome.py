"""What a reward is a function of: the facts of a finished session, none of them read from what the policy wrote about tools."""

from dataclasses import dataclass

from arm_rl.core.parsing import ToolFormat
from arm_rl.core.types import Sample, Trajectory
from rewards.format import format_ok
from rewards.judgment import is_correct


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Facts of one session."""

    format_ok: bool
    correct: bool
    num_calls: int  # calls that the environment took, whatever came of them
    num_successful_calls: int  # of these, with status `ok`
    # of these, to tools that the sample expects; all of them where it expects none in particular
    num_fitting_calls: int

    @classmethod
    def of(cls, trajectory: Trajectory, sample: Sample, tool_format: ToolFormat) -> "Outcome":
        """Reads the judgment from the last turn and everything about tools from the environment's events."""
        events = trajectory.tool_events
        return cls(
            format_ok=format_ok(trajectory, tool_format),
            correct=is_correct(trajectory, sample),
            num_calls=len(events),
            num_successful_calls=sum(event.status == "ok" for event in events),
            num_fitting_calls=sum(
                not sample.expected_tools or event.call.name in sample.expected_tools for event in events
            ),
        )
