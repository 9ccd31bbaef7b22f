"""Sessions and learners of a simulated run, from a workload and the GPU's roofline."""

import asyncio
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from arm_rl.core.batching import cost
from arm_rl.core.seeding import derive_seed
from arm_rl.core.stage_config import SftConfig, TrainConfig
from arm_rl.core.training_sample import training_sample
from arm_rl.core.types import Batch, ImageInfo, Sample, TrainingSample, Trajectory
from arm_rl.plan import memory
from arm_rl.plan.hardware import Cluster, Efficiency
from arm_rl.plan.overheads import direct_seconds, load_seconds, publish_seconds, update_seconds
from arm_rl.plan.shapes import ModelShape
from arm_rl.plan.simulated_engine import SimulatedEngine
from arm_rl.plan.simulation import PAD, Version, spread_rewards, trajectory, turn
from arm_rl.plan.step_time import EngineTimes, LearnerTimes, Passes
from arm_rl.plan.workload import Workload

UNIT = 64  # tokens that one id of a simulated trajectory stands for: a step has millions of them


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a plan is made for."""

    config: TrainConfig | SftConfig
    shape: ModelShape
    cluster: Cluster
    workload: Workload
    efficiency: Efficiency = Efficiency()

    @property
    def element(self) -> int:
        """Bytes of a weight."""
        return 2 if self.config.model.dtype == "bfloat16" else 4

    @property
    def train(self) -> TrainConfig:
        """The configuration of one that has rollouts."""
        assert isinstance(self.config, TrainConfig)
        return self.config

    def simulated(self, fraction: int = 1) -> TrainConfig:
        """The configuration in units of tokens, or one of so many equal parts of it."""
        config = self.train
        algorithm, learner, mini = config.algorithm, config.learner, config.algorithm.mini_batch_samples
        return replace(
            config,
            algorithm=replace(
                algorithm,
                samples_per_step=algorithm.samples_per_step // fraction,
                mini_batch_samples=None if mini is None else mini // fraction,
            ),
            rollout=replace(config.rollout, num_actors=config.rollout.num_actors // fraction),
            learner=replace(
                learner,
                num_ranks=learner.num_ranks // fraction,
                micro_batch_tokens=max(1, learner.micro_batch_tokens // UNIT),
            ),
        )

    @property
    def takes_turns(self) -> bool:
        """Learners and engines share their GPUs."""
        return (
            isinstance(self.config, TrainConfig)
            and self.config.placement.use_gpu
            and self.config.placement.kind == "shared"
        )


class ModelledRollouts:
    """Engines with sessions drawn from a workload."""

    def __init__(self, setting: Setting, fraction: int = 1) -> None:
        """`fraction` is the number of equal parts of which one is simulated."""
        self.setting = setting
        config, workload = setting.train, setting.workload
        rollout = config.rollout
        parts = memory.engine(setting.shape, rollout, setting.cluster.gpu, element=setting.element)
        per_token = memory.key_value_bytes(
            setting.shape, tensor_parallel=rollout.tensor_parallel_size, element=setting.element
        )
        times = EngineTimes(
            shape=setting.shape,
            cluster=setting.cluster,
            efficiency=setting.efficiency,
            tensor_parallel=rollout.tensor_parallel_size,
            element=setting.element,
            eager=rollout.enforce_eager,
        )
        self.engines = [
            SimulatedEngine(
                times, max_sequences=rollout.max_num_seqs, cache_tokens=parts["key-value cache"] / per_token
            )
            for _ in range(rollout.num_actors // fraction)
        ]
        self._slots = [asyncio.Semaphore(rollout.max_concurrent_sessions) for _ in self.engines]
        self._tools = asyncio.Semaphore(max(1, config.tools.num_executors * config.tools.concurrency // fraction))
        self._workload = workload
        self.tool_waits, self.num_calls = 0.0, 0  # seconds that calls waited for an executor

    async def group(self, engine: int, sample: Sample, group_id: str, size: int, version: Version) -> list[Trajectory]:
        """Its first session reads the prompt, which the others find in the cache."""
        workload = self._workload
        source = np.random.default_rng(derive_seed(self.setting.config.run.seed, group_id))
        scale = float(source.lognormal(-(workload.spread**2) / 2, workload.spread))
        prompt, images = max(workload.prompt_tokens * scale, 1.0), workload.image_tokens * scale
        limits = self.setting.train.session
        if prompt > limits.max_prompt_tokens:
            prompt, images = float(limits.max_prompt_tokens), images * limits.max_prompt_tokens / prompt
        lengths = [workload.draw(source, limits.max_turns) for _ in range(size)]
        seen, seen_images = workload.observation_tokens, workload.observation_image_tokens
        prompt_ids = _ids(prompt, images, text=derive_seed(group_id))
        shown = (ImageInfo(name="original_image", key=f"prompt of {group_id}"),) if PAD in prompt_ids else ()

        async def session(index: int) -> Trajectory:
            own = lengths[index]
            async with self._slots[engine]:
                turns, found = [], list(shown)
                first: tuple[float, float, float] = (0.0, prompt, images) if index == 0 else (prompt, 1.0, 0.0)
                context, new, new_images = first
                held = prompt / size + sum(own.turns) + len(own.tool_seconds) * seen
                for number, tokens in enumerate(own.turns):
                    started = version.number
                    await self.engines[engine].turn(new, new_images, context, tokens, held)
                    context, new, new_images = context + new + tokens, seen, seen_images
                    observed: tuple[int, ...] = ()
                    if number < len(own.tool_seconds):
                        await self._call(own.tool_seconds[number])
                        observed = _ids(seen, seen_images)
                        if PAD in observed:
                            found.append(
                                ImageInfo(name=f"observation_{number + 1}", key=f"{group_id} {index} {number}")
                            )
                    turns.append(turn(_units(tokens), observed, started))
                return trajectory(sample, group_id, index, prompt_ids, turns, found)

        return list(await asyncio.gather(*(session(index) for index in range(size))))

    async def _call(self, seconds: float) -> None:
        asked = asyncio.get_running_loop().time()
        async with self._tools:
            self.num_calls += 1
            self.tool_waits += asyncio.get_running_loop().time() - asked
            await asyncio.sleep(seconds)

    def rewards(self, group_id: str, size: int) -> list[float]:
        """Flat as often as the workload says."""
        flat = (
            np.random.default_rng(derive_seed(self.setting.config.run.seed, group_id, "flat")).random()
            < self._workload.flat_groups
        )
        return [1.0] * size if flat else spread_rewards(size)

    def score_seconds(self) -> float:
        """Of the workload."""
        return self._workload.score_seconds

    async def update(self, engine: int) -> None:
        """Take new weights and read the running sessions again.

        A file's bytes arrive while the engine samples; it pauses to load them, and through a whole transfer from GPU to GPU.
        """
        setting, config = self.setting, self.setting.train
        learner, element = config.learner, setting.element
        if config.transfer == "file":
            load = load_seconds(setting.shape, setting.efficiency, element=element)
            whole = update_seconds(setting.shape, learner, setting.cluster, setting.efficiency, element=element)
            await asyncio.sleep(max(whole - load, 0.0))
        else:
            load = direct_seconds(
                config.transfer, setting.shape, learner, setting.cluster, setting.efficiency, element=element
            )
        await self.engines[engine].pause(load)
        self.engines[engine].read_again()

    async def sleep(self, engine: int) -> None:
        """Drop the weights and the cache, or take memory for them back."""
        await asyncio.sleep(self.setting.efficiency.sleep_seconds)


class ModelledLearning:
    """Learners by the roofline; keeps what bounded them."""

    def __init__(self, setting: Setting, fraction: int = 1) -> None:
        """`fraction` is the number of equal parts of which one is simulated: the driver does its work for all."""
        self.setting, self._fraction = setting, fraction
        self.bounds: defaultdict[str, float] = defaultdict(float)  # seconds
        self.tokens = 0.0  # that the learners read, a prompt once a row
        self._times = LearnerTimes(
            shape=setting.shape,
            config=setting.config.learner,
            cluster=setting.cluster,
            efficiency=setting.efficiency,
            element=setting.element,
        )

    def train(self, batch: Batch) -> float:
        """Ranks wait for one another after each micro-batch where they exchange something; the driver's own work comes first."""
        update = self._times.optimizer()
        self.bounds[update.bound] += update.seconds
        return self._driver(batch) + self._passes(batch, train=True) + update.seconds

    def score(self, batch: Batch) -> float:
        """Forward passes alone."""
        return self._driver(batch) + self._passes(batch, train=False)

    def publish(self) -> float:
        """Return the seconds to write a file; 0 where weights go from GPU to GPU."""
        setting = self.setting
        if setting.train.transfer != "file":
            return 0.0
        return publish_seconds(
            setting.shape, setting.config.learner, setting.cluster, setting.efficiency, element=setting.element
        )

    def _driver(self, batch: Batch) -> float:
        seconds = self._fraction * batch.num_samples * self.setting.efficiency.driver_seconds
        self.bounds["driver"] += seconds
        return seconds

    def _passes(self, batch: Batch, *, train: bool) -> float:
        total = 0.0
        for row in zip(*batch.micro_batches, strict=True):  # the ranks' micro-batches of one turn
            passes = [passes_of(samples) for samples in row]
            self.tokens += self._fraction * sum(one.tokens for one in passes)
            slowest = max((self._times.micro_batch(one, train=train) for one in passes), key=lambda one: one.seconds)
            self.bounds[slowest.bound] += slowest.seconds
            total += slowest.seconds
        return total


