"""Starts a stage anew where actors that work as a group lost one, or a node took along what it held: from its last checkpoint."""

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from actors.supervision import BACK, StageLost, describe_error, is_lost_with_node
from arm_rl.core.compute_config import PlacementConfig
from arm_rl.training.group import RunStopped

logger = logging.getLogger(__name__)


@dataclass
class StageProgress:
    """How far a stage has got, over all its starts."""

    furthest: int = 0  # steps done
    num_lost: int = 0  # groups of learners, since `metrics` told
    lost_at: float | None = None  # when the last one was, until the next one serves

    def placement(self, config: PlacementConfig) -> PlacementConfig:
        """The same for the first start; later a node may be lost, and what has fitted once is waited for."""
        return config if self.lost_at is None else replace(config, may_grow=True)

    def reached(self, step: int) -> None:
        """A step is done."""
        self.furthest = max(self.furthest, step)

    def metrics(self) -> dict[str, float]:
        """Restarts since the last call, and the seconds of the last one from the loss until a step was done again."""
        seconds = time.monotonic() - self.lost_at if self.lost_at is not None else 0.0
        found = {"recovery/learner": float(self.num_lost), "recovery/learner_seconds": seconds}
        if self.lost_at is not None:
            logger.warning(BACK, "learner", seconds)
        self.num_lost, self.lost_at = 0, None
        return found


async def with_restarts(stage: Callable[[StageProgress], Awaitable[None]], limit: int) -> None:
    """Runs a stage to its end.

    Args:
        stage: one start of it, from the last checkpoint on.
        limit: starts after which it may be no further than before, in a row.

    Raises:
        RunStopped: the learners are lost again and again.
    """
    progress = StageProgress()
    num_in_vain = 0
    furthest = 0
    while True:
        try:
            return await stage(progress)
        except Exception as error:
            if not isinstance(error, StageLost) and not is_lost_with_node(error):
                raise
            cause = str(error) if isinstance(error, StageLost) else describe_error(error)
            num_in_vain = 1 if progress.furthest > furthest else num_in_vain + 1
            furthest = progress.furthest
            if num_in_vain > limit:
                raise RunStopped(
                    f"{cause}: {num_in_vain} times without getting beyond step {furthest} (run.max_restarts: {limit})"
                ) from error
            logger.warning("%s; the learners are started anew from the last checkpoint", cause)
            progress.num_lost += 1
            progress.lost_at = time.monotonic()
