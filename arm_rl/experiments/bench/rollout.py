"""What sessions cost beside sampling: a rollout actor with its tools and scorers, against its bare engine on the same requests.

    ours: groups -> sessions -> template, engine, tool, observation, engine -> trajectories -> scorers
    bare: the same prompts with ready images -> vLLM, turn after turn

Both run in the same actor on the same engine, in turn, its caches emptied before each. The requests are read from the trajectories of
a first pass: the same contexts, images, limits and seeds, so that the same tokens are sampled.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from actors.cluster.reservation import reserve
from actors.rollout.actor import RolloutActor
from actors.rollout.engine import _collapse
from arm_rl.core.config import TrainConfig
from arm_rl.core.config_file import load
from arm_rl.core.images import Image
from arm_rl.core.seeding import derive_seed
from arm_rl.core.types import Sample, Trajectory
from arm_rl.demo import dataset
from arm_rl.experiments.bench import usage
from arm_rl.experiments.bench.result import Result
from arm_rl.training.groups import Group, GroupRunner, group_runner
from arm_rl.training.inputs import read_inputs

CONFIG = "configs/demo.yaml"
GOAL = 0.85
GROUP_ID = "bench"  # part of the seeds

Way = Literal["vllm", "adapter"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much is measured, and with which model."""

    model: str  # folder of a judge that calls its tool
    groups: int = 64  # of one measurement, all at once
    repeats: int = 5
    overrides: tuple[str, ...] = ()  # of the demo's configuration

    def quick(self) -> "Settings":
        """To try it."""
        return replace(self, groups=8, repeats=2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One turn, as the engine is asked for it."""

    prompt_ids: tuple[int, ...]  # images expanded
    images: tuple[str, ...]  # keys
    max_tokens: int
    seed: int
    forbidden_ids: tuple[int, ...]


def measure(settings: Settings) -> Result:
    """Sessions a second, both ways. Wants a Ray cluster."""
    with TemporaryDirectory() as folder:
        data = dataset.write(Path(folder) / "train.parquet", seed=0, split="train", num_samples=settings.groups)
        config = load(
            TrainConfig,
            CONFIG,
            [
                f"run.root={folder}",
                f"model.path={settings.model}",
                f"data.train=[{data}]",
                "data.held_out=[]",
                *settings.overrides,
            ],
        )
        return asyncio.run(_measure(config, settings))


async def _measure(config: TrainConfig, settings: Settings) -> Result:
    samples = read_inputs(config).samples[: settings.groups]
    async with started(config) as (runner, actor):
        groups = await _groups(runner, config, samples)  # warms up, and shows what will be asked
        images: dict[str, Image] = {}
        for found in await asyncio.gather(*(group.images for group in groups)):
            images |= found
        await actor.prepare.remote(
            [one.trajectory for group in groups for one in group.scored], images, config.run.seed
        )
        await actor.bare.remote("vllm", config.rollout.temperature)
        ours: list[float] = []  # sessions a second
        rates: dict[Way, list[float]] = {"vllm": [], "adapter": []}
        used: dict[str, dict[str, float]] = {}  # CPU seconds, of the last repeat
        num_sessions = len(samples) * config.algorithm.group_size
        tokens = {"ours": 0, "vllm": 0, "adapter": 0}
        for _ in range(settings.repeats):
            await actor.clear.remote()
            before, begun = usage.cpu_seconds(), time.perf_counter()
            groups = await _groups(runner, config, samples)
            ours.append(num_sessions / (time.perf_counter() - begun))
            used["ours"] = usage.since(before)
            tokens["ours"] += sum(one.trajectory.num_sampled_tokens for group in groups for one in group.scored)
            for way in rates:
                await actor.clear.remote()
                before = usage.cpu_seconds()
                seconds, num_tokens = await actor.bare.remote(way, config.rollout.temperature)
                rates[way].append(num_sessions / seconds)
                tokens[way] += num_tokens
                used[way] = usage.since(before)
    scored = [one for group in groups for one in group.scored]
    turns, calls = (
        sum(len(one.trajectory.turns) for one in scored),
        sum(len(one.trajectory.tool_events) for one in scored),
    )
    return Result.of(
        key="rollout_efficiency",
        what="sessions through the rollout actor with tools and scoring, over its bare engine on the same requests",
        goal=GOAL,
        unit="sessions/s",
        ours=ours,
        other=rates["vllm"],
        notes=[
            f"{num_sessions} sessions at once in groups of {config.algorithm.group_size}, {turns / num_sessions:.2f} turns and "
            f"{calls / num_sessions:.2f} calls a session; the bare engine gets ready images, and no tool is waited for",
            f"tokens sampled: {tokens['ours']} and {tokens['vllm']}",
        ],
        details={
            "adapter": rates["adapter"],
            "cpu_seconds": used,
            "broken": sum(one.error is not None for one in scored),
        },
    )


async def _groups(runner: GroupRunner, config: TrainConfig, samples: Sequence[Sample]) -> list[Group]:
    return await runner.run(samples, GROUP_ID, size=config.algorithm.group_size, temperature=config.rollout.temperature)


@asynccontextmanager
async def started(config: TrainConfig) -> AsyncIterator[tuple[GroupRunner, Any]]:
    """A rollout actor on an engine of its own, and its handle."""
    async with (
        reserve(config.run.name, config.placement, 0, config.rollout) as reservation,
        group_runner(config, read_inputs(config).template, reservation, MeasuredRollout) as runner,
    ):
        yield runner, runner.rollouts._places[0].present


class MeasuredRollout(RolloutActor):
    """A rollout actor whose engine can also be asked directly."""

    async def prepare(self, trajectories: Sequence[Trajectory], images: Mapping[str, Image], seed: int) -> None:
        """Makes the requests of these sessions ready."""
        call_token = self._template.call_token_id
        forbidden = () if call_token is None else (call_token,)
        pad, limit = self._template.image_pad_id, self._limits.max_response_tokens
        self._sessions = [
            list(requests(one, seed=seed, pad=pad, limit=limit, forbidden=forbidden)) for one in trajectories
        ]
        shown = {key for session in self._sessions for request in session for key in request.images}
        self._shown = {key: images[key] for key in shown}
        self._pictures = {key: self._template.view.resize(image) for key, image in self._shown.items()}

    async def clear(self) -> None:
        """Empties all caches, as an update of the weights does."""
        llm = self._engine._open()
        await llm.pause_generation(mode="keep", clear_cache=True)
        await llm.resume_generation()

    async def bare(self, way: Way, temperature: float) -> tuple[float, int]:
        """Asks the engine for all sessions at once, each turn after turn: seconds, and tokens sampled."""
        ask = self._ask_vllm if way == "vllm" else self._ask_adapter
        slots = asyncio.Semaphore(self._slots._value)
        numbers = itertools.count()

        async def one(session: Sequence[Request]) -> int:
            async with slots:
                return sum([await ask(request, temperature, f"bare-{next(numbers)}") for request in session])

        started = time.perf_counter()
        num_tokens = sum(await asyncio.gather(*(one(session) for session in self._sessions)))
        return time.perf_counter() - started, num_tokens

    async def _ask_vllm(self, request: Request, temperature: float, name: str) -> int:
        prompt: dict[str, Any] = {"prompt_token_ids": _collapse(request.prompt_ids, self._template.image_pad_id)[0]}
        if request.images:
            prompt["multi_modal_data"] = {"image": [self._pictures[key] for key in request.images]}
            prompt["multi_modal_uuids"] = {"image": list(request.images)}
        stop = self._template.tool_format.call_end
        params = self._engine._sampling(request.max_tokens, temperature, request.seed, stop, request.forbidden_ids)
        num_tokens = 0
        async for output in self._engine._open().generate(prompt, params, name):
            num_tokens = len(output.outputs[0].token_ids)
        return num_tokens

    async def _ask_adapter(self, request: Request, temperature: float, name: str) -> int:
        completion = await self._engine.generate(
            request.prompt_ids,
            [self._shown[key] for key in request.images],
            max_tokens=request.max_tokens,
            temperature=temperature,
            seed=request.seed,
            stop_text=self._template.tool_format.call_end,
            forbidden_ids=request.forbidden_ids,
        )
        return len(completion.token_ids)


def requests(
    trajectory: Trajectory, *, seed: int, pad: int, limit: int, forbidden: tuple[int, ...]
) -> Iterator[Request]:
    """What the engine was asked for in a session.

    Args:
        seed: of the run.
        pad: id of an image token.
        limit: tokens of a session after its prompt.
        forbidden: ids that are not sampled where no call is possible.
    """
    context = trajectory.prompt_ids
    own_seed = derive_seed(seed, trajectory.group_id, trajectory.index)
    for number, turn in enumerate(trajectory.turns):
        num_images = _collapse(context, pad)[1]
        yield Request(
            prompt_ids=context,
            images=tuple(image.key for image in trajectory.images[:num_images]),
            max_tokens=limit - (len(context) - len(trajectory.prompt_ids)),
            seed=own_seed + number,
            forbidden_ids=forbidden if turn.call_forbidden else (),
        )
        context += turn.token_ids + turn.observation_ids
