"""A run without a GPU: the real driver, collector, groups and rollout routing, on a simulated clock, between actors that only take time.

    Driver -> Collector -> GroupRunner -> RolloutPool -> simulated engines   (sessions drawn from a workload)
           -> make_batch -> simulated learners                                (seconds of a batch from the roofline)

Nothing of the policy is written a second time: how groups are started, taken, dropped and redrawn, which engine runs them, how a batch is
cut for the ranks and when weights travel is the code that trains. What is simulated is how long each part takes.
"""

import asyncio
import inspect
import itertools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

from actors.learner.ranks import LearnerRanks
from actors.rollout.pool import RolloutPool
from actors.scorer import Score
from actors.weights.comparison import WeightSample
from actors.weights.files import PublishedWeights, WeightFile
from arm_rl.core.stage_config import TrainConfig
from arm_rl.core.types import Batch, ImageInfo, Message, Sample, Trajectory, Turn
from arm_rl.data.samples import Cursor
from arm_rl.plan import clock
from arm_rl.training.group import Group
from arm_rl.training.group_runner import GroupRunner
from arm_rl.training.silent_driver import silent_driver

PAD = -1  # stands for an image token of a simulated trajectory
_SAMPLES = 4096  # of the simulated data


class Rollouts(Protocol):
    """How long sessions take, and what comes of them."""

    async def group(
        self, engine: int, sample: Sample, group_id: str, size: int, version: "Version"
    ) -> list[Trajectory]:
        """The sessions of a group, run on an engine."""
        ...

    def rewards(self, group_id: str, size: int) -> list[float]:
        """Of a group's trajectories; all equal where it teaches nothing."""
        ...

    def score_seconds(self) -> float:
        """To score a group."""
        ...

    async def update(self, engine: int) -> None:
        """An engine takes new weights."""
        ...

    async def sleep(self, engine: int) -> None:
        """An engine gives its GPU to a learner, or takes it back."""
        ...


class Learning(Protocol):
    """How long the learners take, in seconds."""

    def train(self, batch: Batch) -> float:
        """One optimizer step, with what the driver does for it."""
        ...

    def score(self, batch: Batch) -> float:
        """Log-probabilities of a batch."""
        ...

    def publish(self) -> float:
        """To write the weights."""
        ...


class Version:
    """Of the weights that an engine serves."""

    def __init__(self) -> None:
        self.number = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedStep:
    """Simulated seconds of a step, and the driver's own metrics of it."""

    seconds: float
    phases: Mapping[str, float]  # rollout, learner, sync
    metrics: Mapping[str, float]


def simulate(config: TrainConfig, rollouts: Rollouts, learning: Learning, *, steps: int) -> list[SimulatedStep]:
    """The first steps of a run."""
    return clock.run(_simulate(config, rollouts, learning, steps))


def steady(steps: Sequence[SimulatedStep], max_staleness: int) -> list[SimulatedStep]:
    """Those after the pipeline has filled: the first step always waits, and rollouts that run ahead even out after a few."""
    return list(steps[min(max_staleness + 1, len(steps) - 1) :]) if max_staleness else list(steps)


async def _simulate(config: TrainConfig, rollouts: Rollouts, learning: Learning, steps: int) -> list[SimulatedStep]:
    makers = [lambda number=number: _engine(number, rollouts) for number in range(config.rollout.num_actors)]
    done = []
    with tempfile.TemporaryDirectory() as folder:
        config = replace(
            config,
            run=replace(config.run, root=folder),
            metrics=replace(config.metrics, trajectories_every=0, timeline=False),
            placement=replace(config.placement, weight_transfer="file"),  # what `Learning.publish` tells the seconds of
        )
        runner = _Runner(config, RolloutPool(makers, config.run.stall_seconds), [_scorer(rollouts)])
        async with silent_driver(
            config,
            runner=runner,
            learners=_Learners(learning),
            cursor=Cursor([_sample(number) for number in range(_SAMPLES)], config.run.seed),
            image_pad_id=PAD,
            num_steps=steps,
        ) as driver:
            for _ in range(steps):
                metrics = await driver.step()
                driver.steps_done += 1
                phases = {name: metrics[f"time/{name}"] for name in ("rollout", "learner", "sync")}
                done.append(SimulatedStep(seconds=metrics["time/step"], phases=phases, metrics=metrics))
        runner.close()
    return done


