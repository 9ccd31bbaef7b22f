"""Seconds in which nothing is learned: weight synchronisation, checkpoints, the restart of an engine, a resume.

Each time is bytes over the bandwidths of `hardware.Gpu` and `hardware.Efficiency`, and fixed parts from there.
"""

import math
from dataclasses import dataclass

from arm_rl.core.compute_config import LearnerConfig, Transfer
from arm_rl.core.stage_config import SftConfig, TrainConfig
from arm_rl.plan.hardware import Cluster, Efficiency
from arm_rl.plan.shapes import ModelShape

_STATE_BYTES = 12  # of a trained parameter in a checkpoint: weight and AdamW's two moments in float32


@dataclass(frozen=True, kw_only=True, slots=True)
class Overheads:
    """Seconds of each event."""

    sync: float  # from updated learners to engines that serve the new weights; 0 in a cold start
    checkpoint: float
    engine_restart: float  # until a new engine serves the newest weights; 0 in a cold start
    resume: float  # until a run that was ended goes on from its checkpoint


def overheads_of(
    config: TrainConfig | SftConfig,
    shape: ModelShape,
    cluster: Cluster,
    efficiency: Efficiency,
    *,
    element: int = 2,
) -> Overheads:
    """Return what the events of a run take.

    Args:
        config: The run's configuration.
        shape: Shape of the model.
        cluster: GPUs and their network.
        efficiency: What is reached of the peaks.
        element: Bytes of a weight.
    """
    learner, weights = config.learner, element * shape.parameters
    checkpoint = checkpoint_seconds(shape, learner, cluster, efficiency)
    stored = _STATE_BYTES * shape.trained(learner)
    read = (weights + stored) / efficiency.disk_bandwidth + stored / efficiency.checksum_bandwidth
    learners = efficiency.learner_start_seconds + read
    if isinstance(config, SftConfig):
        return Overheads(sync=0.0, checkpoint=checkpoint, engine_restart=0.0, resume=learners)
    sync = sync_seconds(config.transfer, shape, learner, cluster, efficiency, element=element)
    engine = efficiency.engine_start_seconds + weights / efficiency.disk_bandwidth
    return Overheads(sync=sync, checkpoint=checkpoint, engine_restart=engine + sync, resume=learners + engine + sync)


def checkpoint_seconds(shape: ModelShape, config: LearnerConfig, cluster: Cluster, efficiency: Efficiency) -> float:
    """Return the seconds of a checkpoint: gather shards, copy them to the host, write files, hash them."""
    ranks, num_bytes = config.num_ranks, _STATE_BYTES * shape.trained(config)
    gathered = num_bytes * (ranks - 1) / ranks / (cluster.collective(ranks) * efficiency.network)
    copied = num_bytes / ranks / efficiency.host_bandwidth
    written = num_bytes / efficiency.disk_bandwidth + num_bytes / efficiency.checksum_bandwidth
    return (gathered if config.zero_stage else 0.0) + copied + written


def sync_seconds(
    transfer: Transfer,
    shape: ModelShape,
    config: LearnerConfig,
    cluster: Cluster,
    efficiency: Efficiency,
    *,
    element: int = 2,
) -> float:
    """Return the seconds from updated learners to engines that serve the new weights."""
    if transfer == "file":
        published = publish_seconds(shape, config, cluster, efficiency, element=element)
        return published + update_seconds(shape, config, cluster, efficiency, element=element)
    return direct_seconds(transfer, shape, config, cluster, efficiency, element=element)


def direct_seconds(
    transfer: Transfer,
    shape: ModelShape,
    config: LearnerConfig,
    cluster: Cluster,
    efficiency: Efficiency,
    *,
    element: int = 2,
) -> float:
    """Return the seconds of a transfer from GPU to GPU, in which engines do not sample.

    Shards are gathered. By IPC each rank copies them into a buffer, and the engine of the same GPU out of it; by NCCL
    rank 0 broadcasts them, to other nodes through its own adapter.
    """
    num_bytes, ranks, gpu = element * shape.parameters, config.num_ranks, cluster.gpu
    shards = (ranks - 1) / ranks if config.zero_stage == 3 else 0.0
    gathered = num_bytes * shards / (cluster.collective(ranks) * efficiency.network)
    if transfer == "ipc":
        sent = 4 * num_bytes / gpu.bandwidth  # read and written, twice
    else:
        sent = num_bytes / (min(gpu.nvlink, gpu.network if cluster.nodes > 1 else gpu.nvlink) * efficiency.network)
    return gathered + sent + efficiency.update_seconds


def publish_seconds(
    shape: ModelShape, config: LearnerConfig, cluster: Cluster, efficiency: Efficiency, *, element: int = 2
) -> float:
    """Return the seconds in which rank 0 writes a file to shared memory, and for other nodes to Ray's object store."""
    num_bytes = element * published(shape, config)
    copies = (2 if config.zero_stage == 3 else 1) + (2 if cluster.nodes > 1 else 0)
    return copies * num_bytes / efficiency.host_bandwidth


def published(shape: ModelShape, config: LearnerConfig) -> int:
    """Return the parameters that travel by file: all weights, or adapters, which engines merge into the base model."""
    return shape.adapters(config) if config.lora_rank else shape.parameters


def update_seconds(
    shape: ModelShape, config: LearnerConfig, cluster: Cluster, efficiency: Efficiency, *, element: int = 2
) -> float:
    """Return the seconds in which engines take the weights of a file.

    Other nodes fetch them from the nodes that have them, so that each round doubles these; then a file, then the GPU.
    """
    num_bytes = element * published(shape, config)
    rounds = math.ceil(math.log2(cluster.nodes)) if cluster.nodes > 1 else 0
    fetched = rounds * num_bytes / efficiency.object_bandwidth + (
        num_bytes / efficiency.host_bandwidth if rounds else 0.0
    )
    return fetched + load_seconds(shape, efficiency, element=element)


def load_seconds(shape: ModelShape, efficiency: Efficiency, *, element: int = 2) -> float:
    """Return the seconds in which an engine loads all weights from the host's memory, and does not sample."""
    return element * shape.parameters / efficiency.host_bandwidth + efficiency.update_seconds
