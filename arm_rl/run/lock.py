"""The lock of a run's folder: one process at a time writes there.

The kernel holds the lock (flock) and releases it when the process ends, however it ends: a killed process leaves
no stale lock. The file's text, host and process id, only serves the message to the next process.
"""

import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from arm_rl.core.config import ConfigError

logger = logging.getLogger(__name__)

LOCK_FILE = "run.lock"
_BUSY = (BlockingIOError, PermissionError)  # what flock raises, by file system, where another process has the lock


@contextmanager
def locked(folder: Path, *, remedy: str = "choose another run.name") -> Iterator[None]:
    """Hold the lock of a run's folder, which is made if it does not exist.

    A file system without locks is used without one, with a warning.

    Args:
        folder: Folder of a run.
        remedy: What the user can do if another process must go on.

    Raises:
        ConfigError: If another process works in the folder; the message names its host and process id.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except _BUSY as error:
            raise ConfigError(
                f"{folder}: {_describe_holder(file.name)} works in this folder: wait for its end, stop it, or {remedy} "
                f"(if that host is gone for good, remove {file.name})"
            ) from error
        except OSError as error:
            logger.warning("%s: this file system has no locks (%s): start a run once only", folder, error.strerror)
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
        file.flush()
        yield


def _describe_holder(file: str) -> str:
    try:
        holder = json.loads(Path(file).read_text())
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, TypeError, KeyError):  # it has just taken the lock, and has not written yet
        return "another process"
