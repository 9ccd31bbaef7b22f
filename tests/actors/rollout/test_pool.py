"""Rollout actors that die, without engines: what ran is run again, with the newest weights, and not for ever."""

import asyncio
import os
import signal

import pytest
import ray

from actors import supervision
from actors.rollout import slot
from actors.rollout.pool import MAX_DEATHS, RolloutPool
from actors.supervision import ActorsLost
from actors.weights.files import PublishedWeights, WeightFile
from arm_rl.core.errors import EngineDied
from tests.support.dying_actors import Puppet
from tests.support.trajectories import make_sample

pytestmark = pytest.mark.usefixtures("local_ray")

SAMPLE = make_sample()


@pytest.fixture
async def start(tmp_path):
    groups = []

    def start(number=1, stall_seconds=600.0, transfer="file") -> RolloutPool:
        makers = [lambda: ray.remote(Puppet).options(num_cpus=0).remote(tmp_path)] * number
        group = RolloutPool(makers, stall_seconds, transfer)
        groups.append(group)
        return group

    yield start
    for group in groups:
        await group.close()


async def run(group, name="g", seed=3):
    ran = await group.run_group(SAMPLE, group_id=name, size=2, temperature=1.0, seed=seed)
    return ran.trajectories


def published(folder, version):
    path = folder / f"{version}.safetensors"
    path.write_text(f"version {version}")
    return PublishedWeights(file=WeightFile(path=path, version=version), node_id="a node", data=None)


def starts(folder):
    return len(processes(folder))


def processes(folder):
    return [int(line) for line in (folder / "starts").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["actor", "engine"])
async def test_what_ran_in_a_dead_one_is_run_again_with_the_weights_it_had(start, tmp_path, kind):
    if kind == "engine":
        (tmp_path / "engine").touch()
    group = start()
    assert await run(group) == "g 3 by base"
    await group.serve(published(tmp_path, 4))
    (tmp_path / "g may die").write_text("2")
    others = [asyncio.create_task(run(group, f"other {number}")) for number in range(3)]
    assert await run(group) == "g 3 by version 4"
    assert [await other for other in others] == [f"other {number} 3 by version 4" for number in range(3)]
    assert starts(tmp_path) == 3
    metrics = group.deaths.metrics()
    assert metrics["recovery/rollout"] == 2
    assert metrics["recovery/rollout_seconds"] > 0
    assert group.deaths.metrics() == {"recovery/rollout": 0, "recovery/rollout_seconds": 0}
    assert group.num_reruns >= 2


async def test_what_ran_in_one_that_hangs_is_run_again(start, tmp_path, monkeypatch):
    monkeypatch.setattr(supervision, "PULSE_SECONDS", 0.1)
    group = start(stall_seconds=2.0)
    assert await run(group) == "g 3 by base"
    (process,) = processes(tmp_path)
    os.kill(process, signal.SIGSTOP)
    assert await run(group) == "g 3 by base"
    assert processes(tmp_path)[-1] != process
    assert group.num_reruns >= 1  # a slow machine may hang by itself


async def test_one_that_hangs_does_not_keep_the_run_from_ending(start, tmp_path, monkeypatch):
    monkeypatch.setattr(slot, "SECONDS_TO_CLOSE", 0.5)
    group = start()
    await run(group)
    os.kill(processes(tmp_path)[0], signal.SIGSTOP)
    await group.close()


async def test_others_go_on_meanwhile(start, tmp_path):
    group = start(2)
    (tmp_path / "a waits").touch()
    (tmp_path / "b may die").write_text("1")
    (tmp_path / "c waits").touch()
    waiting = [asyncio.create_task(run(group, name)) for name in ("a", "b", "c")]
    assert await waiting[1] == "b 3 by base"
    for name in ("a waits", "c waits"):
        (tmp_path / name).unlink()
    assert [await task for task in waiting] == ["a 3 by base", "b 3 by base", "c 3 by base"]


