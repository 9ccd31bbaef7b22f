"""One event loop in a thread of this process, for tools whose work is asynchronous: connections and tasks live on it between calls."""

import asyncio
import functools
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


@functools.cache
def background_loop() -> asyncio.AbstractEventLoop:
    """The loop; started by the first who asks, and ended with the process."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True, name="tool-loop").start()
    return loop


def wait_for(coroutine: Coroutine[Any, Any, Result], timeout: float | None = None) -> Result:
    """Runs a coroutine on the loop and waits in this thread, which must be another one than the loop's.

    Raises:
        TimeoutError: it took longer than `timeout` seconds, and was cancelled.
    """
    future = asyncio.run_coroutine_threadsafe(coroutine, background_loop())
    try:
        return future.result(timeout)
    finally:
        future.cancel()  # of no effect where it has ended
