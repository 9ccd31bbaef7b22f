"""What a reward is a function of: the facts of a finished session, none of them read from what the policy wrote about tools."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from arm_rl.core.parsing import ToolFormat
from arm_rl.core.types import Sample, Trajectory
from rewards.format import format_ok
from rewards.judgment import is_correct


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupFacts:
    """Facts of all sessions of a sample that were scored together, this one included. A broken form is right nowhere."""

    num_direct: int = 0  # sessions that called no tool ...
    num_direct_right: int = 0  # ... and are right
    num_calling: int = 0  # sessions with a successful call ...
    num_calling_right: int = 0  # ... and are right

    @classmethod
    def of(cls, outcomes: Iterable["Outcome"]) -> "GroupFacts":
        """Counts them."""
        known = list(outcomes)
        direct = [one for one in known if one.num_calls == 0]
        calling = [one for one in known if one.num_successful_calls > 0]
        return cls(
            num_direct=len(direct),
            num_direct_right=sum(one.format_ok and one.correct for one in direct),
            num_calling=len(calling),
            num_calling_right=sum(one.format_ok and one.correct for one in calling),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Facts of one session."""

    format_ok: bool
    correct: bool
    num_calls: int  # calls that the environment took, whatever came of them
    num_successful_calls: int  # of these, with status `ok`
    num_fitting_calls: int  # of these, to tools that the sample expects; all of them where it expects none in particular
    group: GroupFacts = field(default_factory=GroupFacts)  # of the sessions that it was sampled with

    @classmethod
    def of(cls, trajectory: Trajectory, sample: Sample, tool_format: ToolFormat) -> "Outcome":
        """Reads the judgment from the last turn and everything about tools from the environment's events; knows of no group yet."""
        events = trajectory.tool_events
        return cls(
            format_ok=format_ok(trajectory, tool_format),
            correct=is_correct(trajectory, sample),
            num_calls=len(events),
            num_successful_calls=sum(event.status == "ok" for event in events),
            num_fitting_calls=sum(not sample.expected_tools or event.call.name in sample.expected_tools for event in events),
        )