async def test_one_that_comes_back_while_the_weights_are_replaced_takes_the_next_ones(start, tmp_path):
    group = start()
    await run(group)
    await group.serve(published(tmp_path, 1))
    (tmp_path / "1.safetensors").unlink()  # the learners are about to rename the next version
    (tmp_path / "g may die").write_text("1")
    running = asyncio.create_task(run(group))
    while starts(tmp_path) < 2:
        await asyncio.sleep(0.05)
    assert not running.done()
    await group.serve(published(tmp_path, 2))
    assert await running == "g 3 by version 2"


async def test_deaths_without_end_end_with_their_cause(start, tmp_path):
    group = start()
    await run(group)
    (tmp_path / "cannot start").touch()
    (tmp_path / "g may die").write_text("1")
    with pytest.raises(
        ActorsLost,
        match=f"^EngineDied: no memory for the cache: rollout died {MAX_DEATHS + 1} times with nothing finished",
    ):
        await run(group)
    with pytest.raises(ActorsLost):
        await group.serve(published(tmp_path, 1))
    assert starts(tmp_path) == 1 + MAX_DEATHS


async def test_a_successor_that_cannot_start_for_what_comes_again_is_not_tried_again(start, tmp_path):
    group = start()
    await run(group)
    (tmp_path / "starts no more").touch()
    (tmp_path / "g may die").write_text("1")
    with pytest.raises(ValueError, match="another number of heads"):
        await run(group)
    assert starts(tmp_path) == 2


async def test_a_finished_group_forgives_what_died_before(start, tmp_path):
    group = start()
    for _ in range(2):
        (tmp_path / "g may die").write_text(str(MAX_DEATHS - 1))
        assert await run(group) == "g 3 by base"
    assert group.deaths.metrics()["recovery/rollout"] == 2 * (MAX_DEATHS - 1) > MAX_DEATHS


async def test_where_learners_send_a_lost_one_is_not_waited_for_if_another_one_serves(start, tmp_path):
    group = start(2, transfer="nccl")
    before = await group.actors()
    (tmp_path / "g may die").write_text("1")
    assert await run(group) == "g 3 by base"
    after = await group.actors()
    assert [one == other for one, other in zip(before, after, strict=True)].count(True) == 1
    assert len(await group.sample_weights(["a"])) == 1, "nothing was sent to the other one"
    waiting = asyncio.create_task(group.weights_wanted())
    assert [await run(group, f"{number}") for number in range(3)] == [f"{number} 3 by base" for number in range(3)]
    assert not waiting.done()
    group.accept(after)
    assert len(await group.sample_weights(["a"])) == 2
    waiting.cancel()


async def test_where_learners_send_a_new_one_serves_when_they_have_sent(start, tmp_path):
    group = start(transfer="ipc")
    before = await group.actors()
    (tmp_path / "g may die").write_text("1")
    running = asyncio.create_task(run(group))
    await asyncio.wait_for(group.weights_wanted(), 60)
    after = await group.actors()
    assert after != before
    group.accept(before)  # of a synchronisation that began before
    await asyncio.sleep(0.2)
    assert not running.done()
    assert await group.sample_weights(["a"]) == {}
    group.accept(after)
    assert await running == "g 3 by base"
    waiting = asyncio.create_task(group.weights_wanted())
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()


@pytest.mark.parametrize("noticed", [False, True])
async def test_one_lost_while_weights_are_sent_takes_the_others_with_it_and_counts_once(start, tmp_path, noticed):
    group = start(MAX_DEATHS + 2, transfer="nccl")
    before = await group.actors()
    if noticed:
        os.kill(processes(tmp_path)[0], signal.SIGKILL)
        while all(slot.present is not None for slot in group._slots):
            await asyncio.sleep(0.05)
    group.restart(before, EngineDied("one of them"))
    after = await group.actors()
    assert not set(before) & set(after)
    assert group.deaths.metrics()["recovery/rollout"] == 1
    group.accept(after)
    assert await run(group) == "g 3 by base"


async def test_one_lost_while_learners_use_its_gpu_starts_when_they_have_left(start, tmp_path):
    group = start(transfer="ipc")
    (before,) = await group.actors()
    await group.sleep()
    os.kill(processes(tmp_path)[0], signal.SIGKILL)
    while group._slots[0].present is not None:
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.2)
    assert starts(tmp_path) == 1
    await group.wake()
    assert starts(tmp_path) == 2
    assert await group.actors() != [before]
