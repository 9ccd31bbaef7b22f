"""What the base model is taught, as token sequences with images: the skills one by one, and no wish to use the tool.

A lesson is a session as the session loop would write it, with a weight for each token. The opening of a thought that leads to a call
has weight 0: the base learns *how* to look, and what it says by itself before it has looked is `unsure`. Whether to look is left to
the cold start and to reinforcement learning.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from arm_rl.core.images import Image
from arm_rl.core.template import Template
from arm_rl.core.types import ImagePart, Message, Sample
from arm_rl.digits import phrases, pixels, scenes

MIX = [0.3, 0.3, 0.1, 0.08, 0.06, 0.06, 0.1]  # shares of the kinds of joint lessons
SLIP = 0.15  # of the pointing lessons point elsewhere: a base that is too sure loses the skill when the cold start contradicts it
CHOICE_WEIGHT = 4.0  # of a choice that the thought decides: one token of a whole lesson
GUESS_WEIGHT = 0.25  # of a choice that nothing tells: it should stay even


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """One sequence of T tokens, and what it shows."""

    token_ids: list[int]  # T, images expanded
    weights: list[float]  # T: how much it matters that a token is predicted; 0 for what the environment writes
    views: list[np.ndarray]  # images in order, each (VIEW, VIEW, 3), uint8


class Teacher:
    """Writes lessons about scenes, with the session's own template."""

    def __init__(self, template: Template) -> None:
        self.template = template
        blank = Image.from_pil(pixels.PILImage.new("RGB", (scenes.CELL, scenes.CELL)))
        self._blanks = dict.fromkeys(("original_image", "observation_1", "observation_2"), blank)  # only sizes matter here

    def matching(self, scene: scenes.Scene, rng: np.random.Generator) -> Lesson:
        """No image: the thought says the digit, the answer that claims it is the better one."""
        writer = _Writer(self, self.prompt(scene.asked.color, scene.claims, image=False, tools=bool(rng.integers(2))))
        writer.answer(int(scene.label), phrases.seen(scene.asked.digit), thought_weight=0.0)
        return writer.lesson([])

    def joint(self, scene: scenes.Scene, rng: np.random.Generator) -> Lesson:
        """A lesson of a random kind."""
        kinds: tuple[Callable[[scenes.Scene, np.random.Generator], Lesson], ...] = (
            self._point,
            self._look_once,
            self._look_twice,
            self._look_in_vain,
            self._unsure,
            self._no_tools,
            self.matching,
        )
        return kinds[rng.choice(len(kinds), p=MIX)](scene, rng)

    def look_once(self, scene: scenes.Scene) -> Lesson:
        """A call on the right tile, then the answer."""
        return self._look_once(scene, np.random.default_rng(0))

    def _point(self, scene: scenes.Scene, rng: np.random.Generator) -> Lesson:
        """A call on the right tile and no more: pointing is the slowest to learn, and a short lesson is cheap."""
        writer = _Writer(self, self.prompt(scene.asked.color, scene.claims, image=True, tools=True))
        cell = wrong_cell(scene, rng) if rng.random() < SLIP else (scene.asked.row, scene.asked.column)
        writer.call(scenes.cell_box(*cell), weight=1.0)
        return writer.lesson([pixels.scene_view(scene)])

    def _look_once(self, scene: scenes.Scene, rng: np.random.Generator) -> Lesson:
        writer = _Writer(self, self.prompt(scene.asked.color, scene.claims, image=True, tools=True))
        writer.call(scene.asked.box, weight=1.0)
        writer.observe("observation_1", "")
        writer.answer(int(scene.label), phrases.seen(scene.asked.digit))
        return writer.lesson([pixels.scene_view(scene), _seen(scene)])

    def _look_twice(self, scene: scenes.Scene, rng: np.random.Generator) -> Lesson:
        first = wrong_cell(scene, rng)
        writer = _Writer(self, self.prompt(scene.asked.color, scene.claims, image=True, tools=True))
        writer.call(scenes.cell_box(*first), weight=0.0)
        writer.observe("observation_1", "")
        writer.call(scene.asked.box, weight=1.0)
        writer.observe("observation_2", phrases.NOTICE)
        writer.answer(int(scene.label), phrases.seen(scene.asked.digit))
        return writer.lesson([pixels.scene_view(scene), scenes.draw_cell(scene, *first), _seen(scene)])

    def _look_in_vain(self, scene: scenes.Scene, rng: np.random.Generator) -> Lesson:
        cells = [wrong_cell(scene, rng) for _ in range(rng.integers(1, 3))]
        writer = _Writer(self, self.prompt(scene.asked.color, scene.claims, image=True, tools=True))
        for number, cell in enumerate(cells, 1):
            writer.call(scenes.cell_box(*cell), weight=0.0)
            writer.observe(f"observation_{number}", phrases.NOTICE if number == 2 else "")
        writer.answer(int(rng.integers(1, 3)), phrases.UNCLEAR, choice_weight=GUESS_WEIGHT)
        return writer.lesson([pixels.scene_view(scene), *(scenes.draw_cell(scene, *cell) for cell in cells)])

    def _unsure(self, scene: scenes.Scene, rng: np.random.Generator) -> Lesson:
        return self._guess(scene, rng, tools=True, thought=phrases.UNSURE, thought_weight=1.0)

    def _no_tools(self, scene: scenes.Scene, rng: np.random.Generator) -> Lesson:
        """Even a thought of looking ends in an answer where there is nothing to look with."""
        look = rng.random() < 0.5
        return self._guess(scene, rng, tools=False, thought=phrases.LOOK if look else phrases.UNSURE, thought_weight=0.0 if look else 1.0)

    def _guess(self, scene: scenes.Scene, rng: np.random.Generator, *, tools: bool, thought: str, thought_weight: float) -> Lesson:
        writer = _Writer(self, self.prompt(scene.asked.color, scene.claims, image=True, tools=tools))
        writer.answer(int(rng.integers(1, 3)), thought, thought_weight=thought_weight, choice_weight=GUESS_WEIGHT)
        return writer.lesson([pixels.scene_view(scene)])

    @functools.cache  # noqa: B019 (one teacher lives as long as the training)
    def prompt(self, color: str, claims: tuple[int, int], *, image: bool, tools: bool) -> tuple[int, ...]:
        """The prompt's ids: they depend on these four only."""
        parts: tuple[str | ImagePart, ...] = (phrases.request(scenes.question(color), claims),)
        if image:
            parts = (ImagePart(name="original_image"), *parts)
        offered = (phrases.TOOL,) if tools else ()
        sample = Sample(id="lesson", track="digits", messages=(Message(role="user", parts=parts),), label="1", tools=offered)
        return self.template.prompt_ids(sample, self._blanks)

    @functools.cache  # noqa: B019
    def questions(self) -> tuple[int, ...]:
        """A prompt up to its question, then the questions about the other colours: one token for each colour, at the end."""
        prompts = [self.prompt(color, scenes.CLASSES[:2], image=True, tools=True) for color in scenes.COLORS]
        start = next(place for place, ids in enumerate(zip(*prompts, strict=True)) if len(set(ids)) > 1)
        return (*prompts[0][:start], *(ids[start] for ids in prompts))

    @functools.cache  # noqa: B019
    def observation(self, name: str, text: str) -> tuple[int, ...]:
        """The ids between a call and the next turn."""
        message = Message(role="tool", parts=(f"{name}: ", ImagePart(name=name), text))
        return self.template.observation_ids(message, self._blanks, turn_ended=False)

    @functools.cache  # noqa: B019
    def turn(self, text: str, ended: bool) -> tuple[int, ...]:
        """The ids of a turn."""
        return self.template.turn_ids(text, ended=ended)


