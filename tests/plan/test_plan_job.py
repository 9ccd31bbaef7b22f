"""The plan's roofline, its simulated engine, the search and the command line, at small sizes."""

import asyncio
import json
import sys
from dataclasses import replace

import pytest

from arm_rl.core.compute_config import LearnerConfig
from arm_rl.core.config_file import load_saved
from arm_rl.core.stage_config import TrainConfig
from arm_rl.plan import clock
from arm_rl.plan.fit import memory_of
from arm_rl.plan.hardware import GPUS, Cluster, Efficiency, gpu_of_device
from arm_rl.plan.modelled import Setting
from arm_rl.plan.overheads import update_seconds
from arm_rl.plan.search import search
from arm_rl.plan.shapes import ModelShape
from arm_rl.plan.simulated_engine import SimulatedEngine
from arm_rl.plan.step_time import EngineTimes, LearnerTimes, Passes
from arm_rl.plan.steps import scaled, scaling, step_of, stops_at
from arm_rl.plan.workload import Workload, WorkloadError
from jobs import plan as job

CONFIGS = ["sft", "stage1", "stage2", "stage2_async"]
SMALL = ["algorithm.samples_per_step=32", "algorithm.mini_batch_samples=16", "algorithm.group_size=4"]


@pytest.fixture(scope="module")
def shape() -> ModelShape:
    return ModelShape.of("Qwen/Qwen2.5-VL-7B-Instruct")


def setting(shape, name="stage2", overrides=(), nodes=2, gpu="h200", **workload) -> Setting:
    config = load_saved(f"configs/arm_thinker_{name}.yaml", [] if name == "sft" else [*SMALL, *overrides])
    return Setting(
        config=config,
        shape=shape,
        cluster=Cluster(gpu=GPUS[gpu], nodes=nodes, gpus_per_node=8),
        workload=Workload(**workload),
    )


def test_what_bounds_a_learner(shape):
    cluster, efficiency = Cluster(gpu=GPUS["h200"], nodes=2, gpus_per_node=8), Efficiency()

    def seconds(tokens, **changes):
        config = LearnerConfig(num_ranks=16, **changes)
        times = LearnerTimes(shape=shape, config=config, cluster=cluster, efficiency=efficiency)
        return times.micro_batch(Passes(tokens, 0, 0, 0))

    large = seconds(32768)
    assert large.bound == "compute"
    assert large.seconds == pytest.approx(6 * shape.blocks * 32768 / (989e12 * 0.4))
    assert seconds(32768, gradient_checkpointing=True).seconds == pytest.approx(large.seconds * 4 / 3)
    assert seconds(64).bound == "network", "ZeRO-3 gathers all weights for a few tokens"
    assert seconds(64, zero_stage=2).seconds < seconds(64).seconds


def test_an_engine_shares_its_passes(shape):
    times = EngineTimes(
        shape=shape, cluster=Cluster(gpu=GPUS["h200"], nodes=1, gpus_per_node=1), efficiency=Efficiency()
    )

    async def seconds(sessions, **limits):
        engine = SimulatedEngine(times, **{"max_sequences": 64, "cache_tokens": 1e6, **limits})
        await asyncio.gather(*(engine.turn(1000, 0, 0, 200, 1200) for _ in range(sessions)))
        return clock.loop().time()

    alone = clock.run(seconds(1))
    assert alone == pytest.approx(times.prefill(1000, 0, 0) + 200 * times.decode(1, 1100).seconds, rel=1e-3)
    together = clock.run(seconds(16))
    assert alone < together < 3 * alone, "weights are read once for all sequences"
    assert clock.run(seconds(16, max_sequences=1)) == pytest.approx(16 * alone, rel=1e-3)
    assert clock.run(seconds(16, cache_tokens=2400)) > 7 * alone, "two find room at a time"


