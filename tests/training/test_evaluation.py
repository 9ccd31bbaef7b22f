"""What each pass of an evaluation asks: the samples as they are, without tools, and with a beginning written for the judge."""

from types import SimpleNamespace

from arm_rl.core.config import EvaluationConfig
from arm_rl.training.evaluation import evaluate
from tests.support.trajectories import make_sample, make_scored, make_turn, zoom_event

ANSWER = make_turn("<think>t</think><answer>Overall Judgment: Answer 1 is better.</answer>")


class Runner:
    """Sessions that call where they are offered a tool, and are right only then."""

    def __init__(self) -> None:
        self.asked, self.recorded = {}, []

    async def run_all(self, samples, group_id, *, size, temperature):
        self.asked[group_id] = [(sample.tools, sample.prefill) for sample in samples]
        turns = [(make_turn("call", zoom_event()), ANSWER) if sample.tools else (ANSWER,) for sample in samples]
        return [SimpleNamespace(scored=[make_scored(*one, correct=len(one) > 1)]) for one in turns]

    def record(self, stage, step, groups):
        self.recorded.append((stage, step, len(groups)))


async def test_each_pass_asks_in_its_own_way():
    runner, sample = Runner(), make_sample()
    config = EvaluationConfig(without_tools=True, prefill_without_tools="<think>it", prefill="<think>look")
    metrics = await evaluate(runner, [sample], config, stage="sft", step=3)
    assert runner.asked == {
        "sft-evaluation/3": [(sample.tools, "")],
        "sft-evaluation/3/without-tools": [((), "<think>it")],
        "sft-evaluation/3/with-prefill": [(sample.tools, "<think>look")],
    }
    assert (metrics["accuracy"], metrics["accuracy_without_tools"], metrics["accuracy_with_prefill"]) == (1.0, 0.0, 1.0)
    assert metrics["tool_calls_with_prefill"] == 1.0
    assert "tool_calls_without_tools" not in metrics
    assert runner.recorded == [("sft-evaluation", 3, 1)]
