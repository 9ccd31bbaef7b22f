"""What the base model is taught, as token sequences with images: the skills one by one, and no wish to use a tool.

A lesson is a session as the session loop would write it, with a weight for each token. The opening of a thought that leads to a call
has weight 0: the base learns *how* to look, and what it says by itself before it has looked is what the prompt shows: mostly `unsure`.
Whether to look is left to the cold start and to reinforcement learning; so is, where there are several tracks, which tool fits best.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from arm_rl.core.images import Image
from arm_rl.core.template import Template
from arm_rl.core.types import ImagePart, Message, Sample
from arm_rl.demo import phrases, pixels, scenes, tasks
from arm_rl.demo.tasks import Look, Task, Track
from arm_rl.demo.tracks import TILES, misfits

MIX = (0.4, 0.3, 0.04, 0.08, 0.06, 0.04, 0.08)  # shares of the kinds of joint lessons
# of the pointing lessons point elsewhere: a base that is too sure loses the skill when the cold start contradicts it
SLIP = 0.15
STRAY = 0.5  # of the lessons that point or look in vain call another track's tool, where there are several tracks
CHOICE_WEIGHT = 12.0  # of a choice that the thought decides: one token of a whole lesson, and the slowest to learn
MAX_CALLS = 2  # session.max_turns of the demos, less the answer
GUESS_WEIGHT = 0.25  # of a choice that nothing tells: it should stay even


# What a token is a part of: the environment's text, a call's argument, an argument of which several values are right, a thought about
# evidence, the choice of an answer, or the fixed form of a turn.
Part = Literal["given", "argument", "free", "thought", "choice", "form"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """Sequence of T tokens with the weight and the part of each, and the images in it."""

    token_ids: list[int]  # T, images expanded
    weights: list[float]  # T: how much it matters that a token is predicted; 0 for what the environment writes
    parts: list[Part]  # T
    views: list[np.ndarray]  # images in order, each (VIEW, VIEW, 3), uint8


class Teacher:
    """Writes lessons about the tracks' tasks, with the session's own template."""

    def __init__(
        self,
        template: Template,
        tracks: Sequence[Track] = TILES,
        *,
        mix: Sequence[float] = MIX,
        max_calls: int = MAX_CALLS,
    ) -> None:
        self.template = template
        self.tracks = tracks
        self.mix, self.max_calls = mix, max_calls
        blank = Image.from_pil(pixels.PILImage.new("RGB", (scenes.CELL, scenes.CELL)))
        self._blanks = dict.fromkeys(
            ("original_image", *(f"observation_{number}" for number in range(1, max_calls + 1))), blank
        )  # only sizes matter here

    def task(self, seed: int, index: int) -> tuple[Task, Track]:
        """Return the task at an index of the tracks, which take turns."""
        track = self.tracks[index % len(self.tracks)]
        return track.task(seed, "pretrain", index), track

    def matching_lesson(self, task: Task, track: Track, rng: np.random.Generator) -> Lesson:
        """Return a lesson without an image: the thought says what is so, and the answer that claims it is better."""
        writer = _Writer(self, self.prompt_ids(tasks.request(task), image=False, tools=bool(rng.integers(2))))
        writer.add_answer(int(task.label), phrases.conclusion(task.claims[int(task.label) - 1]), thought_weight=0.0)
        return writer.lesson()

    def joint_lesson(self, task: Task, track: Track, rng: np.random.Generator) -> Lesson:
        """Return a lesson of a random kind."""
        kinds: tuple[Callable[[Task, Track, np.random.Generator], Lesson], ...] = (
            self._point_once,
            self.look_once,
            self._look_twice,
            self._look_in_vain,
            self._answer_at_once,
            self._answer_without_tools,
            self.matching_lesson,
        )
        return kinds[rng.choice(len(kinds), p=self.mix)](task, track, rng)

    def look_once(self, task: Task, track: Track, rng: np.random.Generator) -> Lesson:
        """Return a lesson of the right call and the answer."""
        return self._look_and_answer(task, [task.right_look(rng)], rng, last_call_weight=1.0)

    def _point_once(self, task: Task, track: Track, rng: np.random.Generator) -> Lesson:
        """Return a lesson of one call: pointing is the slowest to learn, and a short lesson is cheap."""
        look = self._draw_stray_look(track, rng)
        if look is None:
            look = _draw_wrong_look(task, rng) if rng.random() < SLIP else task.right_look(rng)
        writer = self._start_writer(task)
        writer.add_call(look, weight=1.0)
        return writer.lesson()

    def _look_twice(self, task: Task, track: Track, rng: np.random.Generator) -> Lesson:
        first = self._draw_stray_look(track, rng) or _draw_wrong_look(task, rng)
        return self._look_and_answer(task, [first, task.right_look(rng)], rng, last_call_weight=1.0)

    def _look_in_vain(self, task: Task, track: Track, rng: np.random.Generator) -> Lesson:
        looks = [
            self._draw_stray_look(track, rng) or _draw_wrong_look(task, rng)
            for _ in range(rng.integers(1, self.max_calls + 1))
        ]
        return self._look_and_answer(task, looks, rng, last_call_weight=0.0)

    def _look_and_answer(
        self, task: Task, looks: Sequence[Look], rng: np.random.Generator, *, last_call_weight: float
    ) -> Lesson:
        """Return a lesson of calls, and the answer that the last one leads to."""
        writer = self._start_writer(task)
        for number, look in enumerate(looks, 1):
            writer.add_call(look, weight=last_call_weight if number == len(looks) else 0.0)
            writer.add_observation(look)
        last = looks[-1]
        if last.choice is None:
            writer.add_answer(int(rng.integers(1, 3)), last.thought, choice_weight=GUESS_WEIGHT)
        else:
            writer.add_answer(last.choice, last.thought)
        return writer.lesson()

    def _answer_at_once(self, task: Task, track: Track, rng: np.random.Generator) -> Lesson:
        return self._answer(task, rng, tools=True, look=False)

    def _answer_without_tools(self, task: Task, track: Track, rng: np.random.Generator) -> Lesson:
        """Return a lesson without tools: even a thought of looking ends in an answer."""
        return self._answer(task, rng, tools=False, look=rng.random() < 0.5)

    def _answer(self, task: Task, rng: np.random.Generator, *, tools: bool, look: bool) -> Lesson:
        """What the prompt shows, or a guess, after a thought that fits or one of looking."""
        writer = self._start_writer(task, tools=tools)
        guess = int(rng.integers(1, 3))
        thought = phrases.LOOK if look else task.immediate_thought or phrases.UNSURE
        thought_weight = 0.0 if look else 1.0
        if task.immediate_thought is None:
            writer.add_answer(guess, thought, thought_weight=thought_weight, choice_weight=GUESS_WEIGHT)
        else:
            writer.add_answer(int(task.label), thought, thought_weight=thought_weight)
        return writer.lesson()

    def _start_writer(self, task: Task, *, tools: bool = True) -> "_Writer":
        view = task.view
        return _Writer(
            self,
            self.prompt_ids(tasks.request(task), image=view is not None, tools=tools),
            [] if view is None else [view],
        )

    def _draw_stray_look(self, track: Track, rng: np.random.Generator) -> Look | None:
        """Return a call of another track's tool, or mostly None."""
        others = misfits(self.tracks, track)
        if not others or rng.random() >= STRAY:
            return None
        return others[rng.integers(len(others))].stray_look(rng)

    @functools.cache  # noqa: B019 (one teacher lives as long as the training)
    def prompt_ids(self, request: str, *, image: bool, tools: bool) -> tuple[int, ...]:
        """Return the prompt's ids, which depend on these three arguments only."""
        parts: tuple[str | ImagePart, ...] = (request,)
        if image:
            parts = (ImagePart(name="original_image"), *parts)
        offered = tuple(self.template.schemas) if tools else ()
        sample = Sample(
            id="lesson", track="lesson", messages=(Message(role="user", parts=parts),), label="1", tools=offered
        )
        return self.template.prompt_ids(sample, self._blanks)

    @functools.cache  # noqa: B019
    def question_ids(self) -> tuple[int, ...]:
        """Return the ids of a prompt up to its question, then one id for the question about each colour."""
        requests = [phrases.request(scenes.question(color), scenes.CLASSES[:2]) for color in scenes.COLORS]
        prompts = [self.prompt_ids(request, image=True, tools=True) for request in requests]
        start = next(place for place, ids in enumerate(zip(*prompts, strict=True)) if len(set(ids)) > 1)
        return (*prompts[0][:start], *(ids[start] for ids in prompts))

    @functools.cache  # noqa: B019
    def argument_parts(self) -> Mapping[int, Part]:
        """Return the part of each token id that is an argument of a call by itself."""
        encode = self.template.tokenizer.convert_tokens_to_ids
        return {
            encode(word): "free" if word in track.free_words() else "argument"
            for track in self.tracks
            for word in track.words()
        }

    @functools.cache  # noqa: B019
    def observation_ids(self, name: str | None, text: str) -> tuple[int, ...]:
        """Return the ids between a call and the next turn."""
        parts = (text,) if name is None else (f"{name}: ", ImagePart(name=name), text)
        return self.template.observation_ids(Message(role="tool", parts=parts), self._blanks, turn_ended=False)

    @functools.cache  # noqa: B019
    def turn_ids(self, text: str, ended: bool) -> tuple[int, ...]:
        """Return the ids of a turn."""
        return self.template.turn_ids(text, ended=ended)


