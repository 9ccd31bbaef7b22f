"""The scorer: one result for each trajectory, in order, whatever happens to one of them."""

import dataclasses
import pickle

from actors.scorer import Scorer
from arm_rl.core.config import RewardConfig
from arm_rl.core.parsing import TOOL_FORMATS
from rewards.outcome import Outcome
from tests.support.trajectories import make_sample, make_turn, zoom_event
from tests.support.trajectories import make_scored as scored

RIGHT = "<think>It is a 4.</think><answer>Overall Judgment: Answer 1 is better.</answer>"
CALL = '<think>hm</think><tool_call>{"name": "image_zoom_in_tool", "arguments": {}}</tool_call>'


def test_a_group_is_scored_in_order():
    scorer = Scorer(RewardConfig(), "hermes")
    group = [
        scored(make_turn(RIGHT), index=0),
        scored(make_turn(CALL, zoom_event()), make_turn(RIGHT), index=1),
        scored(make_turn("nonsense"), index=2),
        scored(index=3, end="aborted"),
    ]
    results = scorer.score(make_sample(), [one.trajectory for one in group])
    assert [one.reward for one in results] == [1.0, 1.5, 0, None]
    whole = [result.to_scored_trajectory(one.trajectory) for result, one in zip(results, group, strict=True)]
    assert [one.trajectory.index for one in whole] == [0, 1, 2, 3]
    assert (whole[1].reward, whole[1].parts, whole[1].correct, whole[1].format_ok) == (
        1.5,
        results[1].parts,
        True,
        True,
    )
    assert sum(results[1].parts.values()) == 1.5
    wrong = dataclasses.replace(make_sample(), label="2")
    assert [one.reward for one in scorer.score(wrong, [group[0].trajectory])] == [0.3]
    assert pickle.loads(pickle.dumps(results)) == results, "it travels as it is"


def test_an_event_counts_only_with_its_status():
    """Turns as if a call had been made, without the environment's word for it."""
    scorer = Scorer(RewardConfig(), "hermes")
    nothing_happened = scored(make_turn(CALL), make_turn(RIGHT)).trajectory
    failed = scored(make_turn(CALL, zoom_event(status="failed")), make_turn(RIGHT)).trajectory
    assert [one.reward for one in scorer.score(make_sample(), [nothing_happened, failed])] == [0, 1.0]
    facts = [Outcome.of(one, make_sample(), TOOL_FORMATS["hermes"]) for one in (nothing_happened, failed)]
    assert [(one.num_calls, one.num_successful_calls) for one in facts] == [(0, 0), (1, 0)]
