"""A worker process that runs the calls of one tool, one at a time: what hangs, crashes or eats memory there takes nothing else along.

`ToolWorker` is the owner's side; `python -m tools.execution.worker` is the process. They speak over a private socket pair.
"""

import logging
import os
import resource
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from arm_rl.core.owner import die_with_parent
from arm_rl.core.session import ToolResult
from arm_rl.core.types import ToolStatus
from tools.base import Tool, ToolContext

logger = logging.getLogger(__name__)

START_SECONDS = 120.0  # until a new process is ready: it imports what the tool imports


class CallLost(RuntimeError):
    """A call that gave no result: it took too long, or its process died. The message ends a sentence that begins with the tool's name."""

    def __init__(self, status: ToolStatus, message: str) -> None:
        super().__init__(message)
        self.status = status

    @classmethod
    def after_timeout(cls, seconds: float) -> "CallLost":
        """Return the error of a call that took longer than `seconds`."""
        return cls("timeout", f"took longer than {seconds:g} seconds")


class ToolWorker:
    """The process, from its owner's side. Make it in a thread that stays: it ends with that thread."""

    def __init__(self, tool: Tool) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tools.execution.worker", str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # what it starts itself is ended with it
            )
        self._connection = Connection(ours.detach())
        self._connection.send(tool)
        self._ready = False

    def call(self, arguments: dict[str, Any], context: ToolContext, timeout: float) -> ToolResult:
        """Runs one call; blocks.

        Raises:
            CallLost: it took longer than `timeout` seconds, or the process died. It is dead afterwards.
        """
        if not self._ready:
            self._ask(None, START_SECONDS)
            self._ready = True
        return self._ask(("call", arguments, context), timeout)

    def release(self, session: str, timeout: float) -> None:
        """Lets the tool forget a session; blocks. Raises as `call`."""
        self._ask(("release", session), timeout)

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Ends the process and what it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _ask(self, message: Any, timeout: float) -> Any:
        try:
            if message is not None:
                self._connection.send(message)
            if not self._connection.poll(timeout):
                self.kill()
                raise CallLost.after_timeout(timeout)
            return self._connection.recv()
        except (EOFError, OSError) as error:
            self.kill()
            raise CallLost("failed", "crashed") from error


def serve(connection: Connection) -> None:
    """Answers calls until the owner is gone."""
    tool: Tool = connection.recv()
    if tool.execution.memory_mb is not None:
        size = tool.execution.memory_mb << 20
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    connection.send(None)
    while True:
        try:
            kind, *values = connection.recv()
        except EOFError:
            tool.close()
            return
        if kind == "call":
            connection.send(tool.call(*values))
        else:
            try:
                tool.release(*values)
            except Exception:  # of one session; the others' state is in this process too
                logger.exception("%s could not release a session", tool.name)
            connection.send(None)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[2]))
    serve(Connection(int(sys.argv[1])))
