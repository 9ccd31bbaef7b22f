"""Rewards by the number of calls, and by what the group shows; and what a session is told of its group."""

import pytest

from actors.scorer import score_group
from arm_rl.core.config import RewardConfig
from arm_rl.core.parsing import TOOL_FORMATS
from rewards import REWARDS
from rewards.need import need_of
from rewards.outcome import GroupFacts, Outcome
from tests.trajectories import make_sample, make_scored, make_turn, zoom_event

RIGHT = "<think>It is a 4.</think><answer>Overall Judgment: Answer 1 is better.</answer>"
WRONG = "<think>It is a 7.</think><answer>Overall Judgment: Answer 2 is better.</answer>"
CALL = '<think>hm</think><tool_call>{"name": "image_zoom_in_tool", "arguments": {}}</tool_call>'


def outcome(*, correct: bool, calls: int = 0, successes: int | None = None, form: bool = True, group: GroupFacts | None = None) -> Outcome:
    good = calls if successes is None else successes
    facts = {"format_ok": form, "correct": correct, "num_calls": calls, "num_successful_calls": good, "num_fitting_calls": calls}
    return Outcome(**facts, group=group or GroupFacts())


def total(name: str, facts: Outcome) -> float:
    return sum(REWARDS[name](facts, RewardConfig()).values())


@pytest.mark.parametrize(
    ("facts", "value"),
    [
        (outcome(correct=True), 1.0),
        (outcome(correct=True, calls=1), 1.5),
        (outcome(correct=True, calls=3), 2.5),
        (outcome(correct=True, calls=3, successes=2), 2.0),
        (outcome(correct=False, calls=2), 1.3),
        (outcome(correct=False), 0.3),
        (outcome(correct=True, calls=2, form=False), 0.0),
    ],
)
def test_a_bonus_for_each_call(facts, value):
    assert total("call_bonus", facts) == pytest.approx(value)


@pytest.mark.parametrize(
    ("direct", "right", "needed"),
    [
        (0, 0, 1.0),  # nothing is known: the tool is needed
        (1, 0, 1.0),
        (1, 1, 2 / 3),  # 2 of 3
        (2, 1, 1.0),  # a guess
        (2, 2, 1 / 2),  # 3 of 4
        (7, 4, 8 / 9),  # 5 of 9
        (7, 5, 2 / 3),
        (8, 8, 1 / 5),
    ],
)
def test_need_is_read_from_direct_answers(direct, right, needed):
    assert need_of(GroupFacts(num_direct=direct, num_direct_right=right, num_calling=8 - direct)) == pytest.approx(needed)


NONE, SURE, ONE = GroupFacts(num_calling=8), GroupFacts(num_direct=8, num_direct_right=8), GroupFacts(num_direct=1, num_direct_right=1)


@pytest.mark.parametrize(
    ("facts", "values"),
    [
        ({"correct": True, "calls": 1}, (1.5, 1.1, 1 + 1 / 3)),
        ({"correct": True, "calls": 1, "successes": 0}, (1.0, 1.0, 1.0)),
        ({"correct": True}, (1.0, 1.4, 1 + 0.5 / 3)),
        ({"correct": False, "calls": 1}, (0.4, 0.32, 0.3 + 0.2 / 3)),
        ({"correct": False}, (0.3, 0.3, 0.3)),
        ({"correct": True, "form": False}, (0.0, 0.0, 0.0)),
    ],
)
def test_the_bonus_goes_where_the_group_shows_the_need(facts, values):
    found = tuple(total("need", outcome(**facts, group=group)) for group in (NONE, SURE, ONE))
    assert found == pytest.approx(values)
    assert found[0] == pytest.approx(total("stage2", outcome(**facts))), "with no direct answer: the paper's reward"


def test_a_scorer_tells_each_session_of_its_group(monkeypatch):
    """Direct answers, calls that succeeded, calls that did not, a broken form and a broken session."""
    group = [
        make_scored(make_turn(RIGHT)),
        make_scored(make_turn(WRONG)),
        make_scored(make_turn(RIGHT.replace("<think>It is a 4.</think>", ""))),
        make_scored(make_turn(CALL, zoom_event()), make_turn(RIGHT)),
        make_scored(make_turn(CALL, zoom_event(status="failed")), make_turn(RIGHT)),
        make_scored(end="aborted"),
    ]
    seen = []
    monkeypatch.setitem(REWARDS, "seen", lambda facts, values: seen.append(facts.group) or {})
    score_group([one.trajectory for one in group], make_sample(), RewardConfig(name="seen"), TOOL_FORMATS["hermes"])
    assert seen == [GroupFacts(num_direct=3, num_direct_right=1, num_calling=1, num_calling_right=1)] * 5
    parts = score_group([one.trajectory for one in group[:4]], make_sample(), RewardConfig(name="need"), TOOL_FORMATS["hermes"])
    assert [one.reward for one in parts] == pytest.approx([1.0, 0.3, 0.0, 1.5]), "one of three direct answers is right"
