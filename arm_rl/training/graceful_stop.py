"""A run that is asked to stop, as schedulers do by SIGTERM some time before they kill: it writes a checkpoint first."""

import asyncio
import contextlib
import signal
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

from arm_rl.core.errors import UserError

T = TypeVar("T")


class StoppedOnRequest(UserError):
    """The run was asked to stop, and did; started again, it goes on."""


class StopRequest:
    """Whether the run was asked to stop."""

    def __init__(self, task: asyncio.Task | None = None) -> None:
        """It was not. `task` is broken off where nothing is to be lost."""
        self._asked = asyncio.Event()
        self._deferred = False
        self._task = task

    def ask(self) -> None:
        """Asks it to stop: at once, or where it may be left."""
        self._asked.set()
        if not self._deferred and self._task is not None:
            self._task.cancel()

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, nothing is broken off but what `interruptible` runs."""
        self._deferred = True
        yield
        self._deferred = False

    @property
    def asked(self) -> bool:
        """So it is."""
        return self._asked.is_set()

    def check(self) -> None:
        """Raises `StoppedOnRequest` where the run was asked to."""
        if self.asked:
            raise StoppedOnRequest(
                "stopped as asked; started again with the same command, the run goes on from its last checkpoint"
            )

    async def interruptible(self, work: Coroutine[Any, Any, T]) -> T:
        """Its result.

        Raises:
            StoppedOnRequest: the run was asked to stop before it was there; the work is cancelled.
        """
        working, asked = asyncio.ensure_future(work), asyncio.ensure_future(self._asked.wait())
        try:
            await asyncio.wait([working, asked], return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                self.check()
            return await working
        finally:
            asked.cancel()
            working.cancel()
            await asyncio.wait([working])


@contextlib.contextmanager
def stopped_by_signal() -> Iterator[StopRequest]:
    """Listens to SIGTERM, in the main thread's event loop.

    Raises:
        StoppedOnRequest: it came.
    """
    request = StopRequest(asyncio.current_task())
    loop = asyncio.get_running_loop()
    before = signal.getsignal(signal.SIGTERM)  # Ray's
    loop.add_signal_handler(signal.SIGTERM, request.ask)
    try:
        yield request
    except asyncio.CancelledError:
        request.check()
        raise
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, before)
