"""What a track of the demos is made of: tasks, and what a call shows someone who has one. No pixels of its own, no wording of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image as PILImage

from arm_rl.demo import phrases
from arm_rl.demo.scenes import Box, Split


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """One call, what comes back, and what someone with the task makes of it."""

    tool: str
    arguments: Mapping[str, Any]
    view: np.ndarray | None = None  # what comes back: an image as the judge sees it, (VIEW, VIEW, 3), uint8 ...
    text: str = ""  # ... and a text
    thought: str  # of someone who has seen it
    choice: int | None = None  # the answer that it speaks for; None: it tells nothing


class Task(Protocol):
    """One thing to judge: a question, two claimed answers, and how one could find out."""

    @property
    def key(self) -> tuple[int, ...]:
        """Numbers that no other task of the track has: seeds of what is random about it."""

    @property
    def question(self) -> str:
        """The question, without the claimed answers."""

    @property
    def claims(self) -> tuple[object, object]:
        """What the two answers claim."""

    @property
    def label(self) -> str:
        """The answer that is right: 1 or 2."""

    @property
    def view(self) -> np.ndarray | None:
        """The prompt's image as the judge sees it, (VIEW, VIEW, 3), uint8; None where there is none."""

    @property
    def image(self) -> PILImage.Image | None:
        """The prompt's image itself."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of the session's memory."""

    @property
    def target_box(self) -> Box | None:
        """Where in the image the evidence is."""

    @property
    def immediate_thought(self) -> str | None:
        """Thought of a judge to whom the prompt shows the answer; None if it does not."""

    def right_look(self, rng: np.random.Generator) -> Look:
        """Return a call of the right tool at the right place."""

    def wrong_look(self, rng: np.random.Generator, *, near: bool) -> Look:
        """Return a call of the right tool at a wrong place: one that resembles the right one, or any other."""


class Misfit(Protocol):
    """A tool that does not fit the task at hand."""

    tool: str

    def stray_look(self, rng: np.random.Generator) -> Look:
        """Return a call by a judge whose task the tool does not fit: the call tells nothing."""

    def turns(self) -> list[str]:
        """Its calls: for the tokenizer."""


class Track(Misfit, Protocol):
    """A kind of task, and the tool that fits it. It fits no other track."""

    name: str
    ability: str  # what it asks of a judge

    def task(self, seed: int, split: Split, index: int) -> Task:
        """The task at `index` of a split. Equal arguments give equal tasks; labels are balanced."""

    def prepare(self, folder: Path, seed: int) -> None:
        """Writes what the tool reads, below `folder`."""

    def requests(self) -> list[str]:
        """Requests in which every part of them stands: for the tokenizer, as all that follows."""

    def observations(self) -> list[str]:
        """Texts that its tool gives back."""

    def words(self) -> Sequence[str]:
        """Numbers and names that are tokens of their own."""

    def free_words(self) -> Sequence[str]:
        """Return the words among `words` of which a right call may take any."""


def request(task: Task) -> str:
    """The user's text."""
    return phrases.request(task.question, task.claims)
