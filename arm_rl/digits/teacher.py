"""The scripted teacher of the cold start: it shows how a session goes, and is noisy on purpose.

It often guesses without looking and often looks at the wrong place, so that reinforcement learning has something left to find out. It
knows the scene, not the future: what it answers after a wrong box is a guess as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from arm_rl.core.session import Completion, Policy, PolicyRequest
from arm_rl.core.template import Template
from arm_rl.core.types import Sample
from arm_rl.digits import phrases, scenes
from arm_rl.digits.dataset import scene_of


@dataclass(frozen=True, kw_only=True, slots=True)
class ScriptedTeacher:
    """Shares before screening. Of the sessions with a right judgment, 39% have a call, and two thirds of their boxes are right."""

    seed: int = 0
    call_share: float = 0.3  # sessions with a call
    right_box_share: float = 1 / 2  # of the calls: the asked tile
    other_tile_share: float = 1 / 4  # of the calls: another tile; the rest goes to any other cell

    def script(self, scene: scenes.Scene, scene_key: Sequence[int], *, tools: bool) -> tuple[str, ...]:
        """The turns of one session, tags and all. Equal `scene_key`s give equal scripts."""
        rng = np.random.default_rng([self.seed, 11, *scene_key])
        guess = int(rng.integers(1, 3))
        if not tools or rng.random() >= self.call_share:
            return (phrases.answer_turn(guess, phrases.UNSURE),)
        draw = rng.random()
        if draw < self.right_box_share:
            return (phrases.call_turn(scene.asked.box), phrases.answer_turn(scene.label, phrases.seen(scene.asked.digit)))
        wrong = scenes.other_tile(scene, rng) if draw < self.right_box_share + self.other_tile_share else scenes.any_other_cell(scene, rng)
        return (phrases.call_turn(scenes.cell_box(*wrong)), phrases.answer_turn(guess, phrases.UNCLEAR))

    def policy(self, sample: Sample, template: Template) -> Policy:
        """The teacher as the policy of a session about `sample`."""
        scene, key = scene_of(sample.id)
        turns = self.script(scene, key, tools=bool(sample.tools))

        async def speak(request: PolicyRequest) -> Completion:
            text = turns[sum(message.role == "assistant" for message in request.messages)]
            ended = template.tool_format.parse(text) is None
            return Completion(token_ids=template.turn_ids(text, ended=ended), logprobs=(), text=text, finish_reason="stop")

        return speak
