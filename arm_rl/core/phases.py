"""Lines that tell how far a job has got, from its first second on."""

import logging
import time

import psutil

logger = logging.getLogger(__name__)


def log_phase(phase: str) -> None:
    """Log that a phase of a job is done or begins, with the seconds since the process started.

    Args:
        phase: Name of the phase and its state, such as "engines: up".
    """
    logger.info("%s (%.0f s after the start)", phase, time.time() - psutil.Process().create_time())
