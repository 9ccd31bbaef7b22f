"""Tools that misbehave, one that counts and ones that keep state: for the tests of tool files, runners and executors."""

import os
import subprocess
import threading
import time
from dataclasses import dataclass

from arm_rl.core.errors import UserError
from arm_rl.core.session import ToolResult
from tools.base import Execution, ImageName, Tool, ToolContext

THREAD = Execution(isolation="thread")


@dataclass(frozen=True)
class Nothing:
    """No arguments."""


@dataclass(frozen=True)
class Seconds:
    """How long."""

    seconds: float = 0.0


@dataclass(frozen=True)
class OneImage:
    """An image, also inside of lists."""

    image: ImageName | None = None
    images: tuple[ImageName, ...] = ()


def ok(text) -> ToolResult:
    """A result with that text."""
    return ToolResult(status="ok", text=str(text))


class CountTool(Tool):
    """Counts its calls, and how many run at the same time."""

    name = "count"
    description = "Counts."
    Arguments = Seconds
    execution = THREAD

    def __init__(self, *, start: int = 0) -> None:
        self._lock = threading.Lock()
        self.running = self.most_running = 0
        self.num_calls = start

    def run(self, arguments: Seconds, context: ToolContext) -> ToolResult:
        """The number of calls so far, and the most that ran together."""
        with self._lock:
            self.num_calls += 1
            self.running += 1
            self.most_running = max(self.running, self.most_running)
        time.sleep(arguments.seconds)
        with self._lock:
            self.running -= 1
            return ok(f"{self.num_calls} {self.most_running}")


class SlowTool(Tool):
    """Takes its time."""

    name = "slow"
    description = "Waits."
    Arguments = Seconds
    execution = THREAD

    def run(self, arguments: Seconds, context: ToolContext) -> ToolResult:
        """Waits, then says in which process."""
        time.sleep(arguments.seconds)
        return ok(os.getpid())


class BusyTool(SlowTool):
    """Takes its time in a worker process."""

    name = "busy"
    Arguments = Seconds
    execution = Execution(isolation="process")


class RaisingTool(Tool):
    """Raises."""

    name = "raising"
    description = "Raises."
    Arguments = Nothing
    execution = THREAD

    def run(self, arguments: Nothing, context: ToolContext) -> ToolResult:
        """Never returns."""
        raise ZeroDivisionError("a secret of the machine's")


class CrashingTool(Tool):
    """Takes its process down, and leaves a child behind."""

    name = "crashing"
    description = "Crashes."
    Arguments = Nothing

    def run(self, arguments: Nothing, context: ToolContext) -> ToolResult:
        """Never returns."""
        subprocess.Popen(["sleep", "4321"])
        os._exit(1)


class RecklessTool(CrashingTool):
    """Takes the executor down: it does not say that it may crash."""

    name = "reckless"
    Arguments = Nothing
    execution = THREAD


class HungryTool(Tool):
    """Eats memory."""

    name = "hungry"
    description = "Eats."
    Arguments = Nothing
    execution = Execution(memory_mb=1024)

    def run(self, arguments: Nothing, context: ToolContext) -> ToolResult:
        """Never returns a result."""
        eaten = []
        while True:
            eaten.append(bytearray(64 << 20))


class TalkingTool(Tool):
    """Writes to the standard streams of its process, and to all that is open."""

    name = "talking"
    description = "Talks."
    Arguments = Nothing

    def run(self, arguments: Nothing, context: ToolContext) -> ToolResult:
        """A word."""
        print("talk" * 1000)  # noqa: T201 (what a tool prints must not disturb)
        os.write(1, b"talk\n")
        return ok("said")


class MirrorTool(Tool):
    """Shows what it was given: images and texts of the session."""

    name = "mirror"
    description = "Mirrors."
    Arguments = OneImage
    execution = THREAD

    def run(self, arguments: OneImage, context: ToolContext) -> ToolResult:
        """The images as they are."""
        names = [*([arguments.image] if arguments.image else []), *arguments.images]
        said = f"{sorted(context.images)} {sorted(context.texts.values())} {list(context.image_names)} {os.getpid()}"
        return ToolResult(status="ok", text=said, images=tuple(context.image(name) for name in names))


class InlineTool(Tool):
    """Answers at once."""

    name = "inline"
    description = "Counts calls."
    Arguments = Nothing
    execution = Execution(isolation="inline")

    def __init__(self) -> None:
        self.num_calls = 0

    def run(self, arguments: Nothing, context: ToolContext) -> ToolResult:
        """The number of calls so far, the session, the texts."""
        self.num_calls += 1
        return ok(f"{self.num_calls} {context.session} {sorted(context.texts)}")


class KeepingTool(Tool):
    """Keeps a number for each session."""

    name = "keeping"
    description = "Counts the calls of a session."
    Arguments = Nothing
    execution = THREAD
    stateful = True

    def __init__(self) -> None:
        self.kept: dict[str, int] = {}

    def run(self, arguments: Nothing, context: ToolContext) -> ToolResult:
        """The number of this session's calls, of the sessions known, and the process."""
        self.kept[context.session] = self.kept.get(context.session, 0) + 1
        return ok(f"{self.kept[context.session]} {len(self.kept)} {os.getpid()}")

    def release(self, session: str) -> None:
        """Forgets it."""
        self.kept.pop(session, None)


class KeepingApartTool(KeepingTool):
    """The same in worker processes."""

    name = "keeping_apart"
    Arguments = Nothing
    execution = Execution(isolation="process", concurrency=2)


class AbsentTool(RaisingTool):
    """Cannot run on any machine."""

    name = "absent"
    Arguments = Nothing

    def __init__(self) -> None:
        raise UserError("the program `telescope` is missing; install it: apt-get install telescope")
