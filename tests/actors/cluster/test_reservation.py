"""Places on a real cluster of Ray nodes, some with GPUs that only Ray believes in: taken, waited for, given back."""

import asyncio
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster

from actors.cluster import reservation
from actors.cluster.connection import ClusterError, cluster, require_shared
from actors.cluster.placement import PlacementError
from actors.cluster.reservation import actor_name, reserve
from arm_rl.core.compute_config import PlacementConfig, RolloutConfig

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nodes(no_ray) -> Iterator[dict[str, str]]:
    """Two nodes of four GPUs, one without: their ids."""
    folder = tempfile.mkdtemp(prefix="ray-")
    store = {"object_store_memory": 100 << 20}
    machines = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 8, "num_gpus": 4, "temp_dir": folder, "include_dashboard": False, **store},
    )
    try:
        second = machines.add_node(num_cpus=8, num_gpus=4, **store)
        cpu = machines.add_node(num_cpus=4, **store)
        ray.init(address=machines.address, log_to_driver=False, logging_level=logging.ERROR)
        yield {"first": machines.head_node.node_id, "second": second.node_id, "cpu": cpu.node_id}
    finally:
        ray.shutdown()
        machines.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def places(options: list[dict], method: str = "node_id") -> list:
    """What actors with these options say of their places. They have an event loop, or would start as many threads as may run at a time."""

    class Where:
        async def node_id(self):
            return ray.get_runtime_context().get_node_id()

        async def gpus(self):
            return ray.get_gpu_ids()

    actors = [ray.remote(Where).options(**one).remote() for one in options]
    said = ray.get([getattr(actor, method).remote() for actor in actors])
    for actor in actors:
        ray.kill(actor)
    return said


async def until_free(gpus: float) -> None:
    limit = time.monotonic() + 60
    while ray.available_resources().get("GPU") != gpus:
        assert time.monotonic() < limit
        await asyncio.sleep(0.1)


async def test_ranks_sit_together_engines_have_whole_nodes_parts_and_tools_no_gpu(nodes):
    rollout = RolloutConfig(num_actors=2, tensor_parallel_size=2)
    async with reserve("run", PlacementConfig(), 4, rollout) as taken:
        ranks = places([taken.learner_options(rank) for rank in range(4)])
        engines = places([taken.rollout_options(number) for number in range(2)], "gpus")
        assert ranks == sorted(ranks, key=ranks.index), "neighbours"
        assert set(ranks) <= {nodes["first"], nodes["second"]}
        assert [len(gpus) for gpus in engines] == [2, 2]
        assert places([taken.light_options("tools", 0)]) == [nodes["cpu"]]
    await until_free(8)


async def test_shared_gpus_hold_a_rank_and_an_engine_each(nodes):
    async with reserve("shared", PlacementConfig(kind="shared"), 4, RolloutConfig(num_actors=4)) as taken:
        assert ray.available_resources()["GPU"] == 4
        options = [of(number) for number in range(4) for of in (taken.learner_options, taken.rollout_options)]
        pairs = places(options)
        assert pairs[::2] == pairs[1::2]
        assert len(set(pairs)) == 1, "four GPUs are one node's"
    await until_free(8)


async def test_a_busy_cluster_is_waited_for_and_one_too_small_is_not(nodes, caplog, monkeypatch):
    monkeypatch.setattr(reservation, "_FIRST_TOLD_SECONDS", 1)
    async with reserve("first", PlacementConfig(), 6, None):
        with pytest.raises(PlacementError, match="missing: 1 GPU"):
            async with reserve("large", PlacementConfig(), 9, None):
                pass
        waiting = asyncio.create_task(_taken_for_a_moment())
        while "waiting for resources: the run needs 4 CPU, 4 GPU; free on the cluster are" not in caplog.text:
            assert not waiting.done()
            await asyncio.sleep(0.1)
    assert await waiting == 4
    await until_free(8)


async def _taken_for_a_moment() -> int:
    async with reserve("second", PlacementConfig(), 4, None) as taken:
        return len(taken.placement.bundles)


async def test_who_waits_can_be_cancelled_and_keeps_nothing(nodes):
    waiting = asyncio.create_task(_grown())
    await asyncio.sleep(0.5)
    assert not waiting.done()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await until_free(8)


async def _grown() -> None:
    async with reserve("grown", PlacementConfig(may_grow=True), 9, None):
        pass


async def test_a_folder_that_another_node_does_not_see_is_refused(nodes, tmp_path):
    await require_shared(tmp_path)
    with pytest.raises(
        ClusterError, match=r"run.root: node \w+ does not see .*missing: give a folder that all nodes share"
    ):
        await require_shared(tmp_path / "missing")


def test_a_cluster_inside_a_cluster_is_the_same_one(nodes):
    node = ray.get_runtime_context().get_node_id()
    with cluster():
        assert ray.get_runtime_context().get_node_id() == node
    assert ray.is_initialized(), "the inner one does not end the outer one"


def test_a_successor_has_a_name_of_its_own():
    assert [actor_name("names", "rollout", 0) for _ in range(3)] == [
        "names/rollout-0",
        "names/rollout-0.2",
        "names/rollout-0.3",
    ]
    assert actor_name("names", "rollout", 1) == "names/rollout-1"
