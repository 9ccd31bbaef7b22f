"""The teacher of the cold start: a scripted policy, noisy on purpose, whose sessions are screened like those of any stronger model.

It reaches for the tool in some sessions only, and then often looks at the wrong place: what remains to be learned is GRPO's.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np

from arm_rl.core import session
from arm_rl.core.config import SessionConfig
from arm_rl.core.seeding import derive
from arm_rl.core.session import Completion, PolicyRequest, Session
from arm_rl.core.template import Template
from arm_rl.core.types import Sample
from arm_rl.digits import dataset, phrases, scenes
from arm_rl.digits.lessons import wrong_cell
from rewards.outcome import Outcome
from tools.local import LocalTools


@dataclass(frozen=True, kw_only=True)
class Habits:
    """How the teacher behaves, before screening. A guess is right half of the time, so screening halves the sessions that guess."""

    calls: float = 0.33  # share of sessions with a call
    looks_right: float = 0.33  # share of these that look at the right tile


class TeacherPolicy:
    """The `policy` callable of one session about a scene that the teacher knows."""

    def __init__(self, scene: scenes.Scene, template: Template, habits: Habits, seed: int) -> None:
        self._scene, self._template = scene, template
        rng = np.random.default_rng(seed)
        self._calls = rng.random() < habits.calls
        self._looks_right = rng.random() < habits.looks_right
        asked = scene.asked
        self._cell = (asked.row, asked.column) if self._looks_right else wrong_cell(scene, rng)
        self._guess = int(rng.integers(1, 3))

    async def __call__(self, request: PolicyRequest) -> Completion:
        """The call first, if there is to be one; then the answer."""
        calls = self._calls and request.messages[-1].role == "user"
        text = phrases.call_turn(scenes.cell_box(*self._cell)) if calls else self._answer()
        token_ids = self._template.turn_ids(text, ended=not calls)
        return Completion(token_ids=token_ids, logprobs=(), text=text, finish_reason="stop")

    def _answer(self) -> str:
        if self._calls and self._looks_right:
            return phrases.answer_turn(self._scene.label, phrases.seen(self._scene.asked.digit))
        return phrases.answer_turn(self._guess, phrases.UNCLEAR if self._calls else phrases.UNSURE)


def screened(outcome: Outcome) -> bool:
    """Whether a session may be learned from: right form, right judgment, and no call that failed."""
    return outcome.format_ok and outcome.correct and outcome.num_successful_calls == outcome.num_calls


def demonstrate(
    samples: Sequence[Sample], *, number: int, template: Template, tools: LocalTools, limits: SessionConfig, habits: Habits, seed: int
) -> Iterator[tuple[Sample, Session]]:
    """Runs the teacher over the samples, round after round, until `number` sessions have passed the screening."""
    kept = 0
    for attempt, sample in enumerate(cycle(samples)):
        policy = TeacherPolicy(dataset.scene_of(sample.id, seed), template, habits, derive(seed, "teacher", attempt))
        finished = asyncio.run(session.run(sample, policy, tools, limits, template=template))
        if screened(Outcome.of(finished.trajectory, sample, template.tool_format)):
            kept += 1
            yield sample, finished
            if kept == number:
                return
