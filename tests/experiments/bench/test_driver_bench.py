"""The benchmarks of driver and rollouts, at tiny sizes: what they measure is the real thing, and asks what was asked before."""

import asyncio
import dataclasses
import subprocess
import sys

import pytest

from arm_rl.core import session
from arm_rl.core.config import SessionConfig
from arm_rl.core.seeding import derive_seed
from arm_rl.core.training_sample import training_sample
from arm_rl.experiments.bench import driver, usage
from arm_rl.experiments.bench.result import Result
from arm_rl.experiments.bench.rollout import requests
from tests.support.scripted import ANSWER, Scripted, call, make_sample
from tools import load_tools
from tools.execution.local import LocalTools


def test_ratios_are_taken_repeat_by_repeat():
    result = Result.of(key="k", what="w", goal=0.8, unit="steps/s", ours=[1.0, 3.0, 2.0], other=[2.0, 4.0, 2.0])
    assert (result.ratio, result.ratio_low, result.ratio_high) == (0.75, 0.5, 1.0)
    assert not result.met
    assert dataclasses.replace(result, less_is_better=True).met


@pytest.mark.slow
@pytest.mark.parametrize("max_staleness", [0, 1])
async def test_the_instant_ends_are_driven_as_real_ones(local_ray, max_staleness, tmp_path):
    settings = driver.DriverSettings(sessions=(16,), group_size=4, max_staleness=max_staleness)
    async with driver.instant_driver(driver._config(settings, 16, tmp_path), num_samples=16) as driven:
        assert driven.config.run.root == str(tmp_path), "no other run reads the groups that it finishes"
        for step in range(4):
            metrics = await driven.step()
            driven.steps_done += 1
            assert metrics["rollout/num_trajectories"] == 16
            assert metrics["rollout/groups_kept"] == 1, "half of each group is right"
            assert metrics["reward/scorer_failures"] == 0
            assert metrics["rollout/accuracy"] == 0.5
            assert metrics["rollout/staleness_max"] <= min(max_staleness, step)
            assert metrics["learner/loss"] == 0


@pytest.mark.slow
def test_a_measurement_of_the_driver(local_ray, tmp_path):
    settings = driver.DriverSettings(sessions=(8, 16), group_size=4, trajectories=16, repeats=2)
    result = dataclasses.replace(driver.BENCHMARK, settings=settings).run(tmp_path)
    assert result.key == "driver_share"
    assert len(result.ours) == len(result.other) == 2
    assert 0 < result.ratio_low <= result.ratio <= result.ratio_high
    assert set(result.details["sizes"]) == {"8", "16"}
    assert {"time/rollout", "time/learner", "time/sync"} <= set(result.details["sizes"]["8"]["seconds"])


def test_ready_made_trajectories_are_whole():
    made = driver.make_group(driver._sample(3), "7/s3", 4, driver._turns(version=2))
    assert [one.index for one in made] == [0, 1, 2, 3]
    assert {turn.policy_version for one in made for turn in one.turns} == {2}
    for one in made:
        sample = training_sample(one, 1.0, image_pad_id=driver.PAD)
        assert len(sample.token_ids) == 80
        assert sample.num_loss_tokens == 20
        assert sample.image_tokens == (16, 16)
    assert len({one.prompt_ids for one in made}) == 1
    assert made[0].prompt_ids != driver.make_group(driver._sample(4), "8/s4", 1, driver._turns(version=2))[0].prompt_ids


def test_the_bare_engine_is_asked_what_the_session_asked(template, tmp_path):
    """Requests are read from a trajectory: the same as what the policy was asked for."""
    policy = Scripted(template, call(), call(image="observation_1"), ANSWER)
    limits = SessionConfig(max_turns=3, max_response_tokens=400)
    tools = LocalTools(load_tools(["configs/tools/digits.yaml"]))
    run = session.run(
        make_sample(tmp_path),
        policy,
        tools,
        limits,
        template=template,
        seed=derive_seed(5, "g", 1),
        group_id="g",
        index=1,
    )
    trajectory = asyncio.run(run).trajectory
    asked = list(requests(trajectory, seed=5, pad=template.image_pad_id, limit=400, forbidden=(9,)))
    assert len(asked) == 3
    for request, original in zip(asked, policy.requests, strict=True):
        assert request.prompt_ids == original.prompt_ids
        assert request.images == tuple(image.key for image in original.images)
        assert (request.max_tokens, request.seed) == (original.max_tokens, original.seed)
        assert request.forbidden_ids == (() if original.allow_call else (9,))
    assert [len(request.images) for request in asked] == [1, 2, 3]


def test_cpu_time_is_told_by_process():
    before = usage.cpu_seconds()
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        added = usage.since(before)
        child.communicate(b"\n")
    (name,) = (name for name in added if name.startswith("python"))
    assert added[name] >= 0.25
