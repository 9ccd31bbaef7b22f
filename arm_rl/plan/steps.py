"""How long a step takes in the steady state, and how that scales with the number of GPUs."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from arm_rl.core.batching import make_batch
from arm_rl.core.config import ConfigError
from arm_rl.core.stage_config import SftConfig, TrainConfig
from arm_rl.plan.modelled import UNIT, ModelledLearning, ModelledRollouts, Setting, demonstrations
from arm_rl.plan.simulation import simulate

_SIMULATED_TRAJECTORIES = 1024  # of a step, at least, where a part of it is simulated
_GAIN = 1.25  # that twice the GPUs must bring at least


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlan:
    """A step, in seconds."""

    seconds: float
    rollout: float  # that the driver waits for groups
    learner: float
    sync: float
    prefill: float  # of an engine, in the mean
    decode: float
    tools: float  # that a call waits for an executor, in the mean over calls of a step
    bounds: Mapping[str, float]  # of the learner's seconds
    engine_bounds: Mapping[str, float]  # of an engine's sampling
    tokens: float  # that the learners read
    trajectories: int

    @property
    def rate(self) -> float:
        """Trajectories a second."""
        return self.trajectories / self.seconds

    @property
    def engine_idle(self) -> float:
        """Share of the step (0..1)."""
        return max(0.0, 1 - (self.prefill + self.decode) / self.seconds)

    @property
    def learner_idle(self) -> float:
        """Share of the step (0..1)."""
        return max(0.0, 1 - self.learner / self.seconds)


def step_of(setting: Setting, *, fraction: int = 1, steps: int | None = None) -> StepPlan:
    """A step in the steady state.

    Args:
        fraction: simulates one part of so many equal ones of the cluster and of the batch; what all do together takes as long as it does.
        steps: that are simulated; by default as many as it takes to even out.
    """
    config = setting.config
    learning = ModelledLearning(setting, fraction)
    if isinstance(config, SftConfig):
        samples = demonstrations(setting, config.batch_size // fraction)
        budget = max(1, config.learner.micro_batch_tokens // UNIT)
        seconds = learning.train(
            make_batch(samples, num_ranks=config.learner.num_ranks // fraction, micro_batch_tokens=budget)
        )
        return StepPlan(
            seconds=seconds,
            rollout=0.0,
            learner=seconds,
            sync=0.0,
            prefill=0.0,
            decode=0.0,
            tools=0.0,
            bounds=dict(learning.bounds),
            engine_bounds={},
            tokens=learning.tokens,
            trajectories=config.batch_size,
        )
    ahead = config.algorithm.max_staleness
    number = steps or (ahead + 3 if ahead else 1)
    rollouts = ModelledRollouts(setting, fraction)
    done = simulate(setting.simulated(fraction), rollouts, learning, steps=number)
    counted = done[ahead + 1 :] if ahead else done
    engines = rollouts.engines
    total = sum(one.seconds for one in done)
    share = mean(one.seconds for one in counted) / total  # of what was summed over all steps
    return StepPlan(
        seconds=mean(one.seconds for one in counted),
        rollout=mean(one.phases["rollout"] for one in counted),
        learner=mean(one.phases["learner"] for one in counted),
        sync=mean(one.phases["sync"] for one in counted),
        prefill=share * mean(engine.use.prefill for engine in engines),
        decode=share * mean(engine.use.decode for engine in engines),
        tools=rollouts.tool_waits / max(rollouts.num_calls, 1),
        bounds={name: seconds / number for name, seconds in learning.bounds.items()},
        engine_bounds=_summed([engine.use.bounds for engine in engines], share / len(engines)),
        tokens=learning.tokens / number,
        trajectories=config.algorithm.samples_per_step * config.algorithm.group_size,
    )


def _summed(many: Iterable[Mapping[str, float]], scale: float) -> dict[str, float]:
    total: dict[str, float] = {}
    for one in many:
        for name, seconds in one.items():
            total[name] = total.get(name, 0.0) + scale * seconds
    return total


def fraction_of(config: TrainConfig | SftConfig) -> int:
    """Equal parts that the cluster and the batch can be cut into, with trajectories enough in each."""
    if isinstance(config, SftConfig):
        return math.gcd(config.batch_size, config.learner.num_ranks)
    algorithm = config.algorithm
    parts = math.gcd(
        algorithm.samples_per_step,
        algorithm.mini_batch_samples or 0,
        config.rollout.num_actors,
        config.learner.num_ranks,
    )
    most = max(1, algorithm.samples_per_step * algorithm.group_size // _SIMULATED_TRAJECTORIES)
    return max(part for part in range(1, parts + 1) if parts % part == 0 and part <= most)


def scaled(setting: Setting, nodes: int) -> Setting:
    """The same on so many nodes: ranks and engines grow with them, the batch stays."""
    factor = nodes / setting.cluster.nodes
    config = setting.config
    learner = replace(config.learner, num_ranks=round(config.learner.num_ranks * factor))
    changed: TrainConfig | SftConfig
    if isinstance(config, SftConfig):
        changed = replace(config, learner=learner)
    else:
        changed = replace(
            config,
            learner=learner,
            rollout=replace(config.rollout, num_actors=round(config.rollout.num_actors * factor)),
            tools=replace(config.tools, num_executors=round(config.tools.num_executors * factor)),
        )
    return replace(setting, config=changed, cluster=replace(setting.cluster, nodes=nodes))


def scaling(
    setting: Setting, most_gpus: int, told: Callable[[str], None] = lambda name: None
) -> list[tuple[int, StepPlan]]:
    """Steps on twice, four times, … as many nodes, as far as the batch can be cut."""
    found = []
    nodes = setting.cluster.nodes
    while nodes * setting.cluster.gpus_per_node <= most_gpus:
        try:
            one = scaled(setting, nodes)
        except ConfigError:
            break
        told(f"{one.cluster.gpus} GPUs")
        found.append((one.cluster.gpus, step_of(one, fraction=fraction_of(one.config))))
        nodes *= 2
    return found


def stops_at(found: Sequence[tuple[int, StepPlan]]) -> int | None:
    """The number of GPUs from which twice as many bring less than a quarter more; None where it never stops."""
    for (gpus, step), (_, twice) in itertools.pairwise(found):
        if twice.rate < _GAIN * step.rate:
            return gpus
    return None
