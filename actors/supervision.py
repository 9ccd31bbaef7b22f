"""What is done about an actor that dies or hangs: it is counted, and too many deaths end the run with their cause.

alive? answers? -> no -> counted -> killed, if it hangs -> another one
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, ObjectLostError, RayActorError, RayError, RayTaskError

from arm_rl.core.errors import EngineDied, UserError

logger = logging.getLogger(__name__)

BACK = "%s is back after %.1f s"  # in the log, of a kind of actors

RETRIES = 3  # of a call whose actor died under it
PULSE_SECONDS = 5.0  # between two signs of life of an actor

T = TypeVar("T")


class ActorsLost(UserError):
    """Actors die as often as they are started anew."""


class StageLost(RuntimeError):
    """Actors that work together have lost a member: the stage can resume from its last checkpoint with new actors."""


class ActorStalled(RuntimeError):
    """An actor hangs."""


class SupervisedActor:
    """What supervision asks of an actor that runs an event loop."""

    async def wait_until_death(self) -> None:
        """Wait forever: the call fails when the actor dies, which informs its caller."""
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
        logger.warning("%s died and is started anew: %s", self.kind, describe_error(error))
        if self._in_a_row > self._limit:
            raise ActorsLost(
                f"{describe_error(error)}: {self.kind} died {self._in_a_row} times with nothing finished in between"
            )

    def record_recovery(self, seconds: float) -> None:
        """Record that an actor serves again, `seconds` after it died."""
        self._seconds += seconds
        logger.warning(BACK, self.kind, seconds)

    def reset(self) -> None:
        """Forget earlier deaths: the run made progress."""
        self._in_a_row = 0

    def metrics(self) -> dict[str, float]:
        """Deaths since the last call, and the seconds in all until their successors served."""
        found = {f"recovery/{self.kind}": float(self._number), f"recovery/{self.kind}_seconds": self._seconds}
        self._number, self._seconds = 0, 0.0
        return found


async def wait_for_end(actor: ActorHandle, stall_seconds: float) -> BaseException:
    """Wait until a `SupervisedActor` dies, fails its pulse or stalls, and return the error."""
    death = pulse = asyncio.ensure_future(actor.wait_until_death.remote())
    try:
        while not death.done():
            pulse = asyncio.ensure_future(actor.pulse.remote())
            await asyncio.wait([pulse], timeout=stall_seconds)
            if not pulse.done():
                return ActorStalled(f"no sign of life for {stall_seconds:g} seconds (run.stall_seconds)")
            if (error := pulse.exception()) is not None:
                return error
            await asyncio.wait([death], timeout=PULSE_SECONDS)
        error = death.exception()
        assert error is not None, "it never returns"
        return error
    finally:
        discard_answers(death, pulse)


def discard_answers(*answers: asyncio.Future) -> None:
    """Cancel answers that nobody waits for: asyncio shall not report their errors as never retrieved."""
    for answer in answers:
        if not answer.cancel() and not answer.cancelled():
            answer.exception()


async def call_with_retries(actor: ActorHandle, call: Callable[[], Awaitable[T]], retries: int = RETRIES) -> T:
    """Call an actor that Ray restarts by itself, and retry if the actor died during the call.

    Ray's own retries are gone in a moment where it knows no better than that the actor does not answer.

    Raises:
        RayActorError: it dies each time, or is not started anew.
    """
    for _ in range(retries):
        try:
            return await call()
        except RayActorError:
            await _wait_for_restart(actor)
    return await call()


async def _wait_for_restart(actor: ActorHandle) -> None:
    """Wait until Ray has restarted the actor; raise RayActorError if Ray does not."""
    await actor.pulse.options(max_task_retries=-1).remote()


async def watch(actor: ActorHandle, deaths: Deaths, stall_seconds: float) -> None:
    """Counts the deaths of an actor that Ray starts anew by itself; one that hangs is killed."""
    while True:
        error = await wait_for_end(actor, stall_seconds)
        died = time.monotonic()
        deaths.add(error)
        if not isinstance(error, RayActorError):
            ray.kill(actor, no_restart=False)
        await _wait_for_restart(actor)
        deaths.record_recovery(time.monotonic() - died)


def cause_of(error: BaseException) -> BaseException:
    """What was raised in the actor, where Ray has wrapped it."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error


def is_lost_with_node(error: BaseException) -> bool:
    """Return whether an object was lost with its node: unlike an actor, Ray cannot restart it."""
    return isinstance(cause_of(error), ObjectLostError)


def is_loss(error: BaseException) -> bool:
    """Return whether an actor, a node, an engine or a connection was lost, or did not answer in time: another attempt may succeed.

    Every other error is deterministic, and comes again.
    """
    cause = cause_of(error)
    by_ray = isinstance(cause, RayError) and not isinstance(cause, RayTaskError)  # raised by no code of an actor
    return by_ray or isinstance(cause, EngineDied | ConnectionError | TimeoutError)


def describe_error(error: BaseException) -> str:
    """Return an error as one line, without Ray's traces."""
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
