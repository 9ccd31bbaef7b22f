"""Command-line code that the jobs share: a configuration with overrides, help that lists the keys, errors in one line.

A job imports torch, transformers and Ray after its arguments and its configuration are checked: `--help` and a wrong key answer at once.
"""

import argparse
import asyncio
import errno
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias, TypeVar

from arm_rl.core.config_file import describe, load
from arm_rl.core.errors import UserError
from arm_rl.core.phases import log_phase
from arm_rl.core.stage_config import SftConfig, TrainConfig
from arm_rl.data import parquet_rows
from arm_rl.training.graceful_stop import StoppedOnRequest

ConfigT = TypeVar("ConfigT", TrainConfig, SftConfig)
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # of `prepare_data`

logger = logging.getLogger(__name__)

INTERRUPTED = 130  # exit status after Ctrl-C
FROM_CHECKPOINT = "started again with the same command, the run goes on from its last checkpoint"


def run_job(
    program: str,
    description: str,
    cls: type[ConfigT],
    job: Callable[[ConfigT], Awaitable[str]],
    *,
    argv: Sequence[str] | None = None,
    check: Callable[[ConfigT], None] = lambda config: None,
    resume_hint: str = FROM_CHECKPOINT,
) -> int:
    """Parses the command line, runs the job on a cluster and prints its last line.

    Args:
        program: name of the program in its help and its usage errors.
        argv: arguments of the command line; by default those of the process.
        check: Raises a UserError for an input that is missing, before Ray starts.
        resume_hint: Appended to the message, as for `run_guarded`.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        epilog=f"keys:\n{describe(cls)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="a key of the configuration, and its value")
    arguments = parser.parse_args(argv)

    def start() -> str:
        config = load(cls, arguments.config, arguments.overrides)
        check(config)
        log_phase(f"configuration: {arguments.config} is valid")
        from actors.cluster.connection import cluster

        with cluster():
            log_phase("Ray: connected")
            return asyncio.run(_await_job(job(config)))

    return run_guarded(start, resume_hint=resume_hint)


def run_guarded(start: Callable[[], str], *, resume_hint: str = "") -> int:
    """Run `start` and print its last line; turn Ctrl-C and errors that a user can mend into one line and a status.

    Args:
        resume_hint: Line appended after Ctrl-C, or when a disk is full, to tell that the job can be resumed.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    _quiet_transformers()
    skipped = _SkippedRowsNotice()
    logging.getLogger(parquet_rows.__name__).addHandler(skipped)
    try:
        sys.stdout.write("; ".join([start(), *skipped.notices]) + "\n")
    except StoppedOnRequest as error:
        sys.stderr.write(f"{error}\n")
        return 128 + error.signal  # as shells have it
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("; ".join(["interrupted", *([resume_hint] if resume_hint else [])]) + "\n")
        return INTERRUPTED
    except Exception as error:  # Ray's own text is a page: of an actor's error, its trace there is enough
        from ray.exceptions import RayError

        from actors.supervision import cause_of, describe_error

        full = _is_out_of_space(error)
        if not full and not isinstance(error, RayError):
            raise
        sys.stderr.write(
            "; ".join([f"error: {describe_error(error)}", *([resume_hint] if full and resume_hint else [])]) + "\n"
        )
        if not full and not isinstance(cause_of(error), RayError | UserError):
            logger.info("where it was raised:\n%s", error)
        logger.debug("the whole of it", exc_info=error)
        return 1
    finally:
        logging.getLogger(parquet_rows.__name__).removeHandler(skipped)
    return 0


def _quiet_transformers() -> None:
    """Silence the warnings and progress bars of transformers, whether or not the library is imported yet."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()


def _is_out_of_space(error: BaseException) -> bool:
    """Return whether a disk or Ray's object store has no room left, in whatever words libraries wrap the error."""
    from ray.exceptions import ObjectStoreFullError, OutOfDiskError

    from actors.supervision import cause_of

    cause = cause_of(error)
    if isinstance(cause, ObjectStoreFullError | OutOfDiskError):
        return True
    return isinstance(cause, OSError) and any(
        os.strerror(number) in str(cause) for number in (errno.ENOSPC, errno.EDQUOT)
    )


class _SkippedRowsNotice(logging.Handler):
    """Keeps what was said of broken rows, to be said again at the end: between the two may lie days."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.notices: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.notices.append(record.getMessage().splitlines()[0].rstrip(":"))


async def _await_job(job: Awaitable[str]) -> str:
    return await job