class _Writer:
    """Puts a lesson together."""

    def __init__(self, teacher: Teacher, prompt: tuple[int, ...]) -> None:
        self._teacher = teacher
        self._ids: list[int] = list(prompt)
        self._weights: list[float] = [0.0] * len(prompt)

    def call(self, box: scenes.Box, *, weight: float) -> None:
        ids = self._teacher.turn(phrases.call_turn(box), False)
        self._add(ids, [weight, 0.0, *[weight] * (len(ids) - 2)])  # the thought comes after its tag: id 1

    def observe(self, name: str, text: str) -> None:
        ids = self._teacher.observation(name, text)
        self._add(ids, [0.0] * len(ids))

    def answer(self, choice: int, thought: str, *, thought_weight: float = 1.0, choice_weight: float = CHOICE_WEIGHT) -> None:
        ids = self._teacher.turn(phrases.answer_turn(choice, thought), True)
        weights = [1.0] * len(ids)
        close = len(ids) - 6  # </think> <answer> verdict CHOICE verdict </answer> end: the thought ends before these
        weights[1:close] = [thought_weight] * (close - 1)
        weights[len(ids) - 4] = choice_weight
        self._add(ids, weights)

    def _add(self, ids: tuple[int, ...], weights: list[float]) -> None:
        self._ids += ids
        self._weights += weights

    def lesson(self, views: list[np.ndarray]) -> Lesson:
        return Lesson(token_ids=self._ids, weights=self._weights, views=views)


def _seen(scene: scenes.Scene) -> np.ndarray:
    return scenes.draw_cell(scene, scene.asked.row, scene.asked.column)


def wrong_cell(scene: scenes.Scene, rng: np.random.Generator) -> tuple[int, int]:
    """Half the time another tile's cell, else any cell but the asked tile's."""
    return scenes.other_tile(scene, rng) if rng.random() < 0.5 else scenes.any_other_cell(scene, rng)
