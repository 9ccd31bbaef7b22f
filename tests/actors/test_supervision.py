"""Ray's errors in one line; actors that die or hang are counted, and come back."""

import asyncio
import os
import signal

import pytest
import ray
from ray.exceptions import RayActorError

from actors import supervision
from actors.supervision import RETRIES, Deaths, call_with_retries, cause_of, describe_error, is_loss, watch
from arm_rl.core.errors import EngineDied
from tests.support.dying_actors import Victim

pytestmark = pytest.mark.usefixtures("local_ray")


def start(*arguments, **options):
    return ray.remote(Victim).options(num_cpus=0, **options).remote(*arguments)


async def error_of(call) -> Exception:
    with pytest.raises(ray.exceptions.RayError) as raised:
        await call
    return raised.value


async def test_an_error_is_told_by_its_cause():
    victim = start()
    error = await error_of(victim.fail.remote(False))
    assert describe_error(error) == "ValueError: the matter itself"
    assert type(cause_of(error)) is ValueError
    assert describe_error(await error_of(victim.fail.remote(True))) == "data.train: no such file"
    assert describe_error(await error_of(victim.die.remote())).startswith("its process ended: ")
    assert "OOM" not in describe_error(await error_of(victim.pulse.remote())), "no guesses"
    assert describe_error(await error_of(start("no model here").pulse.remote())) == "FileNotFoundError: no model here"
    assert describe_error(KeyError("x")) == "KeyError: 'x'"


async def test_what_may_succeed_next_time_is_told_from_what_comes_again():
    victim = start()
    assert not is_loss(await error_of(victim.fail.remote(False)))
    assert is_loss(await error_of(victim.die.remote()))
    lost = [EngineDied("x"), ConnectionResetError(), TimeoutError(), ray.exceptions.GetTimeoutError("x")]
    assert all(is_loss(error) for error in lost)
    nested = ray.exceptions.RayTaskError("send", "its trace", ray.exceptions.RayTaskError("f", "", EngineDied("x")))
    assert is_loss(nested)
    again = [ValueError("x"), TypeError("x"), AssertionError(), RuntimeError("shape mismatch"), OSError("disk full")]
    assert not any(is_loss(ray.exceptions.RayTaskError("send", "its trace", error)) for error in again)


async def test_a_call_is_made_again_when_its_actor_is_back():
    victim, asked = start(max_restarts=-1), []

    async def call():
        asked.append(await victim.process.remote())
        if len(asked) <= RETRIES:
            await victim.die.remote()
        return len(asked)

    assert await call_with_retries(victim, call) == RETRIES + 1
    assert len(set(asked)) == RETRIES + 1, "each time by another process"
    with pytest.raises(RayActorError):
        await call_with_retries(victim, lambda: victim.die.remote())
    lost = start()
    with pytest.raises(RayActorError):
        await call_with_retries(lost, lambda: lost.die.remote())


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
async def test_what_becomes_of_an_actor_that_ray_starts_anew_is_counted(monkeypatch, end):
    monkeypatch.setattr(supervision, "PULSE_SECONDS", 0.1)
    victim, deaths = start(max_restarts=-1), Deaths("scorer", 99)
    process = await victim.process.remote()
    watching = asyncio.create_task(watch(victim, deaths, stall_seconds=60 if end == signal.SIGKILL else 1))
    for _ in range(2 if end == signal.SIGKILL else 1):
        os.kill(process, end)
        counted = {"recovery/scorer": 0.0}
        while not counted["recovery/scorer_seconds"] if counted["recovery/scorer"] else True:
            await asyncio.sleep(0.05)
            counted = {name: value + counted.get(name, 0.0) for name, value in deaths.metrics().items()}
        assert counted["recovery/scorer"] >= 1  # a slow machine may hang by itself
        before, process = process, await victim.process.remote()
        assert process != before
    watching.cancel()