def test_an_engine_that_pauses_samples_later(shape):
    times = EngineTimes(
        shape=shape, cluster=Cluster(gpu=GPUS["h200"], nodes=1, gpus_per_node=1), efficiency=Efficiency()
    )

    async def seconds(pause):
        engine = SimulatedEngine(times, max_sequences=4, cache_tokens=1e6)
        running = asyncio.ensure_future(engine.turn(1000, 0, 0, 200, 1200))
        await asyncio.sleep(0.5)
        if pause:
            await engine.pause(pause)
        await running
        return clock.loop().time()

    assert clock.run(seconds(7.0)) == pytest.approx(clock.run(seconds(0.0)) + 7.0)


def test_weights_reach_many_nodes_in_rounds(shape):
    def seconds(nodes, **changes):
        return update_seconds(
            shape, LearnerConfig(**changes), Cluster(gpu=GPUS["h200"], nodes=nodes, gpus_per_node=8), Efficiency()
        )

    one, two, many = (seconds(nodes) for nodes in (1, 2, 128))
    assert one < two < many
    assert many - two == pytest.approx(6 * 2 * shape.parameters / Efficiency().object_bandwidth)
    adapters = shape.adapters(LearnerConfig(lora_rank=16))
    assert seconds(128, lora_rank=16) - seconds(2, lora_rank=16) == pytest.approx(
        6 * 2 * adapters / Efficiency().object_bandwidth
    )


def test_adapters_need_less_of_everything_but_passes(shape):
    whole, adapted = (
        setting(shape, overrides=["placement.weight_transfer=file"]),
        setting(
            shape,
            overrides=[f"learner.{key}" for key in ("lora_rank=16", "freeze_vision=true", "freeze_projector=true")],
        ),
    )
    assert step_of(adapted).sync < step_of(whole).sync
    assert memory_of(adapted).longest < memory_of(whole).longest


@pytest.mark.parametrize("name", CONFIGS)
def test_the_papers_runs_fit_two_nodes(shape, name):
    assert memory_of(setting(shape, name)).problems == ()


def test_what_does_not_fit_is_said():
    large = ModelShape.of("Qwen2.5-VL-72B")
    problems = memory_of(setting(large, nodes=1, gpu="h100")).problems
    assert "tokens of keys and values, and one session may need 73728" in problems[0]
    assert any("a learner needs" in problem for problem in problems)
    assert any("wants 16 GPUs, and there are 8" in problem for problem in problems)


def test_a_part_of_the_cluster_stands_for_all_of_it(shape):
    one = setting(shape, overrides=["algorithm.samples_per_step=64", "algorithm.mini_batch_samples=64"])
    whole, part = step_of(one), step_of(one, fraction=4)
    assert part.seconds == pytest.approx(whole.seconds, rel=0.15)
    assert part.sync == pytest.approx(whole.sync)


def test_more_calls_take_longer(shape):
    few, many = (step_of(setting(shape, calls=calls), fraction=8) for calls in (0.2, 3.0))
    assert many.rollout > 1.5 * few.rollout
    assert many.tokens > few.tokens


def test_a_search_finds_what_is_faster_and_keeps_off_what_does_not_fit(shape, monkeypatch):
    monkeypatch.setattr("arm_rl.plan.search._ROUNDS", 1)
    found = search(setting(shape, "stage2_async"))
    own = next(one for one in found if not one.changes)
    assert found[0].step.seconds < own.step.seconds
    assert any(one.problems and one.step is None for one in found)
    for one in found[:3]:
        assert one.step is not None
        assert not one.problems


def test_more_gpus_bring_less_and_less(shape):
    one = setting(shape)
    assert scaled(one, 8).config.learner.num_ranks == scaled(one, 8).config.rollout.num_actors == 64
    sizes = scaling(one, 256)
    assert [gpus for gpus, _ in sizes] == [16, 32, 64], "the batch has 64 trajectories for an update"
    rates = [step.rate / gpus for gpus, step in sizes]
    assert rates == sorted(rates, reverse=True)
    assert stops_at([(16, sizes[0][1]), (32, sizes[0][1])]) == 16
    assert stops_at([(16, sizes[0][1]), (32, replace(sizes[0][1], seconds=sizes[0][1].seconds / 2))]) is None


