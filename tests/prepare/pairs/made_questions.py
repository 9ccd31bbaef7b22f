"""Questions to make pairs of, and a model that answers as it is asked to."""

import re
from pathlib import Path

from arm_rl.prepare.questions import Question
from tests.support.chat_server import text_of
from tests.support.scripted import noise

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def question(number: int, **changes) -> Question:
    """Its right answer is a sentence of its own; all are of a length."""
    values = {
        "id": f"q{number}",
        "track": "counting",
        "question": f"How many birds sit on wire {number}?",
        "answer": f"There are {NUMBERS[number % 10]} birds on wire number {number}.",
    }
    return Question(**{**values, **changes})


def image_file(folder: Path, seed: int = 0) -> Path:
    path = folder / f"scene-{seed}.png"
    noise(64, 64, seed=seed).save(path)
    return path


def right_answer(body) -> str:
    """The one in the request."""
    return re.search(r"Right answer: (.*?)\n\nWrite only", text_of(body), re.DOTALL)[1]


def other_number(body) -> str:
    """Says another number: a good flawed answer."""
    seed = body["seed"]
    right = right_answer(body)
    said = next(word for word in right.split() if word in NUMBERS)
    others = [word for word in NUMBERS if word != said]
    return f"<think>another one</think>\n<answer>{right.replace(said, others[seed % len(others)])}</answer>"
