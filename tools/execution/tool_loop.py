"""The event loop that the asynchronous tools of a process share: their connections and tasks live on it between calls."""

import functools
import threading

from arm_rl.core.loop_thread import LoopThread

_lock = threading.Lock()


def tool_loop() -> LoopThread:
    """Return the loop. The first call starts it, and it ends with the process."""
    with _lock:  # first calls from several threads at once must not start a loop each
        return _start_loop()


@functools.cache
def _start_loop() -> LoopThread:
    return LoopThread("tool-loop")
