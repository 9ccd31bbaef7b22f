"""What the driver costs: whole steps with an engine and a learner that take no time, against bare calls of a Ray actor.

    samples -> instant engine -> scorers -> advantages -> batches -> instant learner -> "new weights" -> instant engine

Everything but the two ends is the real code, and so is the way to them: trajectories and batches travel through Ray as in a run. The other
side is one call a trajectory to an actor that returns as many bytes as a trajectory has.
"""

import asyncio
import gc
import itertools
import pickle
import random
import statistics
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from actors.archive import Archive
from actors.learner.rank import RankBatch
from actors.learner.ranks import LearnerRanks
from actors.rollout.pool import RolloutPool
from actors.scorer import Scorer
from actors.supervision import SupervisedActor
from actors.weights.comparison import WeightSample
from actors.weights.files import PublishedWeights, WeightFile
from arm_rl.core.compute_config import LearnerConfig
from arm_rl.core.config_file import load
from arm_rl.core.images import Image
from arm_rl.core.stage_config import TrainConfig
from arm_rl.core.types import ImageInfo, ImagePart, ImageRef, Message, Sample, ToolCall, ToolEvent, Trajectory, Turn
from arm_rl.data.samples import Cursor
from arm_rl.experiments.bench.benchmark import Measurement, SpeedBenchmark, Workspace, medians
from arm_rl.experiments.bench.sessions import CONFIG
from arm_rl.training.driver import Driver
from arm_rl.training.group_runner import GroupRunner
from arm_rl.training.silent_driver import logged_step, silent_driver

MIN_FLATNESS = 0.8  # goal of the rate of the slowest number of sessions over that of the fastest
PAD = 5  # id of an image token
VOCABULARY = 400
# Tokens of the demo's sessions; an image's are in prompt and observation.
PROMPT, CALL, OBSERVATION, ANSWER, IMAGE = 34, 14, 26, 6, 16


@dataclass(frozen=True, kw_only=True)
class DriverSettings:
    """Numbers of sessions, steps and repeats."""

    sessions: tuple[int, ...] = (64, 256, 1024, 4096)  # of a step, all at the same time
    group_size: int = 8
    max_staleness: int = 0
    trajectories: int = 4096  # of one measurement, at least
    repeats: int = 5


def measure(settings: DriverSettings, workspace: Workspace) -> Measurement:
    """Measure trajectories a second of the driver and bare calls a second, as geometric means over the numbers of sessions."""
    configs = [_config(settings, sessions, workspace.temporary / str(sessions)) for sessions in settings.sessions]
    with _bare_actor() as bare:
        sizes = [asyncio.run(_measure_size(settings, config, bare)) for config in configs]
    rates = [statistics.median(size["ours"]) for size in sizes]
    flatness = min(rates) / max(rates)
    return Measurement(
        ours=_geometric_means([size["ours"] for size in sizes]),
        other=_geometric_means([size["bare"] for size in sizes]),
        notes=[
            f"geometric means over {', '.join(map(str, settings.sessions))} sessions in groups of {settings.group_size}, "
            f"max_staleness {settings.max_staleness}, {configs[0].learner.micro_batch_tokens} tokens a micro-batch; "
            f"the slowest size has {flatness:.2f} of the fastest one's rate (goal {MIN_FLATNESS})",
            "engine and learner take no time; the groups' images are a few bytes each",
            "a bare call gives back bytes, as many as a pickled trajectory; the driver's trajectories are objects",
        ],
        details={
            "flatness": flatness,
            "flat": flatness >= MIN_FLATNESS,
            "sizes": {str(size["sessions"]): size for size in sizes},
        },
    )


BENCHMARK = SpeedBenchmark(
    key="driver_share",
    what="trajectories through driver, scorers and batching, over bare calls of a Ray actor",
    unit="trajectories/s",
    goal=0.5,
    settings=DriverSettings(),
    quick=DriverSettings(sessions=(64, 256), trajectories=512, repeats=2),
    measure=measure,
)


