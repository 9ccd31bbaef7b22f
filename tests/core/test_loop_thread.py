"""The loop in a thread: one loop for all callers, results and errors come back, an interrupted wait cancels its work."""

import asyncio
import threading

import pytest

from arm_rl.core.loop_thread import LoopThread


@pytest.fixture
def loop():
    loop = LoopThread("test-loop")
    yield loop
    loop.close()


async def where():
    return threading.current_thread().name, asyncio.get_running_loop()


def test_all_work_runs_on_one_loop_in_one_thread(loop):
    assert loop.wait(where()) == loop.submit(where()).result()
    assert loop.wait(where())[0] == "test-loop"


def test_an_error_comes_back(loop):
    async def fail():
        raise ZeroDivisionError("by zero")

    with pytest.raises(ZeroDivisionError, match="by zero"):
        loop.wait(fail())


@pytest.mark.parametrize("way", ["cancelled future", "interrupted wait"])
def test_what_nobody_waits_for_any_more_is_cancelled(loop, way, monkeypatch):
    started, cancelled = threading.Event(), threading.Event()

    async def hang():
        started.set()
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    if way == "cancelled future":
        future = loop.submit(hang())
        assert started.wait(20)
        future.cancel()
    else:
        real = loop.submit

        def interrupted(work):
            future = real(work)
            assert started.wait(20)
            monkeypatch.setattr(future, "result", lambda: raise_interrupt())
            return future

        monkeypatch.setattr(loop, "submit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loop.wait(hang())
    assert cancelled.wait(20)


def raise_interrupt():
    raise KeyboardInterrupt


def test_it_closes_while_work_hangs():
    loop = LoopThread("test-loop")
    future = loop.submit(asyncio.sleep(600))
    loop.close()
    assert "test-loop" not in {thread.name for thread in threading.enumerate()}
    assert not future.done()
