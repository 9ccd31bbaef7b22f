"""Advice where something does not fit: every piece of it is planned, and fits; and the longest prompts that fit."""

import pytest

from arm_rl.core.config_file import load_saved
from arm_rl.plan.advice import advise, most_prompt_tokens
from arm_rl.plan.fit import memory_of
from arm_rl.plan.hardware import GPUS, Cluster
from arm_rl.plan.modelled import Setting
from arm_rl.plan.shapes import ModelShape
from arm_rl.plan.workload import Workload

TIGHT = (
    ("arm_thinker_stage2", "Qwen2.5-VL-7B", "a100-40g", 1, 8),
    ("arm_thinker_stage2", "Qwen2.5-VL-32B", "h100", 1, 8),
    ("arm_thinker_stage2_async", "Qwen2.5-VL-7B", "l40s", 1, 4),
    ("arm_thinker_sft", "Qwen2.5-VL-7B", "l4", 1, 8),
    ("recipes/qwen2_5_vl_7b_lora_1x80gb", "Qwen2.5-VL-7B", "l40s", 1, 1),
)


def make(name, model="Qwen2.5-VL-7B", gpu="h200", nodes=2, gpus=8, overrides=()) -> Setting:
    return Setting(
        config=load_saved(f"configs/{name}.yaml", [f"model.path={model}", *overrides]),
        shape=ModelShape.of(model),
        cluster=Cluster(gpu=GPUS[gpu], nodes=nodes, gpus_per_node=gpus),
        workload=Workload(),
    )


@pytest.mark.parametrize("case", TIGHT, ids=[" ".join(map(str, case)) for case in TIGHT])
def test_advice_fits(case):
    setting = make(*case)
    assert memory_of(setting).problems
    advice = advise(setting)
    assert advice
    for changes in advice:
        assert memory_of(make(*case, overrides=changes)).problems == (), changes  # type: ignore[misc]


def test_what_nothing_helps_gets_no_advice():
    assert advise(make("arm_thinker_stage2", "Qwen2.5-VL-72B", "l4", 1, 1)) == []


def test_the_longest_prompts_that_fit_do_and_longer_ones_do_not():
    setting = make("recipes/qwen2_5_vl_7b_full_8x80gb", gpu="h100", nodes=1)
    most = most_prompt_tokens(setting)
    response = setting.train.session.max_response_tokens

    def problems(tokens):
        keys = [f"session.max_prompt_tokens={tokens}", f"rollout.max_model_len={tokens + response}"]
        return memory_of(make("recipes/qwen2_5_vl_7b_full_8x80gb", gpu="h100", nodes=1, overrides=keys)).problems

    assert most > setting.train.session.max_prompt_tokens
    assert problems(most) == ()
    assert problems(most + 256)
    assert most_prompt_tokens(make("arm_thinker_stage2", "Qwen2.5-VL-72B", "l4", 1, 1)) == 0


def test_an_engines_cache_is_counted_at_its_least():
    parts = memory_of(make("arm_thinker_stage2")).engine
    assert parts["variance"] == int(0.25 * (parts["activations"] + parts["graphs"] + parts["context"]))
