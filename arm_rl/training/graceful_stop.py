"""A run that is asked to stop, by Ctrl-C or by a scheduler's SIGTERM some time before the kill: it writes a checkpoint first."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

from arm_rl.core.errors import UserError

T = TypeVar("T")

logger = logging.getLogger(__name__)


class StoppedOnRequest(UserError):
    """The run was asked to stop, and did; started again, it goes on."""

    def __init__(self, message: str, by: signal.Signals = signal.SIGTERM) -> None:
        """Keep the message, and the signal that asked."""
        super().__init__(message)
        self.signal = by


class StopRequest:
    """Whether the run was asked to stop."""

    def __init__(self, task: asyncio.Task | None = None) -> None:
        """It was not. `task` is broken off where nothing is to be lost."""
        self._asked = asyncio.Event()
        self._by = signal.SIGTERM
        self._deferred = False
        self._task = task

    def ask(self, by: signal.Signals = signal.SIGTERM) -> None:
        """Ask the run to stop: at once, or where the run may be left."""
        self._by = by
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
                "stopped as asked; started again with the same command, the run goes on from its last checkpoint",
                self._by,
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
    """Listen to SIGTERM and Ctrl-C in the main thread's event loop; a second Ctrl-C ends the run without a checkpoint.

    Raises:
        StoppedOnRequest: If one of the two came.
    """
    request = StopRequest(asyncio.current_task())
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}  # Ray's, asyncio's

    def restore(number: signal.Signals) -> None:
        loop.remove_signal_handler(number)
        signal.signal(number, before[number])

    def interrupt() -> None:
        restore(signal.SIGINT)
        logger.warning("the run ends after what it is at, with a checkpoint; Ctrl-C once more ends it at once")
        request.ask(signal.SIGINT)

    loop.add_signal_handler(signal.SIGTERM, request.ask)
    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        yield request
    except asyncio.CancelledError:
        request.check()
        raise
    finally:
        restore(signal.SIGTERM)
        restore(signal.SIGINT)
