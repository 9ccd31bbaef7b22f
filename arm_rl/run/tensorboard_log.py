"""Metrics for TensorBoard, in `tensorboard/STAGE` of the run folder."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorboardLog:
    """Event files of one stage. A run that is started again takes back the steps that it does again."""

    def __init__(self, folder: Path, stage: str) -> None:
        self._folder = folder / "tensorboard" / (stage or "run")
        self._writer: SummaryWriter | None = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """A step's metrics; what is not finite is left out."""
        from torch.utils.tensorboard import SummaryWriter  # optional: the configuration has looked that it is there

        if self._writer is None:
            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        for name, value in metrics.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()
