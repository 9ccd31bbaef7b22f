"""The connection to a Ray cluster: the one the job was submitted to, or a local one that ends with the process."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

# Ray reads these when a local cluster starts; they decide nothing about a run.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # else a page for the second result of a call that failed, though the first one told
}


@contextmanager
def cluster() -> Iterator[None]:
    """Connects for as long as the context lasts; nested contexts use the outer one's connection."""
    if ray.is_initialized():
        yield
        return
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    _keep_quiet_about_deaths()
    try:
        yield
    finally:
        ray.shutdown()


def _keep_quiet_about_deaths() -> None:
    """Keeps Ray from printing a page for each process that dies, which `log_to_driver` does not: who died and why is in our own log.

    Ray 2.60 has no setting for it; to be removed when it has.
    """
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