def passes_of(samples: Sequence[TrainingSample]) -> Passes:
    """What a micro-batch costs, in tokens."""
    images = {
        key: tokens for sample in samples for key, tokens in zip(sample.image_keys, sample.image_tokens, strict=False)
    }
    image_tokens = sum(images.values())
    prompts = {sample.prompt_key: sample.num_prompt_tokens for sample in samples}
    squares = sum(length * length for length in prompts.values())
    for sample in samples:
        branch = len(sample.token_ids) - sample.num_prompt_tokens
        squares += branch * (2 * sample.num_prompt_tokens + branch)
    return Passes(
        tokens=UNIT * (cost(samples) - image_tokens),
        squares=UNIT * UNIT * squares,
        image_tokens=UNIT * image_tokens,
        loss_tokens=UNIT * sum(sample.num_loss_tokens for sample in samples),
    )


def demonstrations(setting: Setting, number: int) -> list[TrainingSample]:
    """Samples of a cold start, of the workload's lengths."""
    workload = setting.workload
    source = np.random.default_rng(setting.config.run.seed)
    made = []
    for index in range(number):
        lengths = workload.draw(source, max_turns=1 + math.ceil(workload.calls))
        prompt = _ids(workload.prompt_tokens, workload.image_tokens, text=index)
        turns = [turn(_units(tokens), (), 0) for tokens in lengths.turns]
        seen = _ids(workload.observation_tokens, workload.observation_image_tokens)
        turns = [
            replace(one, observation_ids=seen if place < len(turns) - 1 else ()) for place, one in enumerate(turns)
        ]
        shown = [prompt, *(one.observation_ids for one in turns)]
        images = [ImageInfo(name=str(place), key=f"{index} {place}") for place, ids in enumerate(shown) if PAD in ids]
        sample = Sample(id=str(index), track="simulated", messages=(), label="1")
        whole = trajectory(sample, str(index), 0, prompt, turns, images)
        made.append(training_sample(whole, 1.0, image_pad_id=PAD))
    return made


def _units(tokens: float) -> int:
    return max(1, math.ceil(tokens / UNIT - 0.5))


def _ids(tokens: float, images: float, text: int = 0) -> tuple[int, ...]:
    """Return image pads and then text of one id, in units; prompts with another id are other prompts."""
    pads = round(images / UNIT)
    return (PAD,) * pads + (text,) * max(1, _units(tokens) - pads)
