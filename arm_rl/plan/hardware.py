"""What GPUs, nodes and their network can do: data, with where it comes from.

Peaks are those of the vendor's data sheets, without sparsity (the sheets' tensor numbers carry a star and are twice as high). What real
programs reach of a peak is in `Efficiency`, apart, since it is an assumption and not a fact.
"""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One GPU, and its share of the node's network."""

    name: str
    memory_gib: float  # that a program sees; a little less than the sheet's
    bandwidth: float  # bytes/s of the device's memory
    flops: float  # dense bfloat16 operations/s
    nvlink: float  # bytes/s to the other GPUs of its node, one direction
    pcie: float  # bytes/s to the host, one direction
    network: float  # bytes/s to other nodes, one direction: its own adapter, as in the vendor's own nodes


# NVIDIA's data sheets: H200, H100 SXM and A100 80GB SXM, B200 (HGX), L40S. NVLink is given there for both directions together; an L40S has
# none. Adapters: DGX H100, H200 and B200 have one of 400 Gbit/s a GPU, DGX A100 one of 200; L40S servers are taken to have one for two.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(name="h200", memory_gib=139.8, bandwidth=4.8e12, flops=989e12, nvlink=450e9, pcie=64e9, network=50e9),
        Gpu(name="h100", memory_gib=79.1, bandwidth=3.35e12, flops=989e12, nvlink=450e9, pcie=64e9, network=50e9),
        Gpu(name="a100", memory_gib=79.1, bandwidth=2.04e12, flops=312e12, nvlink=300e9, pcie=32e9, network=25e9),
        Gpu(name="b200", memory_gib=178.4, bandwidth=8.0e12, flops=2250e12, nvlink=900e9, pcie=64e9, network=50e9),
        Gpu(name="l40s", memory_gib=44.4, bandwidth=0.864e12, flops=362e12, nvlink=32e9, pcie=32e9, network=12.5e9),
    )
}


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
    host_bandwidth: float = 5e9  # bytes/s of one core that copies, as for a file in shared memory
    object_bandwidth: float = 2e9  # bytes/s of Ray's object store between two nodes (TCP)
    offload_bandwidth: float = 40e9  # bytes/s of the host's memory for one rank's optimizer
    # of the driver, for a trajectory: `python -m jobs.bench driver` measures 2,090 a second
    driver_seconds: float = 0.0005
    update_seconds: float = 0.5  # fixed part of an engine's update: pause, caches emptied, resume
    sleep_seconds: float = 1.0  # fixed part of sending an engine to sleep, or of waking it
