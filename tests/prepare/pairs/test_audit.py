"""Answers that can be told apart without reading them: found, and left out until they cannot."""

import random

import pytest

from arm_rl.prepare.pairs.audit import MIN_ROWS, audit, balance
from arm_rl.prepare.pairs.choices import AnsweredQuestion, arrange
from tests.prepare.pairs.made_questions import question

WORDS = [
    "the",
    "of",
    "a",
    "bird",
    "wire",
    "tree",
    "red",
    "blue",
    "two",
    "three",
    "sits",
    "stands",
    "near",
    "far",
    "left",
    "right",
]


def sentence(rng, length):
    return " ".join(rng.choice(WORDS) for _ in range(length)).capitalize() + "."


def answered(number, longest, seed=0):
    """Questions with three flawed answers; the right one is made the longest in this share of them, else its length is anyone's."""
    rng = random.Random(seed)
    made = []
    for index in range(number):
        lengths = [rng.randint(5, 25) for _ in range(4)]
        if rng.random() < longest:
            lengths.sort(reverse=True)
        right, *flawed = [sentence(rng, length) for length in lengths]
        made.append(AnsweredQuestion(question=question(index, answer=right), flawed=tuple(flawed)))
    return made


def arranged(kind, seed=0):
    return lambda left: arrange(kind, left, seed=seed, num_answers=4)


@pytest.mark.parametrize("kind", ["pair", "point", "rank"])
def test_answers_of_one_kind_are_at_chance(kind):
    found = audit(arranged(kind)(answered(300, 0)))
    assert found.at_chance
    assert found.chance == {"pair": 0.5, "point": 0.5, "rank": 0.25}[kind]
    assert len(found.margins) == 300


@pytest.mark.parametrize(("kind", "least"), [("pair", 0.8), ("point", 0.55), ("rank", 0.7)])
def test_longer_right_answers_are_found(kind, least):
    found = audit(arranged(kind)(answered(300, 0.8)))
    assert not found.at_chance
    assert found.accuracy > least
    assert found.longest is None or found.longest > 0.7


def test_the_form_alone_is_found_too():
    stripped = [
        AnsweredQuestion(question=one.question, flawed=tuple(text.rstrip(".") for text in one.flawed))
        for one in answered(100, 0)
    ]
    found = audit(arranged("pair")(stripped))
    assert found.accuracy > 0.95
    assert not found.at_chance


@pytest.mark.parametrize("kind", ["pair", "rank"])
def test_what_gives_itself_away_is_left_out_until_nothing_does(kind):
    choices, found = balance(answered(240, 0.4), arranged(kind), max_dropped=0.9)
    assert found.at_chance
    assert 80 < len(choices) < 240
    counts = list(found.labels.values())
    assert max(counts) - min(counts) <= 1
    if kind == "pair":
        assert 0.4 < found.longest < 0.6


def test_no_more_is_left_out_than_allowed():
    choices, found = balance(answered(200, 1.0), arranged("pair"), max_dropped=0.1)
    assert len(choices) == 180
    assert not found.at_chance


def test_few_rows_tell_nothing():
    found = audit(arranged("pair")(answered(MIN_ROWS - 1, 1.0)))
    assert found.accuracy is None
    assert found.at_chance


@pytest.mark.parametrize(("kind", "number"), [("pair", 2), ("rank", 4)])
def test_places_are_balanced_in_every_track_and_follow_from_the_seed(kind, number):
    made = [
        AnsweredQuestion(question=question(index, track=f"t{index % 3}"), flawed=("a", "b", "c"))
        for index in range(101)
    ]
    choices = arranged(kind)(made)
    for track in ("t0", "t1", "t2"):
        labels = [choice.label for choice in choices if choice.question.track == track]
        counts = [labels.count(str(place + 1)) for place in range(number)]
        assert max(counts) - min(counts) <= 1
    assert all(choice.answers[int(choice.label) - 1] == choice.question.answer for choice in choices)
    assert choices == arranged(kind)(made)
    assert choices != arranged(kind, seed=1)(made)
