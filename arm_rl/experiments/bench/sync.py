"""How long new weights take: from "the learner is done" to "every engine serves them", over copying as many bytes in memory."""

import asyncio
import shutil
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
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
from arm_rl.core.compute_config import LearnerConfig, PlacementConfig, RolloutConfig
from arm_rl.core.config import ModelConfig, SessionConfig, TemplateConfig
from arm_rl.core.tracing import SpanBatch
from arm_rl.experiments.bench import models
from arm_rl.experiments.bench.benchmark import Measurement, SpeedBenchmark, Workspace, medians
from arm_rl.experiments.bench.models import ModelSize, SyntheticTrajectories

COPY_SECONDS = 0.2  # of copying, for one measurement


@dataclass(frozen=True, kw_only=True)
class SyncSettings:
    """The model whose weights are sent, and the number of engines and repeats."""

    size: ModelSize = ModelSize(hidden=1024, layers=10, intermediate=2816)
    num_engines: int = 1
    repeats: int = 7


def measure(settings: SyncSettings, workspace: Workspace) -> Measurement:
    """Measure seconds of an update and of a copy of the same bytes."""
    num_parameters = models.build(workspace.temporary, settings.size)
    return asyncio.run(_measure(settings, workspace.temporary, num_parameters))


BENCHMARK = SpeedBenchmark(
    key="sync_over_copy",
    what="seconds from learner done to every engine serving the new version, over copying the same bytes",
    unit="s",
    goal=4.0,
    less_is_better=True,
    settings=SyncSettings(),
    quick=SyncSettings(size=ModelSize(hidden=256, layers=2, intermediate=512), repeats=2),
    measure=measure,
)


async def _measure(settings: SyncSettings, folder: Path, num_parameters: int) -> Measurement:
    ours, other, two_threads, publishing, phases = [], [], [], [], []
    copy = _MemoryCopy(4 * num_parameters)
    async with _actors(settings, folder) as (learners, rollouts):
        published = weights_folder(f"bench-{uuid.uuid4().hex[:8]}")
        try:
            for version in range(1, settings.repeats + 4):
                _take_spans(learners, rollouts)
                started = time.perf_counter()
                written = await asyncio.to_thread(learners.publish, published, version, rollouts.node_ids)
                done = time.perf_counter()
                await rollouts.serve(written)
                served = time.perf_counter()
                num_bytes = written.file.path.stat().st_size
                seconds = copy.seconds()
                if version > 3:  # the first updates also prepare the layers
                    ours.append(served - started)
                    publishing.append(done - started)
                    other.append(seconds)
                    two_threads.append(copy.seconds(num_threads=2))
                    phases.append(_take_spans(learners, rollouts))
        finally:
            shutil.rmtree(published, ignore_errors=True)
    return Measurement(
        ours=ours,
        other=other,
        notes=[
            f"{num_parameters:,} parameters, float32, {num_bytes / 1e6:.0f} MB; 1 rank, {settings.num_engines} engine(s)",
            "the copy is one thread's, between buffers that are there; on top of copying, the learner makes a new file, and an engine "
            "loads it layer by layer and packs all matrices for its kernels",
            "the first three updates are left out; no request runs meanwhile",
        ],
        details={
            "num_bytes": num_bytes,
            "seconds_to_publish": statistics.median(publishing),
            "seconds": medians(phases),
            "copy_gb_per_second": num_bytes / statistics.median(other) / 1e9,
            "ratio_to_copying_with_two_threads": statistics.median(
                one / two for one, two in zip(ours, two_threads, strict=True)
            ),
        },
    )


class _MemoryCopy:
    """Two buffers of one size, of which the first is copied into the second."""

    def __init__(self, num_bytes: int) -> None:
        self._from, self._to = torch.ones(num_bytes // 4), torch.zeros(num_bytes // 4)

    def seconds(self, *, num_threads: int = 1) -> float:
        """Return the median seconds of a few copies."""
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
async def _actors(settings: SyncSettings, folder: Path) -> AsyncIterator[tuple[LearnerRanks, RolloutPool]]:
    model = ModelConfig(path=str(folder), dtype="float32")
    rollout = RolloutConfig(num_actors=settings.num_engines, max_model_len=256, max_num_seqs=16, max_images=2)
    learner = LearnerConfig(num_ranks=1, zero_stage=0, learning_rate=0.0, freeze_vision=False, freeze_projector=False)
    async with reserve("sync", PlacementConfig(use_gpu=False), 1, rollout) as reservation:
        spec = LearnerSpec(
            model=model,
            config=learner,
            view=SyntheticTrajectories(num_groups=1, group_size=1).view,
            num_steps=1,
            use_gpu=False,
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
    """Return the seconds of the longest span of each kind since the last call."""
    recorded: Sequence[SpanBatch] = ray.get([*learners.spans().values(), *rollouts.spans().values()])
    seconds: dict[str, float] = {}
    for one in recorded:
        for span in one.spans:
            seconds[span.kind] = max(seconds.get(span.kind, 0.0), (span.end - span.start) / 1e6)
    return seconds
