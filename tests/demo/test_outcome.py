"""What a finished demo says of its numbers."""

import pytest

from arm_rl.core import trajectory_file
from arm_rl.demo.dataset import make_preference
from arm_rl.demo.demos import DIGITS, THREE_TRACKS
from arm_rl.demo.outcome import (
    Mark,
    accuracy_by_pair,
    describe_marks,
    describe_outcome,
    describe_skills,
    mark_entries,
)
from tests.support.trajectories import make_sample, make_scored, make_turn

TRACKS = [track.name for track in THREE_TRACKS.tracks]


def stages(cold_start: float = 0.6, trained: float = 0.98, without: float = 0.51, **others: float) -> dict:
    shown = {"num_samples": 480.0, "accuracy_without_tools": without}
    return {
        "sft": {"accuracy": cold_start, "tool_rate": 0.4, "box_hit": 0.6, **shown},
        "stage2": {
            "accuracy": trained,
            "tool_rate": 1.0,
            "box_hit": 0.99,
            "worst_pair_accuracy": 0.93,
            **shown,
            **others,
        },
    }


def test_the_sentences_are_of_the_numbers():
    assert list(describe_outcome(stages(), ["digits"])) == [
        "The tool alone lifts accuracy from 0.51 to 0.98: the same judge, without and with, on 480 held-out samples.",
        "From SFT to stage 2, accuracy rises from 0.60 to 0.98, the share of samples with a tool call rises from 0.40 "
        "to 1.00, and the share of boxes on the right place rises from 0.60 to 0.99.",
    ]


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ({"trained": 0.4}, "The tool alone lowers accuracy from 0.51 to 0.40"),
        ({"trained": 0.515}, "Tools do not change accuracy (0.51 without, 0.52 with)"),
        ({"cold_start": 0.98}, "accuracy stays at 0.98"),
        ({"cold_start": 0.99, "trained": 0.9}, "accuracy falls from 0.99 to 0.90"),
    ],
)
def test_a_gain_that_did_not_come_is_not_claimed(numbers, sentence):
    assert sentence in " ".join(describe_outcome(stages(**numbers), ["digits"]))


def test_each_of_several_tracks_is_named():
    trained = {"accuracy/digits": 0.95, "accuracy/pages": 0.6, "accuracy/texts": 0.97}
    first, *_, last = describe_outcome(stages(**trained), TRACKS)
    assert first.startswith("The tools alone lift accuracy from 0.51 to 0.98")
    assert last.startswith("Accuracy by track: digits rises from 0.00 to 0.95, pages rises from 0.00 to 0.60, ")


def test_marks_that_are_met_are_one_line():
    assert list(describe_marks(DIGITS.marks, stages())) == ["All 4 marks are met."]
    assert list(describe_marks((), stages())) == []
    assert all(entry["met"] for entry in mark_entries(DIGITS.marks, stages()))


@pytest.mark.parametrize(
    ("numbers", "warning"),
    [
        ({"trained": 0.949}, "accuracy after stage 2 is 0.949; at least 0.95 is expected"),
        ({"without": 0.43}, "accuracy after stage 2 without tools is 0.430; 0.44 to 0.56 is expected"),
        ({"without": 0.57}, "accuracy after stage 2 without tools is 0.570; 0.44 to 0.56 is expected"),
        ({"cold_start": 0.71}, "accuracy after SFT is 0.710; at most 0.70 is expected"),
    ],
)
def test_a_missed_mark_is_a_line_of_its_own(numbers, warning):
    assert list(describe_marks(DIGITS.marks, stages(**numbers))) == [f"WARNING: mark missed: {warning}"]
    assert [entry["met"] for entry in mark_entries(DIGITS.marks, stages(**numbers))].count(False) == 1


def test_each_track_has_its_mark_and_a_track_that_was_not_measured_misses_it():
    summary = stages(**{"accuracy/digits": 0.93, "accuracy/pages": 0.929})
    assert list(describe_marks(THREE_TRACKS.marks, summary)) == [
        "WARNING: mark missed: accuracy on pages after stage 2 is 0.929; at least 0.93 is expected",
        "WARNING: mark missed: accuracy on texts after stage 2 was not measured; at least 0.93 is expected",
    ]
    assert mark_entries(THREE_TRACKS.marks, summary)[2] == {
        "title": "accuracy on texts after stage 2",
        "at_least": 0.93,
        "at_most": 1.0,
        "value": None,
        "met": False,
    }


def test_bounds_belong_to_the_mark():
    mark = Mark(title="t", stage="stage2", metric="accuracy", at_least=0.98, at_most=0.98)
    assert mark.is_met(stages())
    assert not mark.is_met({})


def test_accuracy_is_counted_for_each_pair_of_claims_in_its_order(tmp_path):
    scored, samples, expected = [], {}, {}
    for index in range(48):
        preference = make_preference(THREE_TRACKS.tracks[0], 0, "held_out", index)
        claims = tuple(map(int, preference.texts))
        samples[preference.id] = make_sample(preference.id)
        scored.append(make_scored(make_turn("<answer>"), correct=claims != (4, 7), sample_id=preference.id))
        expected[f"{claims[0]} or {claims[1]}"] = 0.0 if claims == (4, 7) else 1.0
    trajectory_file.write(tmp_path / "a.parquet", scored, samples, {})
    assert accuracy_by_pair(tmp_path / "a.parquet") == expected
    assert len(expected) == 12


def test_a_skill_below_its_mark_is_a_warning():
    entries = {
        "calls": {"value": 1.0, "mark": 0.98, "reached": True},
        "answers": {"value": 0.51, "mark": 0.95, "reached": False},
    }
    (line,) = describe_skills(entries)
    assert line.endswith("answers is 0.510; at least 0.95 is expected")