@pytest.mark.parametrize(
    ("written", "message"),
    [("calls", "a number, not ''"), ("tempo=3", "a key of"), ("calls=many", "a number"), ("calls=-1", "0 or more")],
)
def test_a_workload_that_cannot_be_is_refused(written, message):
    with pytest.raises(WorkloadError, match=message):
        Workload.parse([written])


@pytest.mark.parametrize(("config", "overrides"), [("sft", []), ("stage1", SMALL)])
def test_the_command_prints_json_and_a_verdict(monkeypatch, capsys, config, overrides):
    path = "model.path=Qwen/Qwen2.5-VL-3B-Instruct"
    monkeypatch.setattr(
        sys,
        "argv",
        ["plan", f"configs/arm_thinker_{config}.yaml", path, *overrides, "--nodes", "2", "--no-search", "--json"],
    )
    assert job.main() == 0
    said = json.loads(capsys.readouterr().out)
    assert said["verdict"].startswith("fits: ")
    assert said["step"]["seconds"] > 0
    assert said["memory"]["problems"] == []


def test_the_command_prints_tables(monkeypatch, capsys):
    path = "model.path=Qwen/Qwen2.5-VL-72B-Instruct"
    monkeypatch.setattr(
        sys, "argv", ["plan", "configs/arm_thinker_stage2.yaml", path, *SMALL, "--gpu", "l40s", "--no-search"]
    )
    assert job.main() == 0
    out = capsys.readouterr().out
    assert "Qwen2.5-VL-72B-Instruct, 73.41 billion parameters, on 1 x 8 l40s" in out
    verdict = out[out.index("does not fit: ") :].splitlines()
    assert "no change of a few keys fits" in verdict[1]
    assert verdict[-1] == "session.max_prompt_tokens: up to 0 fits (configured: 65000)"


def test_the_command_gives_advice_that_fits(capsys):
    def verdict(*arguments):
        path = "model.path=Qwen/Qwen2.5-VL-7B-Instruct"
        command = ["configs/arm_thinker_stage2.yaml", path, *SMALL, "--gpu", "a100-40g", "--no-search", *arguments]
        assert job.main(command) == 0
        return capsys.readouterr().out

    command = next(line for line in verdict().splitlines() if line.startswith("  fits with: "))
    second = verdict(*command.removeprefix("  fits with: ").split(), "--samples", "320")
    assert "fits: " in second
    assert "the run: 30 steps, " in second
    assert "a lost engine is replaced" in second


def test_another_card_is_described_by_numbers(capsys):
    def says(*arguments):
        command = ["configs/arm_thinker_sft.yaml", "--nodes", "2", "--no-search", "--json", *arguments]
        status = job.main(command)
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    usual, slow = (json.loads(says("--gpu", "h100", *more)[1]) for more in ((), ("--gpu-tflops", "100")))
    assert slow["step"]["seconds"] > 5 * usual["step"]["seconds"]
    small = json.loads(says("--gpu", "h100", "--gpu-memory", "4")[1])
    assert small["cluster"]["gpu"]["name"] == "h100-like"
    assert small["step"] is None
    assert "--gpu-memory: a number above 0, not -1.0" in says("--gpu-memory", "-1")[2]
    assert "--gpus: at least 1, not 0" in says("--gpus", "0")[2]


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx6000-ada"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA A100-SXM4-40GB", "a100-40g"),
        ("NVIDIA A100 80GB PCIe", "a100-80g"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
    ],
)
def test_a_card_is_found_by_the_drivers_name(device, name):
    assert gpu_of_device(device) is GPUS[name]


def test_an_unknown_card_is_none():
    assert gpu_of_device("NVIDIA L40") is None


def test_configurations_are_of_their_kinds():
    assert isinstance(load_saved("configs/arm_thinker_stage2.yaml", ["rollout.num_actors=16"]), TrainConfig)
