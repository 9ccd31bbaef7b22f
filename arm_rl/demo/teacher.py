"""The scripted teacher of the cold start: it shows how a session goes, and is noisy on purpose.

It often guesses without looking, often takes another track's tool and often looks at the wrong place, so that reinforcement learning has
something left to find out. It knows the task, not the future: what it answers after a call that shows nothing is a guess as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from arm_rl.core.session import Completion, Policy, PolicyRequest
from arm_rl.core.template import Template
from arm_rl.core.types import Sample
from arm_rl.demo import phrases
from arm_rl.demo.dataset import parse_sample_id
from arm_rl.demo.tasks import Look, Task, Track
from arm_rl.demo.tracks import TILES, misfits


@dataclass(frozen=True, kw_only=True, slots=True)
class ScriptedTeacher:
    """Shares before screening. Of one track's sessions with a right judgment, 39% have a call, and two thirds of their boxes are right."""

    seed: int = 0
    tracks: Sequence[Track] = TILES  # with only one there is no wrong tool
    call_share: float = 0.3  # sessions with a call
    stray_share: float = 0.5  # of the calls: another track's tool
    right_place_share: float = 1 / 2  # of the calls of the right tool: as asked
    # of the calls of the right tool: a place that resembles it; the rest goes anywhere else
    near_place_share: float = 1 / 4
    repeat_share: float = 0.0  # of the sessions with a call: a second one, in the same way

    def script(self, task: Task, track: Track, *, tools: bool) -> tuple[str, ...]:
        """The turns of one session, tags and all. Equal tasks give equal scripts."""
        rng = np.random.default_rng([self.seed, 11, *task.key])
        guess = int(rng.integers(1, 3))
        if not tools or rng.random() >= self.call_share:
            return (
                phrases.answer_turn(
                    int(task.label) if task.immediate_thought else guess, task.immediate_thought or phrases.UNSURE
                ),
            )
        looks = [self._look(task, track, rng)]
        if rng.random() < self.repeat_share:
            looks.append(self._look(task, track, rng))
        calls = (phrases.call_turn(look.tool, look.arguments) for look in looks)
        return (*calls, phrases.answer_turn(looks[-1].choice or guess, looks[-1].thought))

    def _look(self, task: Task, track: Track, rng: np.random.Generator) -> Look:
        others = misfits(self.tracks, track)
        if others and rng.random() < self.stray_share:
            return others[rng.integers(len(others))].stray_look(rng)
        draw = rng.random()
        if draw < self.right_place_share:
            return task.right_look(rng)
        return task.wrong_look(rng, near=draw < self.right_place_share + self.near_place_share)

    def policy(self, sample: Sample, template: Template) -> Policy:
        """The teacher as the policy of a session about `sample`."""
        turns = self.script(*parse_sample_id(sample.id), tools=bool(sample.tools))

        async def speak(request: PolicyRequest) -> Completion:
            text = turns[sum(message.role == "assistant" for message in request.messages)]
            ended = template.tool_format.parse(text) is None
            return Completion(
                token_ids=template.turn_ids(text, ended=ended), logprobs=(), text=text, finish_reason="stop"
            )

        return speak
