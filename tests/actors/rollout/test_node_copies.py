"""Weights by file over several nodes, with stand-ins for engines: each node's copy is written once, whoever dies."""

import asyncio
from collections import Counter

import numpy as np
import pytest
import ray

from actors.rollout.pool import RolloutPool
from actors.weights.files import PublishedWeights, WeightFile
from tests.support.dying_actors import Puppet

pytestmark = pytest.mark.usefixtures("local_ray")

NODES = ("a node", "another", "another", "a third", "a third")  # the learners are on the first


@pytest.fixture
async def pool(tmp_path):
    made = [lambda node=node: ray.remote(Puppet).options(num_cpus=0).remote(tmp_path, node) for node in NODES]
    pool = RolloutPool(made, 600.0)
    await pool.actors()
    yield pool
    await pool.close()


def published(folder, version):
    path = folder / f"{version}.safetensors"
    path.write_text(f"version {version}")
    data = ray.put(np.fromfile(path, np.uint8))
    return PublishedWeights(file=WeightFile(path=path, version=version), node_id="a node", data=data)


def copies(folder):
    return Counter((folder / "copies").read_text().splitlines())


async def served(pool):
    found = await pool.sample_weights(["weights"])
    return {found[number]["weights"] for number in range(len(NODES))}


async def test_one_engine_of_each_other_node_writes_and_all_of_them_load_also_those_that_start_later(pool, tmp_path):
    for version in (1, 2):
        await pool.serve(published(tmp_path, version))
        assert copies(tmp_path) == {"another": version, "a third": version}
        assert await served(pool) == {f"version {version}"}
        for node in ("another", "a third"):
            assert [path.name for path in (tmp_path / node).iterdir()] == [f"{version}.safetensors"]
    before = await pool.actors()
    ray.kill(before[1])
    while (await pool.actors())[1] == before[1]:
        await asyncio.sleep(0.05)
    assert await served(pool) == {"version 2"}
    assert copies(tmp_path) == {"another": 2, "a third": 2}


async def test_another_engine_of_the_node_writes_where_one_dies_meanwhile(pool, tmp_path):
    (tmp_path / "another dies as it writes").touch()
    await pool.serve(published(tmp_path, 1))
    assert copies(tmp_path) == {"another": 2, "a third": 1}
    assert await served(pool) == {"version 1"}
    assert pool.deaths.metrics()["recovery/rollout"] == 1, "an engine that waited for the other is not replaced"
