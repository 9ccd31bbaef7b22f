"""How long the parts of a step take, from the GPU's roofline, and what bounds each (Williams et al. 2009, "Roofline").

Operations are counted as in Kaplan et al. 2020 (arXiv 2001.08361, section 2.1): 2 for each parameter and token forward, twice that
backward, and attention apart. Traffic of ZeRO is that of its paper (section 7): 2 Psi for stages 0 to 2, 3 Psi for stage 3.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from arm_rl.core.compute_config import LearnerConfig
from arm_rl.plan.hardware import Cluster, Efficiency
from arm_rl.plan.memory import key_value_bytes
from arm_rl.plan.shapes import ModelShape

Bound = Literal["compute", "memory bandwidth", "network", "host"]


class Seconds(NamedTuple):
    """A time and what bounds it."""

    seconds: float
    bound: Bound

    @classmethod
    def longest(cls, **times: float) -> "Seconds":
        """Of times that overlap; names with underscores for blanks."""
        name = max(times, key=times.__getitem__)
        return cls(times[name], name.replace("_", " "))  # type: ignore[arg-type]


class Passes(NamedTuple):
    """What a micro-batch holds, as far as time goes."""

    tokens: float  # of its packed row
    squares: float  # twice the pairs of tokens that attention computes
    image_tokens: float  # of its distinct images
    loss_tokens: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerTimes:
    """Of the learner's phases."""

    shape: ModelShape
    config: LearnerConfig
    cluster: Cluster
    efficiency: Efficiency
    element: int = 2

    def micro_batch(self, passes: Passes, *, train: bool = True) -> Seconds:
        """Forward and backward, or forward alone. Communication goes on meanwhile: the longer one counts."""
        shape, config = self.shape, self.config
        again = 1 if config.gradient_checkpointing and train else 0
        times = 3 + again if train else 1
        frozen_tower = config.freeze_vision and config.freeze_projector
        text = 2 * shape.blocks * passes.tokens + 2 * shape.text.query * shape.text.layers * passes.squares
        head = 2 * shape.vocabulary * shape.text.hidden * passes.loss_tokens
        vision = 2 * (shape.vision + shape.projector) * passes.image_tokens * shape.patches_per_token
        operations = times * (text + head) + (1 if frozen_tower else times) * vision
        gpu = self.cluster.gpu
        return Seconds.longest(compute=operations / (gpu.flops * self.efficiency.matmul), network=self._traffic(train))

    def _traffic(self, train: bool) -> float:
        """Seconds of what ranks send one another for one micro-batch."""
        stage, ranks = self.config.zero_stage, self.config.num_ranks
        if ranks == 1 or stage < 2:
            return 0.0
        gathers = 0 if stage < 3 else 2 if train else 1  # of all weights, for each pass
        sent = gathers * self.shape.parameters + train * self.shape.trained(self.config)
        return self._collective(
            sent * self.element, calls=(gathers + train) * (self.shape.text.layers + self.shape.tower.layers)
        )

    def _collective(self, num_bytes: float, calls: int) -> float:
        """All-gather or reduce-scatter of so many bytes, in so many calls: (N - 1) / N of them arrive at each rank."""
        ranks = self.config.num_ranks
        if ranks == 1:
            return 0.0
        rate = self.cluster.collective(ranks) * self.efficiency.network
        return num_bytes * (ranks - 1) / ranks / rate + calls * ranks * self.efficiency.hop_seconds

    def optimizer(self) -> Seconds:
        """One update: AdamW reads and writes 28 bytes a parameter of the rank's share; stages 0 to 2 exchange what they did not before."""
        shape, config, gpu = self.shape, self.config, self.cluster.gpu
        share = config.num_ranks if config.zero_stage else 1
        trained = shape.trained(config)
        rounds = {0: 2, 1: 2, 2: 1, 3: 0}[config.zero_stage]
        network = rounds * self._collective(trained * self.element, calls=8)
        own = trained / share
        if config.offload_optimizer:
            return Seconds.longest(
                host=28 * own / self.efficiency.offload_bandwidth + 6 * own / gpu.pcie, network=network
            )
        return Seconds.longest(memory_bandwidth=28 * own / gpu.bandwidth, network=network)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineTimes:
    """Of an engine's work."""

    shape: ModelShape
    cluster: Cluster
    efficiency: Efficiency
    tensor_parallel: int = 1
    element: int = 2
    eager: bool = False  # without CUDA graphs

    def prefill(self, tokens: float, image_tokens: float, context: float) -> float:
        """Seconds to read so many new tokens after a context, images encoded."""
        shape = self.shape
        text = 2 * shape.blocks * tokens + 4 * shape.text.query * shape.text.layers * tokens * (context + tokens / 2)
        vision = 2 * (shape.vision + shape.projector) * image_tokens * shape.patches_per_token
        return (text + vision) / (self.cluster.gpu.flops * self.efficiency.prefill * self.tensor_parallel)

    def decode(self, sequences: float, context: float) -> Seconds:
        """One token for each of so many sequences, whose contexts hold so many tokens together."""
        shape, gpu, size = self.shape, self.cluster.gpu, self.tensor_parallel
        read = self.element * (shape.blocks + shape.vocabulary * shape.text.hidden) / size
        read += context * key_value_bytes(shape, tensor_parallel=size, element=self.element)
        memory = read / (gpu.bandwidth * self.efficiency.decode)
        compute = (
            2
            * (shape.blocks + shape.vocabulary * shape.text.hidden)
            * sequences
            / (gpu.flops * self.efficiency.prefill * size)
        )
        host = self.efficiency.engine_step_seconds
        if self.eager:
            host += shape.text.layers * self.efficiency.eager_layer_seconds
        between = 2 * shape.text.layers * size * self.efficiency.hop_seconds if size > 1 else 0.0
        seconds = host + max(memory, compute) + between
        return Seconds(
            seconds, Seconds.longest(memory_bandwidth=memory, compute=compute, host=host, network=between).bound
        )