class _Writer:
    """Builds one lesson, turn by turn."""

    def __init__(self, teacher: Teacher, prompt: tuple[int, ...], views: Sequence[np.ndarray] = ()) -> None:
        self._teacher = teacher
        self._ids: list[int] = list(prompt)
        self._weights: list[float] = [0.0] * len(prompt)
        self._parts: list[Part] = ["given"] * len(prompt)
        self._views = list(views)
        self._num_calls = self._num_observations = 0

    def add_call(self, look: Look, *, weight: float) -> None:
        ids = self._teacher.turn_ids(phrases.call_turn(look.tool, look.arguments), False)
        parts = [self._teacher.argument_parts().get(id_, "form") for id_ in ids]
        self._add(ids, [weight, 0.0, *[weight] * (len(ids) - 2)], parts)  # the thought comes after its tag: id 1
        self._num_calls += 1

    def add_observation(self, look: Look) -> None:
        lines = [look.text] if look.text else []
        if self._num_calls == self._teacher.max_calls:
            lines.append(phrases.NOTICE)
        name = None
        if look.view is not None:
            self._num_observations += 1
            name = f"observation_{self._num_observations}"
            self._views.append(look.view)
        ids = self._teacher.observation_ids(name, "\n".join(lines))
        self._add(ids, [0.0] * len(ids), ["given"] * len(ids))

    def add_answer(
        self, choice: int, thought: str, *, thought_weight: float = 1.0, choice_weight: float = CHOICE_WEIGHT
    ) -> None:
        ids = self._teacher.turn_ids(phrases.answer_turn(choice, thought), True)
        weights: list[float] = [1.0] * len(ids)
        parts: list[Part] = ["form"] * len(ids)
        close = len(ids) - 6  # </think> <answer> verdict CHOICE verdict </answer> end: the thought ends before these
        weights[1:close], parts[1:close] = [thought_weight] * (close - 1), ["thought"] * (close - 1)
        weights[len(ids) - 4], parts[len(ids) - 4] = choice_weight, "choice"
        self._add(ids, weights, parts)

    def lesson(self) -> Lesson:
        return Lesson(token_ids=self._ids, weights=self._weights, parts=self._parts, views=self._views)

    def _add(self, ids: tuple[int, ...], weights: list[float], parts: list[Part]) -> None:
        self._ids += ids
        self._weights += weights
        self._parts += parts


def _draw_wrong_look(task: Task, rng: np.random.Generator) -> Look:
    """Return a look at a wrong place: half the time at one that resembles the right one."""
    return task.wrong_look(rng, near=rng.random() < 0.5)
