"""The track `texts`: which of two texts has so many words. They lie in the session's memory and are not in the prompt: a checker counts.

(They stand for texts that are too long to be counted in the head.) Either text may be asked about: where one does not fit, the other does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from arm_rl.demo import phrases, scenes
from arm_rl.demo.tasks import Look

LOWER_BOUNDS = (10, 20, 30, 40, 50)
WIDTH = 10  # from the lower to the upper bound
NAMES = ("text_0", "text_1")  # in the session's memory
SENTENCE = 7  # words, but for the last one
_WORDS = (
    "a",
    "and",
    "bird",
    "boat",
    "cloud",
    "far",
    "field",
    "green",
    "house",
    "lamp",
    "moon",
    "old",
    "rain",
    "river",
    "sees",
    "the",
    "wind",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TextsTask:
    """Two texts and the question about their length."""

    key: tuple[int, ...]  # seed, stream and index
    lower: int  # bound that the better text keeps
    counts: tuple[int, int]  # words of each text
    label: str

    @property
    def question(self) -> str:
        """Which text is so long."""
        return question(self.lower)

    @property
    def claims(self) -> tuple[str, str]:
        """The texts' names."""
        return NAMES

    @property
    def view(self) -> None:
        """The prompt shows nothing."""

    @property
    def image(self) -> None:
        """The prompt shows nothing."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The two texts."""
        rng = np.random.default_rng([*self.key, 33])
        return tuple(_write_text(count, rng) for count in self.counts)

    @property
    def target_box(self) -> None:
        """There is no image."""

    @property
    def immediate_thought(self) -> None:
        """None: the prompt shows nothing."""

    def right_look(self, rng: np.random.Generator) -> Look:
        """Return a check of the asked bounds, on either text."""
        return self._look(int(rng.integers(2)), self.lower)

    def wrong_look(self, rng: np.random.Generator, *, near: bool) -> Look:
        """Return a check of other bounds: the next ones, or any."""
        others = [
            lower for lower in LOWER_BOUNDS if lower != self.lower and (not near or abs(lower - self.lower) == WIDTH)
        ]
        return self._look(int(rng.integers(2)), int(rng.choice(others)))

    def _look(self, text: int, lower: int) -> Look:
        """Whoever sees a result believes that it was for the asked bounds."""
        fits = lower <= self.counts[text] <= lower + WIDTH
        better = text if fits else 1 - text
        thought = phrases.conclusion(NAMES[better])
        return Look(
            tool=Texts.tool, arguments=arguments(text, lower), text=result(fits), thought=thought, choice=better + 1
        )


class Texts:
    """Pairs of texts of different length."""

    name = "texts"
    ability = "instruction following"
    tool = "check_whether_response_word_count_in_range"

    def task(self, seed: int, split: scenes.Split, index: int) -> TextsTask:
        """Every 10 tasks in a row ask for all bounds, and for either text."""
        stream = ("train", "held_out", "pretrain").index(split)
        block, number = divmod(index, 2 * len(LOWER_BOUNDS))
        place, better = divmod(
            int(np.random.default_rng([seed, stream, 31, block]).permutation(2 * len(LOWER_BOUNDS))[number]), 2
        )
        rng = np.random.default_rng([seed, stream, 30, index])
        lower = LOWER_BOUNDS[place]
        other = int(rng.choice([bound for bound in LOWER_BOUNDS if bound != lower]))
        fitting, not_fitting = (int(bound + rng.integers(1, WIDTH)) for bound in (lower, other))
        counts = (fitting, not_fitting) if better == 0 else (not_fitting, fitting)
        return TextsTask(key=(seed, stream, index), lower=lower, counts=counts, label=str(better + 1))

    def stray_look(self, rng: np.random.Generator) -> Look:
        """Return a check for one word, which is outside of all bounds."""
        called = arguments(int(rng.integers(2)), int(rng.choice(LOWER_BOUNDS)))
        return Look(tool=self.tool, arguments=called, text=result(False), thought=phrases.UNCLEAR)

    def prepare(self, folder: Path, seed: int) -> None:
        """The checker reads the session's texts only."""

    def requests(self) -> list[str]:
        """One: bounds are words."""
        return [phrases.request(question(10), NAMES)]

    def turns(self) -> list[str]:
        """A check."""
        return [phrases.call_turn(self.tool, arguments(0, 10))]

    def observations(self) -> list[str]:
        """Both results."""
        return [result(True), result(False)]

    def free_words(self) -> Sequence[str]:
        """Return the texts' names: either text may be checked."""
        return NAMES

    def words(self) -> Sequence[str]:
        """The texts' names, and bounds."""
        return [*NAMES, *(str(bound) for bound in (*LOWER_BOUNDS, LOWER_BOUNDS[-1] + WIDTH))]


class SentenceCheck:
    """A checker that resembles the track's own, with the same arguments. No text has so many sentences."""

    tool = "check_whether_response_sentence_number_in_range"

    def stray_look(self, rng: np.random.Generator) -> Look:
        """Return a check of one of the texts."""
        called = arguments(int(rng.integers(2)), int(rng.choice(LOWER_BOUNDS)))
        return Look(tool=self.tool, arguments=called, text=result(False), thought=phrases.UNCLEAR)

    def turns(self) -> list[str]:
        """A check."""
        return [phrases.call_turn(self.tool, arguments(0, 10))]


def question(lower: int) -> str:
    """The question for some bounds."""
    return f"Which text has {lower} to {lower + WIDTH} words?"


def arguments(text: int, lower: int) -> dict[str, object]:
    """Of a check."""
    return {"response": NAMES[text], "lower_bound": lower, "upper_bound": lower + WIDTH}


def result(fits: bool) -> str:
    """What the checker answers."""
    return f"Check result: {fits}"


def _write_text(num_words: int, rng: np.random.Generator) -> str:
    words = rng.choice(_WORDS, size=num_words).tolist()
    sentences = [" ".join(words[start : start + SENTENCE]) for start in range(0, num_words, SENTENCE)]
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)
