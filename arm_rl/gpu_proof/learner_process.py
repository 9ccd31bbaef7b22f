"""A learner rank in the section's own process, where its memory can be seen: the run's code without its Ray actor."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch

from actors.cluster.connection import cluster
from actors.learner.rank import Learner, RankBatch
from actors.learner.settings import LearnerSpec
from arm_rl.core.batching import make_batch
from arm_rl.core.compute_config import LearnerConfig
from arm_rl.core.images import Image
from arm_rl.core.loss import GrpoObjective
from arm_rl.core.types import TrainingSample
from arm_rl.gpu_proof.samples import TokenIds
from arm_rl.gpu_proof.scale import Proof
from arm_rl.plan.hardware import GPUS, Cluster, Efficiency, Gpu, gpu_of_device
from arm_rl.plan.shapes import ModelShape
from arm_rl.plan.step_time import LearnerTimes, Passes

NUM_STEPS = 10  # of the learning rate's schedule; no section takes as many


@contextmanager
def learner(proof: Proof, folder: Path, config: LearnerConfig) -> Iterator[Learner]:
    """Start Ray, for its object store, and the one rank of a learner in this process."""
    spec = LearnerSpec(
        model=proof.model_config(folder),
        config=config,
        view=proof.view,
        num_steps=NUM_STEPS,
        never_sampled_ids=TokenIds.of(folder).never_sampled,
        use_gpu=proof.on_gpu,
    )
    with cluster():
        rank = Learner(spec, 0)
        rank.start(*rank.open_rendezvous())
        yield rank


def rank_batch(samples: Sequence[TrainingSample], micro_batch_tokens: int) -> RankBatch:
    """Return the samples as the only rank's share of a batch."""
    batch = make_batch(samples, num_ranks=1, micro_batch_tokens=micro_batch_tokens)
    return RankBatch(
        micro_batches=batch.micro_batches[0],
        num_loss_tokens=batch.num_loss_tokens,
        num_samples=batch.num_samples,
        has_images=any(sample.image_keys for sample in samples),
    )


def train_steps(
    rank: Learner, batch: RankBatch, images: Mapping[str, Image], steps: int
) -> tuple[list[float], list[str]]:
    """Take optimizer steps; return the seconds of each, and what is not finite or did not change."""
    stored = {key: ray.put({key: image}) for key, image in images.items()}
    seconds, problems = [], []
    for number in range(steps):
        started = time.perf_counter()
        metrics = rank.train(batch, stored, GrpoObjective())
        seconds.append(time.perf_counter() - started)
        problems += [f"step {number}: {name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]
        if not metrics["grad_norm"] > 0:
            problems.append(f"step {number}: the gradient is 0")
    return seconds, problems


def passes(batch: RankBatch) -> Passes:
    """Return what the batch's micro-batches hold, as the plan counts it."""
    rows = [sample for samples in batch.micro_batches for sample in samples]
    return Passes(
        tokens=sum(len(row.token_ids) for row in rows),
        squares=sum(len(row.token_ids) ** 2 for row in rows),
        image_tokens=sum(sum(row.image_tokens) for row in rows),
        loss_tokens=batch.num_loss_tokens,
    )


def operations(shape: ModelShape, config: LearnerConfig, counted: Passes) -> float:
    """Return the operations of forward and backward passes as the plan counts them, recomputation included."""
    unit = Cluster(gpu=replace(GPUS["h200"], flops=1.0), nodes=1, gpus_per_node=1)
    return (
        LearnerTimes(shape=shape, config=config, cluster=unit, efficiency=Efficiency(matmul=1.0))
        .micro_batch(counted)
        .seconds
    )


def planned_gpu() -> Gpu | None:
    """Return the plan's entry for this GPU; None if the plan has none."""
    return gpu_of_device(torch.cuda.get_device_name())


def reset_peak(proof: Proof) -> None:
    """Forget the peak of the GPU's memory so far."""
    if proof.on_gpu:
        torch.cuda.reset_peak_memory_stats()


def peak_bytes(proof: Proof) -> int | None:
    """Return the peak of the GPU's memory that torch had allocated; None on CPU."""
    return torch.cuda.max_memory_allocated() if proof.on_gpu else None


def allocated(parts: Mapping[str, int]) -> int:
    """Return what the plan expects torch to allocate: its parts but the process's own and the allocator's losses."""
    return sum(size for name, size in parts.items() if name not in ("host", "context", "fragments"))


def shares(batch: RankBatch) -> dict[str, Any]:
    """Return the shares of image tokens and of loss tokens, which the plan's memory depends on."""
    counted = passes(batch)
    cost = counted.tokens + counted.image_tokens
    return {"image_share": counted.image_tokens / cost, "loss_share": counted.loss_tokens / counted.tokens}