def _geometric_means(rates: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean over the numbers of sessions for each repeat."""
    return [statistics.geometric_mean(repeat) for repeat in zip(*rates, strict=True)]


async def _measure_size(settings: DriverSettings, config: TrainConfig, bare: ActorHandle) -> dict[str, Any]:
    sessions = config.algorithm.samples_per_step * settings.group_size
    steps = max(2, -(-settings.trajectories // sessions))
    async with instant_driver(config, num_samples=max(2 * sessions // settings.group_size, 64)) as driver:
        await _steps(driver, 2)
        _bare_calls(bare, sessions, 2)
        ours, other, phases = [], [], []
        for _ in range(settings.repeats):
            gc.collect()
            seconds, times = await _steps(driver, steps)
            ours.append(steps * sessions / seconds)
            phases.append(times)
            other.append(steps * sessions / await asyncio.to_thread(_bare_calls, bare, sessions, steps))
    ratios = [one / two for one, two in zip(ours, other, strict=True)]
    return {
        "sessions": sessions,
        "ours": ours,
        "bare": other,
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "seconds": medians(phases),  # of a step, by phase
    }


async def _steps(driver: Driver, number: int) -> tuple[float, dict[str, float]]:
    """Run and log steps; return their seconds, and the mean seconds of each phase."""
    started = time.perf_counter()
    times: dict[str, float] = {}
    for _ in range(number):
        for name, seconds in (await logged_step(driver)).items():
            if name.startswith("time/"):
                times[name] = times.get(name, 0.0) + seconds / number
    return time.perf_counter() - started, times


def _bare_calls(actor: ActorHandle, at_once: int, rounds: int) -> float:
    """Make `rounds` times `at_once` calls and return their seconds."""
    started = time.perf_counter()
    for _ in range(rounds):
        ray.get([actor.call.remote() for _ in range(at_once)])
    return time.perf_counter() - started


def _config(settings: DriverSettings, sessions: int, folder: Path) -> TrainConfig:
    """Return the demo's configuration with as many groups as `sessions` need."""
    return load(
        TrainConfig,
        CONFIG,
        [
            f"run.root={folder}",
            f"algorithm.samples_per_step={sessions // settings.group_size}",
            f"algorithm.group_size={settings.group_size}",
            f"algorithm.max_staleness={settings.max_staleness}",
            "metrics.trajectories_every=0",
            "metrics.wandb=disabled",
            "learner.learning_rate=0",
        ],
    )


@asynccontextmanager
async def instant_driver(config: TrainConfig, *, num_samples: int) -> AsyncIterator[Driver]:
    """Start a driver between an engine and a learner that take no time; needs a Ray cluster."""
    engine = ray.remote(InstantEngine).options(num_cpus=0, max_concurrency=100_000).remote()
    scorers = [
        ray.remote(Scorer).options(num_cpus=0).remote(config.reward, config.template.tool_format)
        for _ in range(config.reward.num_scorers)
    ]
    archive = ray.remote(Archive).options(num_cpus=0).remote()
    learners = InstantLearners()
    try:
        rollouts = RolloutPool([lambda: engine], config.run.stall_seconds)
        async with silent_driver(
            config,
            runner=GroupRunner(config, rollouts, scorers, archive=archive),
            learners=learners,
            cursor=Cursor([_sample(number) for number in range(num_samples)], config.run.seed),
            image_pad_id=PAD,
            num_steps=1 << 30,
        ) as driver:
            yield driver
    finally:
        learners.close()
        for actor in (engine, *scorers, archive):
            ray.kill(actor)


@contextmanager
def _bare_actor() -> Iterator[ActorHandle]:
    (trajectory,) = make_group(_sample(0), "0/0", 1, _turns(0))
    actor = ray.remote(BareActor).options(num_cpus=0).remote(len(pickle.dumps(trajectory, protocol=5)))
    try:
        yield actor
    finally:
        ray.kill(actor)


class BareActor:
    """An actor that returns a fixed number of bytes."""

    def __init__(self, num_bytes: int) -> None:
        self._payload = random.Random(0).randbytes(num_bytes)

    def call(self) -> bytes:
        """Return the bytes."""
        return self._payload


class InstantEngine(SupervisedActor):
    """A rollout actor whose sessions end at once: only prompts and names are made for each group."""

    def __init__(self) -> None:
        self._turns = _turns(0)

    async def start(self) -> str:
        """Return the node's id."""
        return str(ray.get_runtime_context().get_node_id())

    @ray.method(num_returns=2)
    async def run_group(
        self, sample: Sample, *, group_id: str, size: int, temperature: float, seed: int
    ) -> tuple[list[Trajectory], dict[str, Image]]:
        """Return finished trajectories and their images, as a rollout actor does."""
        trajectories = make_group(sample, group_id, size, self._turns)
        images = {shown.key: Image(b"pixels", shown.key) for one in trajectories for shown in one.images}
        return trajectories, images

    async def load_weights(self, weights: WeightFile) -> None:
        """Stamp the turns that follow with this policy version."""
        self._turns = _turns(weights.version)

    async def sample_weights(self, names: Sequence[str]) -> dict[str, tuple[list[int], bytes]]:
        """Return nothing: there are no weights."""
        return {}


class InstantRank:
    """A learner rank that learns nothing."""

    def train(self, batch: RankBatch, images: Mapping[str, ray.ObjectRef], objective: Any) -> dict[str, float]:
        """Return metrics without an optimizer step."""
        return {"loss": 0.0, "grad_norm": 0.0, "learning_rate": 0.0}

    def publish(self, folder: Path, version: int, node_ids: Sequence[str] = ()) -> PublishedWeights:
        """Return a version without a file."""
        node_id = str(ray.get_runtime_context().get_node_id())
        return PublishedWeights(file=WeightFile(path=folder / "none", version=version), node_id=node_id, data=None)

    def sample_weights(self) -> dict[str, WeightSample]:
        """Return nothing: there are no weights."""
        return {}


class InstantLearners(LearnerRanks):
    """The real learner ranks class with one rank that learns nothing."""

    def __init__(self) -> None:
        self._ranks = [ray.remote(InstantRank).options(num_cpus=0).remote()]
        self._limit = LearnerConfig().call_timeout_seconds


def make_group(sample: Sample, group_id: str, size: int, turns: Sequence[tuple[Turn, Turn]]) -> list[Trajectory]:
    """Return trajectories of one sample, of which every other one is right."""
    source = random.Random(sample.id)
    prompt = _ids(source, PROMPT - IMAGE) + (PAD,) * IMAGE
    original = ImageInfo(name="original_image", key=f"{sample.id:>32}")
    return [
        Trajectory(
            sample_id=sample.id,
            track=sample.track,
            group_id=group_id,
            index=index,
            prompt_ids=prompt,
            turns=pair,
            images=(original, ImageInfo(name="observation_1", key=f"{sample.id:>30}{index:02}")),
            end="answered",
            seconds=0.1,
        )
        for index, pair in zip(range(size), itertools.cycle(turns), strict=False)
    ]


def _turns(version: int, number: int = 16) -> list[tuple[Turn, Turn]]:
    """Return pairs of turns: a call with a crop as its observation, and an answer."""
    source = random.Random(0)
    arguments = {"image": "original_image", "bbox_2d": [0, 250, 250, 500]}
    event = ToolEvent(
        call=ToolCall(name="image_zoom_in_tool", arguments=arguments),
        status="ok",
        text="",
        image_names=("observation_1",),
        seconds=0.002,
    )
    call = Turn(
        token_ids=(),
        logprobs=(),
        text='<think>look closer</think><tool_call>{"name": "image_zoom_in_tool", "arguments": '
        '{"image": "original_image", "bbox_2d": [0, 250, 250, 500]}}</tool_call>',
        finish_reason="stop",
        tool_events=(event,),
        policy_version=version,
    )
    answer = Turn(token_ids=(), logprobs=(), text="", finish_reason="stop", call_forbidden=True, policy_version=version)
    return [
        (
            replace(
                call,
                token_ids=_ids(source, CALL),
                logprobs=_logprobs(source, CALL),
                observation_ids=_ids(source, OBSERVATION - IMAGE) + (PAD,) * IMAGE,
            ),
            replace(
                answer,
                token_ids=_ids(source, ANSWER),
                logprobs=_logprobs(source, ANSWER),
                text=f"<think>it is 4</think><answer>Overall Judgment: Answer {1 + index % 2} is better.</answer>",
            ),
        )
        for index in range(number)
    ]


def _sample(number: int) -> Sample:
    question = "Which digit is on the red tile? Answer 1: 4 Answer 2: 7"
    return Sample(
        id=f"s{number}",
        track="digits",
        messages=(Message(role="user", parts=(ImagePart(name="original_image"), question)),),
        images=(ImageRef(path="train.parquet", row=number),),
        texts=("4", "7"),
        label="1",
        tools=("image_zoom_in_tool",),
        expected_tools=("image_zoom_in_tool",),
        target_box=(0.0, 250.0, 250.0, 500.0),
    )


def _ids(source: random.Random, number: int) -> tuple[int, ...]:
    return tuple(source.randrange(PAD + 1, VOCABULARY) for _ in range(number))


def _logprobs(source: random.Random, number: int) -> tuple[float, ...]:
    return tuple(-source.random() for _ in range(number))
