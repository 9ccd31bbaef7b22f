"""What is done about an actor that dies or hangs: it is counted, and too many deaths end the run with their cause.

lives? answers? -> no -> counted -> killed, if it hangs -> another one
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, ObjectLostError, RayActorError, RayError, RayTaskError

from arm_rl.core.errors import UserError

logger = logging.getLogger(__name__)

BACK = "%s is back after %.1f s"  # in the log, of a kind of actors

RETRIES = 3  # of a call whose actor died under it
PULSE_SECONDS = 5.0  # between two signs of life of an actor

T = TypeVar("T")


class ActorsLost(UserError):
    """Actors die as often as they are started anew."""


class StageLost(RuntimeError):
    """Actors that work as one group have lost a member: the stage can go on from its last checkpoint, with new ones."""


class ActorStalled(RuntimeError):
    """An actor hangs."""


class SupervisedActor:
    """What supervision asks of an actor that runs an event loop."""

    async def lives(self) -> None:
        """Never returns: the call ends with the actor, which tells the one who waits for it."""
        await asyncio.Event().wait()

    async def pulse(self) -> None:
        """Returns, unless the actor hangs."""


class Deaths:
    """The deaths of one kind of actors."""

    def __init__(self, kind: str, limit: int) -> None:
        """None so far.

        Args:
            kind: as in the message and in the metrics.
            limit: deaths without progress in between that a run lives through.
        """
        self.kind, self._limit = kind, limit
        self._in_a_row = 0
        self._number, self._seconds = 0, 0.0  # since the last `metrics`

    def add(self, error: BaseException) -> None:
        """Counts one.

        Raises:
            ActorsLost: it is one too many.
        """
        self._number += 1
        self._in_a_row += 1
        logger.warning("%s died and is started anew: %s", self.kind, described(error))
        if self._in_a_row > self._limit:
            raise ActorsLost(
                f"{described(error)}: {self.kind} died {self._in_a_row} times with nothing finished in between"
            )

    def back(self, seconds: float) -> None:
        """One is there again, so long after it died."""
        self._seconds += seconds
        logger.warning(BACK, self.kind, seconds)

    def progress(self) -> None:
        """Something was finished: what died before is forgiven."""
        self._in_a_row = 0

    def metrics(self) -> dict[str, float]:
        """Deaths since the last call, and the seconds in all until their successors served."""
        found = {f"recovery/{self.kind}": float(self._number), f"recovery/{self.kind}_seconds": self._seconds}
        self._number, self._seconds = 0, 0.0
        return found


async def end_of(actor: ActorHandle, stall_seconds: float) -> BaseException:
    """Waits until a `SupervisedActor` actor is of no use any more, and says why: it died, its pulse fails, or it did not come in time."""
    lives = pulse = asyncio.ensure_future(actor.lives.remote())
    try:
        while not lives.done():
            pulse = asyncio.ensure_future(actor.pulse.remote())
            await asyncio.wait([pulse], timeout=stall_seconds)
            if not pulse.done():
                return ActorStalled(f"no sign of life for {stall_seconds:g} seconds (run.stall_seconds)")
            if (error := pulse.exception()) is not None:
                return error
            await asyncio.wait([lives], timeout=PULSE_SECONDS)
        error = lives.exception()
        assert error is not None, "it never returns"
        return error
    finally:
        forget(lives, pulse)


def forget(*answers: asyncio.Future) -> None:
    """Nobody waits for these any more: asyncio shall not report what came of them as an error that nobody has seen."""
    for answer in answers:
        if not answer.cancel() and not answer.cancelled():
            answer.exception()


async def run_again(actor: ActorHandle, call: Callable[[], Awaitable[T]], retries: int = RETRIES) -> T:
    """Makes a call of an actor that Ray starts anew by itself; where it died under the call, once more when it is back.

    Ray's own retries are gone in a moment where it knows no better than that the actor does not answer.

    Raises:
        RayActorError: it dies each time, or is not started anew.
    """
    for _ in range(retries):
        try:
            return await call()
        except RayActorError:
            await _back(actor)
    return await call()


async def _back(actor: ActorHandle) -> None:
    """Waits until Ray has started the actor anew. Raises RayActorError where it does not."""
    await actor.pulse.options(max_task_retries=-1).remote()


async def watch(actor: ActorHandle, deaths: Deaths, stall_seconds: float) -> None:
    """Counts the deaths of an actor that Ray starts anew by itself; one that hangs is killed."""
    while True:
        error = await end_of(actor, stall_seconds)
        died = time.monotonic()
        deaths.add(error)
        if not isinstance(error, RayActorError):
            ray.kill(actor, no_restart=False)
        await _back(actor)
        deaths.back(time.monotonic() - died)


def cause_of(error: BaseException) -> BaseException:
    """What was raised in the actor, where Ray has wrapped it."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error


def went_with_its_node(error: BaseException) -> bool:
    """Whether an object is gone that nobody can make again: unlike processes, nodes take along what their actors have returned."""
    return isinstance(cause_of(error), ObjectLostError)


def described(error: BaseException) -> str:
    """An error in one line, without the traces that Ray puts around it."""
    cause = cause_of(error)
    if isinstance(cause, UserError):
        return str(cause)
    text = str(cause)
    if not isinstance(cause, RayError):
        return f"{type(cause).__name__}: {text}" if text else type(cause).__name__
    _, found, detail = text.partition("exit detail: ")
    if found:  # of a process that ended; hints on what may have killed it follow
        return f"its process ended: {detail.partition(' Some common causes')[0].strip()}"
    if isinstance(cause, ActorUnavailableError):  # Ray starts it anew, and knows no more
        return "its process ended"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else type(cause).__name__  # of one that raised as it was made: the last line of its trace
