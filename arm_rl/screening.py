"""Screening of a teacher's sessions for the cold start."""

import asyncio
from collections.abc import Callable, Iterable, Iterator

from arm_rl.core import session
from arm_rl.core.config import SessionConfig
from arm_rl.core.session import Policy, Session, Tools
from arm_rl.core.template import Template
from arm_rl.core.types import Sample
from rewards.outcome import Outcome


def passes(outcome: Outcome) -> bool:
    """Whether a session may be learned from: right form, right judgment, and no call that failed."""
    return outcome.format_ok and outcome.correct and outcome.num_successful_calls == outcome.num_calls


def screened_sessions(
    samples: Iterable[Sample], policy_of: Callable[[Sample], Policy], tools: Tools, limits: SessionConfig, template: Template
) -> Iterator[tuple[Sample, Session]]:
    """Runs the teacher on each sample, one after the other, and gives the sessions that pass."""
    for sample in samples:
        finished = asyncio.run(session.run(sample, policy_of(sample), tools, limits, template=template))
        if passes(Outcome.of(finished.trajectory, sample, template.tool_format)):
            yield sample, finished
