"""What GPUs, nodes and their network can do: data, with where it comes from.

Peaks are those of the vendor's data sheets, without sparsity (the sheets' tensor numbers carry a star and are twice as high). What real
programs reach of a peak is in `Efficiency`, apart, since it is an assumption and not a fact.
"""

import re
from dataclasses import dataclass, replace

from arm_rl.core.errors import UserError

GIB = 2**30


class HardwareError(UserError):
    """A number of the hardware that cannot be; the message names the option."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One GPU, and its share of the node's network."""

    name: str
    device: str  # regular expression that finds the driver's name of it, in lower case
    memory_gib: float  # that a program sees; a little less than the sheet's
    bandwidth: float  # bytes/s of the device's memory
    flops: float  # dense bfloat16 operations/s
    nvlink: float  # bytes/s to the other GPUs of its node, one direction
    pcie: float  # bytes/s to the host, one direction
    network: float  # bytes/s to other nodes, one direction: its own adapter, as in the vendor's own nodes


# NVIDIA's data sheets. NVLink is given there for both directions together; cards without it use PCIe. Adapters: DGX H100,
# H200 and B200 have one of 400 Gbit/s a GPU, DGX A100 one of 200; L40S and RTX 6000 Ada servers are taken to have one of 200
# for two, cloud instances with A10G or L4 one of 100 for four, and a desktop with an RTX 4090 10 Gbit/s.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(
            name="rtx4090",
            device=r"rtx 4090",
            memory_gib=23.5,
            bandwidth=1.008e12,
            flops=165e12,
            nvlink=32e9,
            pcie=32e9,
            network=1.25e9,
        ),
        Gpu(
            name="rtx6000-ada",
            device=r"rtx 6000 ada",
            memory_gib=47.4,
            bandwidth=0.96e12,
            flops=364e12,
            nvlink=32e9,
            pcie=32e9,
            network=12.5e9,
        ),
        Gpu(
            name="l4",
            device=r"\bl4\b",
            memory_gib=22.0,
            bandwidth=0.3e12,
            flops=121e12,
            nvlink=32e9,
            pcie=32e9,
            network=3.1e9,
        ),
        Gpu(
            name="a10g",
            device=r"a10g",
            memory_gib=22.0,
            bandwidth=0.6e12,
            flops=70e12,
            nvlink=32e9,
            pcie=32e9,
            network=3.1e9,
        ),
        Gpu(
            name="l40s",
            device=r"l40s",
            memory_gib=44.4,
            bandwidth=0.864e12,
            flops=362e12,
            nvlink=32e9,
            pcie=32e9,
            network=12.5e9,
        ),
        Gpu(
            name="a100-40g",
            device=r"a100.*40gb",
            memory_gib=39.4,
            bandwidth=1.555e12,
            flops=312e12,
            nvlink=300e9,
            pcie=32e9,
            network=25e9,
        ),
        Gpu(
            name="a100-80g",
            device=r"a100.*80gb",
            memory_gib=79.1,
            bandwidth=2.04e12,
            flops=312e12,
            nvlink=300e9,
            pcie=32e9,
            network=25e9,
        ),
        Gpu(
            name="h100",
            device=r"h100",
            memory_gib=79.1,
            bandwidth=3.35e12,
            flops=989e12,
            nvlink=450e9,
            pcie=64e9,
            network=50e9,
        ),
        Gpu(
            name="h200",
            device=r"h200",
            memory_gib=139.8,
            bandwidth=4.8e12,
            flops=989e12,
            nvlink=450e9,
            pcie=64e9,
            network=50e9,
        ),
        Gpu(
            name="b200",
            device=r"b200",
            memory_gib=178.4,
            bandwidth=8.0e12,
            flops=2250e12,
            nvlink=900e9,
            pcie=64e9,
            network=50e9,
        ),
    )
}


def gpu_of_device(device: str) -> Gpu | None:
    """Return the card that the driver calls by this name; None if `GPUS` has none such."""
    return next((gpu for gpu in GPUS.values() if re.search(gpu.device, device.lower())), None)


def find_gpu(name: str, *, memory_gib: float | None = None, tflops: float | None = None) -> Gpu:
    """Return a card of `GPUS`, or a card like it with another memory or speed.

    Args:
        name: Key of `GPUS`.
        memory_gib: Memory that a program sees, in GiB.
        tflops: Dense bfloat16 operations a second, in 10^12.

    Raises:
        HardwareError: If a number is not above 0.
    """
    for option, value in (("--gpu-memory", memory_gib), ("--gpu-tflops", tflops)):
        if value is not None and not 0 < value < float("inf"):
            raise HardwareError(f"{option}: a number above 0, not {value}")
    gpu = GPUS[name]
    if memory_gib is None and tflops is None:
        return gpu
    return replace(
        gpu,
        name=f"{name}-like",
        memory_gib=gpu.memory_gib if memory_gib is None else memory_gib,
        flops=gpu.flops if tflops is None else tflops * 1e12,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Equal nodes of equal GPUs."""

    gpu: Gpu
    nodes: int
    gpus_per_node: int

    @property
    def gpus(self) -> int:
        """In all."""
        return self.nodes * self.gpus_per_node

    def collective(self, ranks: int) -> float:
        """Bytes/s at which each of so many ranks receives what all have: by NVLink in a node, and beyond it by all adapters of a node
        together, whose GPUs hand it on by NVLink."""
        gpu = self.gpu
        return gpu.nvlink if ranks <= self.gpus_per_node else min(gpu.nvlink, gpu.network * self.gpus_per_node)


@dataclass(frozen=True, kw_only=True, slots=True)
class Efficiency:
    """What is reached of the peaks, and what the host adds. Assumptions: a run's own timeline says better."""

    matmul: float = 0.4  # of the peak in a learner's forward and backward passes
    prefill: float = 0.5  # of the peak where an engine reads prompts
    decode: float = 0.7  # of the memory's bandwidth where an engine samples
    network: float = 0.7  # of a link in collectives
    hop_seconds: float = 5e-6  # that a collective takes for each rank that it passes (rings)
    # an engine's own work between two forward passes: scheduling, sampling, log-probabilities
    engine_step_seconds: float = 0.004
    eager_layer_seconds: float = 0.0003  # more of a pass for each layer where kernels are launched one by one
    host_bandwidth: float = 5e9  # bytes/s of one core that copies, as for a file in shared memory
    object_bandwidth: float = 2e9  # bytes/s of Ray's object store between two nodes (TCP)
    offload_bandwidth: float = 40e9  # bytes/s of the host's memory for one rank's optimizer
    # of the driver, for a trajectory: `python -m jobs.bench driver` measures 2,090 a second
    driver_seconds: float = 0.0005
    update_seconds: float = 0.5  # fixed part of an engine's update: pause, caches emptied, resume
    sleep_seconds: float = 1.0  # to send an engine to sleep, or to wake it: its weights are dropped, not copied
    disk_bandwidth: float = 2e9  # bytes/s of the disk with models and checkpoints: one NVMe drive
    checksum_bandwidth: float = 4e9  # bytes/s that eight threads hash
    engine_start_seconds: float = 60.0  # process, imports, compile cache, CUDA graphs; weights apart
    learner_start_seconds: float = 45.0  # processes, imports, NCCL, DeepSpeed; weights apart
