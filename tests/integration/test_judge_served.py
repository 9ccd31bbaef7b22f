"""The judge on a vLLM server of its own: the real thing from a folder to a verdict."""

import pytest

from arm_rl.core.config import SessionConfig, TemplateConfig
from arm_rl.export.judge_config import JudgeSetup
from arm_rl.judge.judge import Judge
from tests.support.scripted import noise


@pytest.mark.ray  # as slow as these
def test_a_folder_becomes_a_judge(judge_folder):
    limits = SessionConfig(max_turns=3, max_prompt_tokens=256, max_response_tokens=96)
    template = TemplateConfig(system_prompt="configs/prompts/digits.txt")
    setup = JudgeSetup(tools=("configs/tools/digits.yaml",), template=template, limits=limits, max_model_len=384)
    with Judge.load(judge_folder, setup=setup, use_gpu=False, votes=2) as judge:
        verdict = judge.compare("Which digit is on the red tile?", [noise()], ["4", "7"])
    turns = [turn for trajectory in verdict.trajectories for turn in trajectory.turns]
    assert len(verdict.opinions) == 2
    assert all(turn.token_ids and len(turn.token_ids) == len(turn.logprobs) for turn in turns)
    assert all(logprob <= 0 for turn in turns for logprob in turn.logprobs)
