"""Screening of a teacher's sessions for the cold start."""

import asyncio
from collections.abc import Callable, Iterable, Iterator

from arm_rl.core import session
from arm_rl.core.config import SessionConfig
from arm_rl.core.session import Policy, Session, Tools
from arm_rl.core.template import Template
from arm_rl.core.types import Sample
from rewards.outcome import Outcome


def refusal_reason(
    *, format_ok: bool, correct: bool, num_calls: int, num_successful_calls: int, call_needed: bool
) -> str | None:
    """Return why a session may not be learned from; None if its form, judgment and calls are right.

    Args:
        call_needed: a call must have succeeded, whatever others did; else it may do without, but no call may have failed.
    """
    if not format_ok:
        return "the form is broken"
    if not correct:
        return "the judgment is wrong"
    if call_needed:
        return None if num_successful_calls else "no call succeeded"
    return None if num_successful_calls == num_calls else "a call failed"


def passes(outcome: Outcome, *, call_needed: bool) -> bool:
    """Whether a session may be learned from, as `refusal_reason`."""
    reason = refusal_reason(
        format_ok=outcome.format_ok,
        correct=outcome.correct,
        num_calls=outcome.num_calls,
        num_successful_calls=outcome.num_successful_calls,
        call_needed=call_needed,
    )
    return reason is None


def run_screened_sessions(
    samples: Iterable[Sample],
    policy_of: Callable[[Sample], Policy],
    tools: Tools,
    limits: SessionConfig,
    template: Template,
    *,
    call_needed: bool = False,
) -> Iterator[tuple[Sample, Session]]:
    """Run a teacher in this process on each sample, one after the other, and yield the sessions that pass."""
    for sample in samples:
        finished = asyncio.run(session.run(sample, policy_of(sample), tools, limits, template=template))
        if passes(Outcome.of(finished.trajectory, sample, template.tool_format), call_needed=call_needed):
            yield sample, finished
