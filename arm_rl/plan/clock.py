"""An event loop whose clock jumps: what waits for a time gets it at once, so that hours of a run's policy take seconds."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class SimulationDeadlock(RuntimeError):
    """Everything waits, and for no time: the simulated run would never go on."""


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Timers fire in their order, one after the other; `time` is that of the newest one."""

    def __init__(self) -> None:
        self._now = 0.0
        self._spent = 0.0
        super().__init__(_Selector(self._sleep))

    def time(self) -> float:
        """Simulated seconds since the loop was made."""
        return self._now

    def spend(self, seconds: float) -> None:
        """For a function that runs "in a thread": it takes so long."""
        self._spent += seconds

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> "asyncio.Future[T]":  # type: ignore[override]
        """Calls the function here and now; its result comes when the seconds are over that it spent."""
        self._spent = 0.0
        result = func(*args)
        future: asyncio.Future[T] = self.create_future()
        self.call_later(self._spent, future.set_result, result)
        return future

    def _sleep(self, timeout: float | None) -> None:
        if timeout is None:
            raise SimulationDeadlock("the simulation waits for something that never comes")
        self._now += timeout


class _Selector(selectors.DefaultSelector):
    """Waits for no file: the time passes at once."""

    def __init__(self, sleep: Callable[[float | None], None]) -> None:
        super().__init__()
        self._sleep = sleep

    def select(self, timeout: float | None = None) -> list[Any]:
        self._sleep(timeout)
        return []


def run(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, on a simulated clock."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(main)


def loop() -> SimulatedLoop:
    """The one that runs."""
    running = asyncio.get_running_loop()
    assert isinstance(running, SimulatedLoop)
    return running
