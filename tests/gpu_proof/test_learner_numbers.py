"""The numbers that the proof hands to the plan: operations, memory and efficiencies in the plan's own terms."""

from dataclasses import replace
from pathlib import Path

import pytest

from arm_rl.core.compute_config import LearnerConfig
from arm_rl.gpu_proof import learner_process as process
from arm_rl.gpu_proof import throughput
from arm_rl.gpu_proof.learner_steps import ROWS, _row_tokens
from arm_rl.gpu_proof.samples import TokenIds, random_samples
from arm_rl.gpu_proof.scale import SCALES, Proof
from arm_rl.plan.hardware import GPUS, Cluster, Efficiency
from arm_rl.plan.shapes import ModelShape
from arm_rl.plan.step_time import EngineTimes, Passes

SHAPE = ModelShape.of("Qwen2.5-VL-7B")
IDEAL = EngineTimes(
    shape=SHAPE,
    cluster=Cluster(gpu=GPUS["h200"], nodes=1, gpus_per_node=1),
    efficiency=Efficiency(prefill=1.0, decode=1.0, engine_step_seconds=0.0),
)


def proof(device: str) -> Proof:
    return Proof(device=device, out=Path("out"), folder=Path("out/a"), seconds=60)


def test_operations_are_the_plans_with_recomputation_a_third_more():
    counted = Passes(tokens=1000, squares=1000.0**2, image_tokens=0, loss_tokens=0)
    config = LearnerConfig(freeze_vision=False)
    plain = process.operations(SHAPE, config, counted)
    assert plain == pytest.approx(6 * SHAPE.blocks * 1000, rel=0.1), "6 for each parameter and token, and attention"
    again = process.operations(SHAPE, replace(config, gradient_checkpointing=True), counted)
    assert again == pytest.approx(plain * 4 / 3)


def test_allocated_memory_leaves_out_what_torch_does_not_allocate():
    assert process.allocated({"weights": 5, "logits": 2, "context": 9, "fragments": 8, "host": 7}) == 7


@pytest.mark.parametrize("device", SCALES)
def test_a_micro_batch_of_the_first_section_is_full(device, judge_folder):
    """Rows and their images cost the whole budget, within a few tokens."""
    one = proof("cpu")
    scale = SCALES[device]
    image_tokens = (scale.image_side // scale.factor) ** 2
    assert 0 < image_tokens < scale.micro_batch_tokens // ROWS
    ids = TokenIds.of(judge_folder)
    if device == "cpu":
        samples, images = random_samples(
            1, ids, one.view, number=2 * ROWS, num_tokens=_row_tokens(one), side=scale.image_side
        )
        batch = process.rank_batch(samples, scale.micro_batch_tokens)
        assert [len(samples) for samples in batch.micro_batches] == [ROWS, ROWS]
        assert len(images) == 2 * ROWS
        shares = process.shares(batch)
        assert shares["image_share"] == pytest.approx(ROWS * image_tokens / scale.micro_batch_tokens, rel=0.02)
        assert shares["loss_share"] == pytest.approx(0.2, abs=0.01)


def test_an_ideal_engine_has_an_efficiency_of_one():
    between = Efficiency().engine_step_seconds
    one = proof("cuda")
    setting = {
        "max_num_seqs": 256,
        "context_tokens": 256 * 100,
        "prefill_seconds": throughput.PREFILLS * IDEAL.prefill(one.scale.prompt_tokens, 0, 0),
        "decode_step_seconds": IDEAL.decode(256, 256 * 100).seconds + between,
    }
    assert throughput.efficiency(one, IDEAL, [setting]) == pytest.approx({"prefill": 1.0, "decode": 1.0})
    slower = setting | {"decode_step_seconds": 2 * IDEAL.decode(256, 256 * 100).seconds + between}
    assert throughput.efficiency(one, IDEAL, [slower])["decode"] == pytest.approx(0.5)
    assert set(throughput.efficiency(one, IDEAL, [setting | {"decode_step_seconds": 0.001}])) == {"prefill"}


def test_measured_values_are_fields_of_the_plans_table():
    fields = set(Efficiency.__dataclass_fields__)
    assert {"matmul", "prefill", "decode", "sleep_seconds"} <= fields
