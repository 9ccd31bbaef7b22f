"""An event loop in a thread of its own, for objects that any thread or loop calls and whose work is asynchronous."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")


class LoopThread:
    """A thread that runs an event loop from its construction until `close`."""

    def __init__(self, name: str) -> None:
        """Start the thread under this name. The thread ends with the process if nobody closes it."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name=name)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, Result]) -> "Future[Result]":
        """Start a coroutine on the loop. Cancelling the future cancels the coroutine."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine on the loop and block the calling thread, which must not be the loop's own.

        An error that ends the waiting, such as Ctrl-C, cancels the coroutine.
        """
        future = self.submit(work)
        try:
            return future.result()
        finally:
            future.cancel()  # has no effect on a coroutine that has ended

    def close(self) -> None:
        """Stop the loop and its thread. Coroutines that still run are abandoned."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
