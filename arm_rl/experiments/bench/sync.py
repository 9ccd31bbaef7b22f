"""How long new weights take: from "the learner is done" to "every engine serves them", over copying as many bytes in memory."""

import asyncio
import shutil
import statistics
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import ray
import torch

from actors.cluster.reservation import reserve
from actors.learner.ranks import LearnerRanks
from actors.learner.settings import LearnerSpec
from actors.rollout.actor import RolloutSpec
from actors.rollout.pool import RolloutPool
from actors.tool_executor import ToolTraits
from actors.weights.files import weights_folder
from arm_rl.core.config import LearnerConfig, ModelConfig, PlacementConfig, RolloutConfig, SessionConfig, TemplateConfig
from arm_rl.core.tracing import SpanBatch
from arm_rl.experiments.bench import models
from arm_rl.experiments.bench.models import ModelSize, Work
from arm_rl.experiments.bench.result import Result

COPY_SECONDS = 0.2  # of copying, for one measurement


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is sent, and where to."""

    size: ModelSize = ModelSize(hidden=1024, layers=10, intermediate=2816)
    num_engines: int = 1
    repeats: int = 7

    def quick(self) -> "Settings":
        """To try it."""
        return replace(self, size=ModelSize(hidden=256, layers=2, intermediate=512), repeats=2)


def measure(settings: Settings) -> Result:
    """Seconds of an update over those of a copy. Wants a Ray cluster."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_parameters = models.build(folder, settings.size)
        return asyncio.run(_measure(settings, folder, num_parameters))


async def _measure(settings: Settings, folder: Path, num_parameters: int) -> Result:
    ours, other, two_threads, publishing, phases = [], [], [], [], []
    copy = _Copy(4 * num_parameters)
    async with _actors(settings, folder) as (learners, rollouts):
        published = weights_folder(f"bench-{uuid.uuid4().hex[:8]}")
        try:
            for version in range(1, settings.repeats + 4):
                _take_spans(learners, rollouts)
                started = time.perf_counter()
                written = await asyncio.to_thread(learners.publish, published, version, rollouts.node_ids)
                done = time.perf_counter()
                await rollouts.update_weights(written)
                served = time.perf_counter()
                seconds = copy.seconds()
                if version > 3:  # the first one is loaded in another way, and the files' memory is made
                    ours.append(served - started)
                    publishing.append(done - started)
                    other.append(seconds)
                    two_threads.append(copy.seconds(num_threads=2))
                    phases.append(_take_spans(learners, rollouts))
        finally:
            shutil.rmtree(published, ignore_errors=True)
    return Result.of(
        key="sync_over_copy",
        what="seconds from learner done to every engine serving the new version, over copying the same bytes",
        goal=4.0,
        unit="s",
        ours=ours,
        other=other,
        less_is_better=True,
        notes=[
            f"{num_parameters:,} parameters, float32, {written.file.num_bytes / 1e6:.0f} MB; 1 rank, {settings.num_engines} engine(s)",
            "the copy is one thread's, between buffers that are there; on top of copying, an engine packs all matrices for its kernels, "
            "with as many threads as there are cores, up to four",
            "the first update, which goes through vLLM's own loading, is left out; no request runs meanwhile",
        ],
        details={
            "num_bytes": written.file.num_bytes,
            "seconds_to_publish": statistics.median(publishing),
            "seconds": {kind: statistics.median(one.get(kind, 0.0) for one in phases) for kind in phases[0]},
            "copy_gb_per_second": written.file.num_bytes / statistics.median(other) / 1e9,
            "ratio_to_copying_with_two_threads": statistics.median(
                one / two for one, two in zip(ours, two_threads, strict=True)
            ),
        },
    )


class _Copy:
    """So many bytes, and room for them."""

    def __init__(self, num_bytes: int) -> None:
        self._from, self._to = torch.ones(num_bytes // 4), torch.zeros(num_bytes // 4)

    def seconds(self, *, num_threads: int = 1) -> float:
        """Of one copy: the median of a few."""
        before = torch.get_num_threads()
        torch.set_num_threads(num_threads)
        taken: list[float] = []
        try:
            while sum(taken) < COPY_SECONDS:
                started = time.perf_counter()
                self._to.copy_(self._from)
                taken.append(time.perf_counter() - started)
        finally:
            torch.set_num_threads(before)
        return statistics.median(taken)


@asynccontextmanager
async def _actors(settings: Settings, folder: Path) -> AsyncIterator[tuple[LearnerRanks, RolloutPool]]:
    model = ModelConfig(path=str(folder), dtype="float32")
    rollout = RolloutConfig(num_actors=settings.num_engines, max_model_len=256, max_num_seqs=16, max_images=2)
    learner = LearnerConfig(num_ranks=1, zero_stage=0, learning_rate=0.0, freeze_vision=False, freeze_projector=False)
    async with reserve("sync", PlacementConfig(use_gpu=False), 1, rollout) as reservation:
        spec = LearnerSpec(
            model=model, config=learner, view=Work(num_groups=1, group_size=1).view, num_steps=1, use_gpu=False
        )
        learners = await asyncio.to_thread(LearnerRanks, spec, [reservation.learner_options(0)])
        try:
            rollouts = await RolloutPool.start(_rollout_spec(model, rollout), [], reservation)
            try:
                yield learners, rollouts
            finally:
                await rollouts.close()
        finally:
            learners.close()


def _rollout_spec(model: ModelConfig, rollout: RolloutConfig) -> RolloutSpec:
    return RolloutSpec(
        model=model,
        template=TemplateConfig(system_prompt="configs/prompts/digits.txt"),
        limits=SessionConfig(),
        rollout=rollout,
        schemas={},
        traits=ToolTraits(inline=frozenset(), stateful=frozenset(), seeing_all=frozenset()),
        use_gpu=False,
        can_sleep=False,
        seed=0,
        stall_seconds=600.0,
    )


def _take_spans(learners: LearnerRanks, rollouts: RolloutPool) -> dict[str, float]:
    """Seconds by kind since the last call, of the slowest actor."""
    recorded: Sequence[SpanBatch] = ray.get([*learners.spans().values(), *rollouts.spans().values()])
    seconds: dict[str, float] = {}
    for one in recorded:
        for span in one.spans:
            seconds[span.kind] = max(seconds.get(span.kind, 0.0), (span.end - span.start) / 1e6)
    return seconds
