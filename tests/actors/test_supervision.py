"""Ray's errors in one line."""

import asyncio
import os
import signal

import pytest
import ray

from actors.cluster import cluster
from actors.supervision import Deaths, cause_of, described, watch
from tests.dying_actors import Victim

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    with cluster():
        yield


def start(*arguments, **options):
    return ray.remote(Victim).options(num_cpus=0, **options).remote(*arguments)


async def error_of(call) -> Exception:
    with pytest.raises(ray.exceptions.RayError) as raised:
        await call
    return raised.value


async def test_an_error_is_told_by_its_cause():
    victim = start()
    error = await error_of(victim.fail.remote(False))
    assert described(error) == "ValueError: the matter itself"
    assert type(cause_of(error)) is ValueError
    assert described(await error_of(victim.fail.remote(True))) == "data.train: no such file"
    assert described(await error_of(victim.die.remote())).startswith("its process ended: ")
    assert "OOM" not in described(await error_of(victim.spans.remote())), "no guesses"
    assert described(await error_of(start("no model here").spans.remote())) == "FileNotFoundError: no model here"
    assert described(KeyError("x")) == "KeyError: 'x'"


async def test_deaths_of_an_actor_that_ray_starts_anew_are_counted():
    victim, deaths = start(max_restarts=-1), Deaths("scorer", 99)
    process = await victim.spans.remote()
    watching = asyncio.create_task(watch(victim, deaths))
    for _ in range(2):
        os.kill(process, signal.SIGKILL)
        counted = {"recovery/scorer": 0.0}
        while not counted["recovery/scorer_seconds"] if counted["recovery/scorer"] else True:
            await asyncio.sleep(0.05)
            counted = {name: value + counted.get(name, 0.0) for name, value in deaths.metrics().items()}
        assert counted["recovery/scorer"] == 1
        before, process = process, await victim.spans.remote()
        assert process != before
    watching.cancel()
