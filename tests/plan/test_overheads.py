"""What interrupts learning: each time follows from the bytes that move and the stated bandwidths."""

from dataclasses import replace

import pytest

from arm_rl.core.compute_config import LearnerConfig
from arm_rl.core.config_file import load_saved
from arm_rl.plan.duration import duration_of, steps_of
from arm_rl.plan.hardware import GPUS, Cluster, Efficiency
from arm_rl.plan.modelled import Setting
from arm_rl.plan.overheads import checkpoint_seconds, direct_seconds, overheads_of, sync_seconds
from arm_rl.plan.shapes import ModelShape
from arm_rl.plan.steps import StepPlan
from arm_rl.plan.workload import Workload

ONE = Cluster(gpu=GPUS["h100"], nodes=1, gpus_per_node=8)
TWO = replace(ONE, nodes=2)
REAL = Efficiency()


@pytest.fixture(scope="module")
def shape() -> ModelShape:
    return ModelShape.of("Qwen2.5-VL-7B")


def test_a_transfer_from_gpu_to_gpu_moves_all_weights(shape):
    weights = 2 * shape.parameters
    ipc = direct_seconds("ipc", shape, LearnerConfig(zero_stage=0), ONE, REAL)
    assert ipc == pytest.approx(4 * weights / ONE.gpu.bandwidth + REAL.update_seconds)
    nccl = direct_seconds("nccl", shape, LearnerConfig(zero_stage=0), ONE, REAL)
    assert nccl == pytest.approx(weights / (ONE.gpu.nvlink * REAL.network) + REAL.update_seconds)
    assert direct_seconds("nccl", shape, LearnerConfig(zero_stage=0), TWO, REAL) > nccl, "through one adapter"
    sharded = direct_seconds("ipc", shape, LearnerConfig(zero_stage=3, num_ranks=8), ONE, REAL)
    assert sharded - ipc == pytest.approx(7 / 8 * weights / (ONE.gpu.nvlink * REAL.network))
    assert sync_seconds("file", shape, LearnerConfig(), ONE, REAL) > ipc


def test_a_checkpoint_holds_what_is_trained(shape):
    def seconds(**keys):
        return checkpoint_seconds(shape, LearnerConfig(**keys), ONE, REAL)

    stored = 12 * shape.trained(LearnerConfig())
    rates = 1 / REAL.disk_bandwidth + 1 / REAL.checksum_bandwidth + 1 / REAL.host_bandwidth
    assert seconds(zero_stage=0) == pytest.approx(stored * rates)
    assert seconds(num_ranks=8) < seconds(zero_stage=0), "each rank copies its own part"
    assert seconds(lora_rank=16) < 0.01 * seconds(zero_stage=0)


def test_an_engine_that_starts_again_loads_and_gets_the_newest_weights(shape):
    config = load_saved("configs/arm_thinker_stage2.yaml")
    found = overheads_of(config, shape, TWO, REAL)
    loading = 2 * shape.parameters / REAL.disk_bandwidth
    assert found.engine_restart == pytest.approx(REAL.engine_start_seconds + loading + found.sync)
    assert found.resume > found.engine_restart
    cold = overheads_of(load_saved("configs/arm_thinker_sft.yaml"), shape, TWO, REAL)
    assert (cold.sync, cold.engine_restart) == (0.0, 0.0)


def test_a_runs_length(shape):
    config = load_saved("configs/arm_thinker_stage2.yaml")
    assert steps_of(config, None) is None
    assert steps_of(config, 5120) == 30, "three epochs of ten steps"
    assert steps_of(load_saved("configs/arm_thinker_stage2.yaml", ["num_steps=7"]), None) == 7
    assert steps_of(load_saved("configs/arm_thinker_sft.yaml"), 257) == 2
    setting = Setting(config=config, shape=shape, cluster=TWO, workload=Workload())
    overheads = overheads_of(config, shape, TWO, REAL)
    step = StepPlan(
        seconds=100.0,
        rollout=0.0,
        learner=0.0,
        sync=0.0,
        prefill=0.0,
        decode=0.0,
        tools=0.0,
        bounds={},
        engine_bounds={},
        tokens=0.0,
        trajectories=1,
    )
    found = duration_of(setting, step, overheads, 5120)
    assert found.seconds == pytest.approx(overheads.resume + 30 * 100 + 6 * overheads.checkpoint)
    assert found.gpu_hours == pytest.approx(16 * found.seconds / 3600)
    assert duration_of(setting, step, overheads, None) is None
