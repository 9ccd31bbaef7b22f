"""A run that is asked to stop: what is broken off, what is not, and what SIGTERM does."""

import asyncio
import os
import signal

import pytest

from arm_rl.training.graceful_stop import StoppedOnRequest, StopRequest, stopped_by_signal


async def test_the_signal_breaks_off_what_has_nothing_to_lose():
    async def run():
        with stopped_by_signal():
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()

    with pytest.raises(StoppedOnRequest, match="goes on from its last checkpoint"):
        await run()


async def test_ctrl_c_asks_once_and_the_handler_from_before_takes_the_second():
    before, seen = signal.getsignal(signal.SIGINT), []

    async def run():
        with stopped_by_signal() as stop, stop.deferred():
            assert signal.getsignal(signal.SIGINT) != before
            os.kill(os.getpid(), signal.SIGINT)
            while not stop.asked:
                await asyncio.sleep(0.01)
            seen.append(signal.getsignal(signal.SIGINT))
            stop.check()

    with pytest.raises(StoppedOnRequest) as stopped:
        await run()
    assert stopped.value.signal == signal.SIGINT
    assert seen == [before]
    assert signal.getsignal(signal.SIGINT) == before


async def test_what_is_deferred_ends_where_it_may_be_left():
    done = []

    async def run():
        with stopped_by_signal() as stop, stop.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            while not stop.asked:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0)  # a step, say: not broken off
            done.append("step")
            stop.check()

    with pytest.raises(StoppedOnRequest):
        await run()
    assert done == ["step"]


async def test_interruptible_work_is_cancelled_and_cleans_up_first():
    stop = StopRequest()
    cleaned = []

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    running = asyncio.create_task(stop.interruptible(work()))
    await asyncio.sleep(0)
    stop.ask()
    with pytest.raises(StoppedOnRequest):
        await running
    assert cleaned == [True]


async def test_work_that_ends_or_fails_before_is_as_if_alone():
    async def work(result):
        if isinstance(result, Exception):
            raise result
        return result

    stop = StopRequest()
    assert await stop.interruptible(work(7)) == 7
    with pytest.raises(ValueError, match="its own"):
        await stop.interruptible(work(ValueError("its own")))


async def test_work_that_is_done_when_the_request_comes_counts():
    stop = StopRequest()
    stop.ask()

    async def at_once():
        return "done"

    with pytest.raises(StoppedOnRequest):
        await stop.interruptible(asyncio.sleep(60))
    assert await stop.interruptible(at_once()) == "done"


async def test_a_cancellation_from_elsewhere_stays_one():
    async def run():
        with stopped_by_signal():
            await asyncio.Event().wait()

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_handler_from_before_is_back_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with stopped_by_signal():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
