"""The archive: an actor that writes trajectories with their images to disk, and reads them. Pixels never pass through the driver."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import ray

from actors.supervision import SupervisedActor
from arm_rl.core import tracing, trajectory_file
from arm_rl.core.images import Image
from arm_rl.core.tracing import SpanBatch, recorded
from arm_rl.core.types import Sample, ScoredTrajectory


class Archive(SupervisedActor):
    """Writes and reads files, several at a time. One process for all of them: a process takes Ray longer to start than a file to write."""

    @recorded("write", track="call")
    async def write(
        self,
        path: Path,
        scored: Sequence[ScoredTrajectory],
        samples: Mapping[str, Sample],
        stage: str,
        step: int,
        *images: Mapping[str, Image],
    ) -> None:
        """Writes one file; `images` are groups' images by key, which Ray fetches."""
        by_key = {key: image for group in images for key, image in group.items()}
        await asyncio.to_thread(trajectory_file.write, path, scored, samples, by_key, stage=stage, step=step)

    @recorded("read", track="call")
    @ray.method(num_returns=2)
    async def read(self, path: Path) -> tuple[list[ScoredTrajectory], dict[str, Image]]:
        """The trajectories of a file, and apart from them its images by key."""
        log = await asyncio.to_thread(trajectory_file.read, path)
        return list(log.scored), log.images

    def spans(self) -> SpanBatch:
        """What this actor did since the last call, for the timeline."""
        return tracing.take()
