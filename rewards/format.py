"""Whether a trajectory kept the form: thoughts, readable calls, one answer at the end."""

from arm_rl.core.parsing import ToolFormat, is_well_formed_turn, parse_judgment
from arm_rl.core.types import Trajectory


def format_ok(trajectory: Trajectory, tool_format: ToolFormat) -> bool:
    """True where every turn has the right form, only the last one answers, and its judgment can be read."""
    if trajectory.end != "answered" or not trajectory.turns:
        return False
    *calls, last = trajectory.turns
    return (
        all(turn.tool_events for turn in calls)
        and not last.tool_events
        and all(is_well_formed_turn(turn.text, tool_format) for turn in trajectory.turns)
        and parse_judgment(last.text) is not None
    )
