"""Where each design leads: the findings in their short form, on a judge of a handful of numbers."""

import numpy as np
import pytest

from arm_rl.experiments.findings.designs import DESIGNS
from arm_rl.experiments.findings.setting import STAGE1, STAGE1_STEPS, STEPS
from tests.experiments.findings.toy_judge import ENGRAVED, PLAIN, ToyJudge


@pytest.fixture(scope="module")
def calls() -> dict[str, tuple[float, float]]:
    """Calls a sample after a few steps of each design, where the tool is needed and where it is not."""
    found = {}
    for name, design in DESIGNS.items():
        judge = ToyJudge(np.random.default_rng(0))
        if design.staged:
            judge.train(STAGE1, STAGE1_STEPS)
        judge.train(design.reward, STEPS - STAGE1_STEPS * design.staged)
        found[name] = (judge.judged(ENGRAVED)[1], judge.judged(PLAIN)[1])
    return found


def test_stage_1_alone_teaches_to_call():
    assert ToyJudge(np.random.default_rng(0)).train(STAGE1, STAGE1_STEPS).judged(PLAIN)[1] > 0.9


def test_accuracy_alone_calls_least_and_late(calls):
    early = ToyJudge(np.random.default_rng(0)).train("accuracy", 15).judged(ENGRAVED)[1]
    assert early < ToyJudge(np.random.default_rng(0)).train("stage2", 15).judged(ENGRAVED)[1]
    assert sum(calls["accuracy"]) < sum(calls["accuracy_staged"])


def test_a_bonus_a_call_runs_away(calls):
    assert min(calls["call_bonus"]) > 2
    assert max(calls["sample_bonus"]) < 2, "one call earns the whole bonus"


@pytest.mark.parametrize("name", ["adaptive", "adaptive_staged"])
def test_the_adaptive_reward_calls_once_whether_or_not_it_must(calls, name):
    assert all(0.8 < one < 1.6 for one in calls[name])
