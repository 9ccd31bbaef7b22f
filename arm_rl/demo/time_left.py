"""The time that a job of several phases still needs, from what this machine has measured so far."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

MIN_SHARE = 0.05  # of a phase, before its own pace counts: start-up is slow


class PhaseTimer:
    """Measures phases and estimates the time that is left.

    Expected seconds only weigh the phases against each other. The machine's pace is the ratio of measured to expected seconds over
    all that is done: finished phases, and the share of the running phase that its progress reports.
    """

    def __init__(
        self,
        expected: Mapping[str, float],
        finished: Mapping[str, float],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare the timer.

        Args:
            expected: Seconds of each phase on some machine, by name.
            finished: Measured seconds of the phases that are finished already.
            clock: Returns the time in seconds.
        """
        self._expected, self._clock = expected, clock
        self.finished = dict(finished)
        self._running: str | None = None
        self._started = self._first_share = 0.0

    def start(self, name: str, share: float = 0.0) -> None:
        """Start a phase, of which an earlier run may have done a share (0..1) already."""
        self._running, self._started, self._first_share = name, self._clock(), share

    def finish(self) -> None:
        """Finish the running phase and record its seconds."""
        assert self._running is not None, "no phase is running"
        self.finished[self._running] = round(self._clock() - self._started, 1)
        self._running = None

    def seconds_left(self, share: float | None = None) -> float:
        """Return the estimated seconds until all phases are finished.

        Args:
            share: Share of the running phase that is done (0..1); None if it is unknown.
        """
        spent = self._clock() - self._started if self._running is not None else 0.0
        gained = 0.0 if self._running is None or share is None else share - self._first_share
        counts = gained >= MIN_SHARE
        pace = self._pace(spent, gained) if counts else self._pace(0.0, 0.0)
        left = pace * sum(
            seconds for name, seconds in self._expected.items() if name not in {*self.finished, self._running}
        )
        if self._running is None:
            return left
        if counts and share is not None:
            return left + spent / gained * (1 - share)
        expected = pace * self._expected[self._running] * (1 - self._first_share)
        return left + max(0.0, expected - spent)

    def describe(self, share: float | None = None) -> str:
        """Return the estimate for a reader; before anything is measured it says where the expected time comes from."""
        minutes = max(1, round(self.seconds_left(share) / 60))
        if not self.finished and (share is None or share - self._first_share < MIN_SHARE):
            return f"about {minutes} min on two idle cores"
        return f"about {minutes} min left"

    def _pace(self, spent: float, gained: float) -> float:
        """Return the ratio of measured to expected seconds; 1 if nothing is measured yet."""
        running = 0.0 if self._running is None else gained * self._expected[self._running]
        expected = sum(self._expected[name] for name in self.finished) + running
        return (sum(self.finished.values()) + spent) / expected if expected else 1.0


@contextmanager
def repeat_every(seconds: float, action: Callable[[], None]) -> Iterator[None]:
    """Run an action in a thread of its own every so many seconds, until the block ends."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(seconds):
            action()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
