"""A node that is lost with all that ran there: its actors come back on another one, or the run says that there is none."""

import asyncio

import pytest
import ray
from ray.cluster_utils import Cluster

from actors.rollout import slot
from actors.rollout.pool import RolloutPool
from actors.supervision import ActorsLost, Deaths, watch
from tests.support.dying_actors import Puppet, Victim
from tests.support.trajectories import make_sample

pytestmark = pytest.mark.slow

PLACES = {"place": 2}  # what only the nodes beside the first one have


@pytest.fixture
def nodes(no_ray):
    """Three nodes on this machine, the driver on the first."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


async def test_a_run_lives_through_the_loss_of_a_node_while_there_is_another(nodes, tmp_path, monkeypatch):
    def start(cls, *arguments, **options):
        return ray.remote(cls).options(num_cpus=0, resources={"place": 1}, **options).remote(*arguments)

    async def run():
        ran = await group.run_group(make_sample(), group_id="g", size=2, temperature=1.0, seed=3)
        return ran.trajectories

    first = nodes.add_node(num_cpus=1, resources=PLACES)
    group = RolloutPool([lambda: start(Puppet, tmp_path)], stall_seconds=600.0)
    executor, deaths = start(Victim, max_restarts=-1), Deaths("tools", 9)
    assert await run() == "g 3 by base"
    before = await executor.process.remote()
    watching = asyncio.create_task(watch(executor, deaths, stall_seconds=600.0))

    (tmp_path / "g waits").touch()
    running = asyncio.create_task(run())
    second = nodes.add_node(num_cpus=1, resources=PLACES)
    nodes.remove_node(first, allow_graceful=False)
    while len((tmp_path / "starts").read_text().splitlines()) < 2:
        await asyncio.sleep(0.05)
    (tmp_path / "g waits").unlink()
    assert await running == "g 3 by base"
    assert group.deaths.metrics()["recovery/rollout"] >= 1
    assert await executor.process.options(max_task_retries=-1).remote() != before
    counted = 0.0
    while not counted:
        await asyncio.sleep(0.05)
        counted = deaths.metrics()["recovery/tools"]

    monkeypatch.setattr(slot, "SECONDS_TO_PLACE", 2.0)
    (tmp_path / "g waits").touch()  # a process may outlive its node for a moment
    nodes.remove_node(second, allow_graceful=False)
    with pytest.raises(
        ActorsLost,
        match="no place for a rollout actor in 2 seconds: .* the same command goes on from the last checkpoint",
    ):
        await run()
    watching.cancel()
    await group.close()