def _engine(number: int, rollouts: Rollouts) -> Any:
    """The handle of a rollout actor, as far as the rollout group uses one."""
    version = Version()

    async def start() -> str:
        return f"node of {number}"

    async def load_weights(weights: WeightFile) -> None:
        await rollouts.update(number)
        version.number = weights.version

    async def sample_weights(names: Sequence[str]) -> dict[str, Any]:
        return {}

    def run_group(sample: Sample, *, group_id: str, size: int, temperature: float, seed: int) -> tuple[Any, Any]:
        return asyncio.ensure_future(rollouts.group(number, sample, group_id, size, version)), None

    async def rest() -> None:
        await rollouts.sleep(number)

    return _handle(
        run_group=SimpleNamespace(remote=run_group),
        start=start,
        load_weights=load_weights,
        sample_weights=sample_weights,
        sleep=rest,
        wake=rest,
    )


def _scorer(rollouts: Rollouts) -> Any:
    async def score(sample: Sample, reference: Any) -> list[Score]:
        trajectories = await reference
        await asyncio.sleep(rollouts.score_seconds())
        rewards = rollouts.rewards(trajectories[0].group_id, len(trajectories))
        return [Score(reward, {}, reward > 0, True, None) for reward in rewards]

    return _handle(score=score)


def _handle(**methods: Any) -> Any:
    """An actor that never dies. Methods that are no coroutines are taken as they are."""

    async def wait_until_death() -> None:
        await asyncio.Event().wait()

    async def at_once() -> None: ...

    handle = SimpleNamespace()
    for name, method in (
        methods | {"wait_until_death": wait_until_death, "pulse": at_once, "__ray_ready__": at_once}
    ).items():
        setattr(handle, name, _remote(method) if inspect.iscoroutinefunction(method) else method)
    return handle


def _remote(method: Any) -> Any:
    return SimpleNamespace(remote=lambda *args, **kwargs: asyncio.ensure_future(method(*args, **kwargs)))


class _Runner(GroupRunner):
    """Keeps no finished groups on disk: there is nothing to go on from."""

    async def save_groups(self, path: Path, groups: Sequence[Group], step: int) -> None: ...

    async def load_groups(self, path: Path, samples: Mapping[str, Sample]) -> dict[int, Group]:
        return {}


class _Learners(LearnerRanks):
    """The driver's side of learners that only take time."""

    def __init__(self, learning: Learning) -> None:
        self._learning = learning

    def train(self, batch: Batch, images: Any, objective: Any) -> dict[str, float]:
        clock.loop().spend(self._learning.train(batch))
        return {"learner/loss": 0.0}

    def score(self, batch: Batch, images: Any, temperature: float) -> dict[str, tuple[float, ...]]:
        clock.loop().spend(self._learning.score(batch))
        return {}

    def publish(self, folder: Path, version: int, node_ids: Sequence[str] = ()) -> PublishedWeights:
        clock.loop().spend(self._learning.publish())
        return PublishedWeights(file=WeightFile(path=folder / "none", version=version), node_id="", data=None)

    def sample_weights(self) -> dict[str, WeightSample]:
        """There are no weights."""
        return {}

    def free_cache(self) -> None:
        """Takes no time."""


def _sample(number: int) -> Sample:
    return Sample(id=str(number), track="simulated", messages=(Message(role="user", parts=("",)),), label="1")


def trajectory(
    sample: Sample,
    group_id: str,
    index: int,
    prompt: tuple[int, ...],
    turns: Sequence[Turn],
    images: Sequence[ImageInfo] = (),
) -> Trajectory:
    """A session that came to its end."""
    return Trajectory(
        sample_id=sample.id,
        track=sample.track,
        group_id=group_id,
        index=index,
        prompt_ids=prompt,
        turns=tuple(turns),
        images=tuple(images),
        end="answered",
    )


def turn(num_tokens: int, observed: tuple[int, ...], version: int) -> Turn:
    """A turn of so many tokens, all alike."""
    return Turn(
        token_ids=(0,) * num_tokens,
        logprobs=(0.0,) * num_tokens,
        text="",
        finish_reason="stop",
        observation_ids=observed,
        policy_version=version,
    )


def spread_rewards(size: int) -> list[float]:
    """Of a group that has something to teach."""
    return [float(value) for value in itertools.islice(itertools.cycle((0.0, 1.0)), size)]
