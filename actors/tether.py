"""Runs a command and ends it, with all that it started, when its owner is gone, however hard that went: `python -m actors.tether COMMAND…`.

The owner holds the other end of standard input. No more is needed to know that it lives: the system closes it for whoever is killed.
"""

import os
import signal
import subprocess
import sys
import threading

GRACE_SECONDS = 10.0  # that the command is given to end by itself


def _end_with_owner() -> None:
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGTERM)
    threading.Event().wait(GRACE_SECONDS)
    os.killpg(0, signal.SIGKILL)


def main() -> int:
    """The command's exit status. Started as the leader of a process group, which signals reach as a whole."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # the command has got it too, and says when it is done
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_with_owner, daemon=True).start()
    return process.wait()


if __name__ == "__main__":
    sys.exit(main())
