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
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image as PILImage
from ray.actor import ActorHandle

from actors.cluster.reservation import reserve
from actors.rollout.actor import RolloutActor, RolloutSpec
from actors.rollout.engine import Engine
from arm_rl.core.images import Image
from arm_rl.core.seeding import derive_seed
from arm_rl.core.stage_config import TrainConfig
from arm_rl.core.types import Sample, Trajectory
from arm_rl.experiments.bench import sessions, usage
from arm_rl.experiments.bench.benchmark import Measurement, SpeedBenchmark, Workspace
from arm_rl.training.group import Group
from arm_rl.training.group_runner import GroupRunner
from arm_rl.training.inputs import read_inputs
from arm_rl.training.startup import group_runner

GROUP_ID = "bench"  # part of the seeds

EngineAccess = Literal["vllm", "adapter"]  # vLLM itself, or the engine actor code around it


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """Numbers of groups and repeats."""

    groups: int = 64  # of one measurement, all at once
    repeats: int = 5
    overrides: tuple[str, ...] = ()  # of the demo's configuration


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineRequest:
    """One turn as the engine is asked for it."""

    prompt_ids: tuple[int, ...]  # images expanded
    images: tuple[str, ...]  # keys
    max_tokens: int
    seed: int
    forbidden_ids: tuple[int, ...]


def measure(settings: RolloutSettings, workspace: Workspace) -> Measurement:
    """Measure sessions a second through the rollout actor and through its bare engine."""
    judge = sessions.judge(workspace)
    config = sessions.demo_config(workspace, judge, *settings.overrides, num_samples=settings.groups)
    return asyncio.run(_measure(config, settings))


BENCHMARK = SpeedBenchmark(
    key="rollout_efficiency",
    what="sessions through the rollout actor with tools and scoring, over its bare engine on the same requests",
    unit="sessions/s",
    goal=0.85,
    settings=RolloutSettings(),
    quick=RolloutSettings(groups=8, repeats=2),
    measure=measure,
)


async def _measure(config: TrainConfig, settings: RolloutSettings) -> Measurement:
    samples = read_inputs(config).samples[: settings.groups]
    async with started(config) as (runner, actor):
        groups = await _groups(runner, config, samples)  # warms up, and shows what will be asked
        await prepare(actor, groups, config.run.seed)
        await actor.bare.remote("vllm", config.rollout.temperature)
        ours: list[float] = []  # sessions a second
        rates: dict[EngineAccess, list[float]] = {"vllm": [], "adapter": []}
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
            for access in rates:
                await actor.clear.remote()
                before = usage.cpu_seconds()
                seconds, num_tokens = await actor.bare.remote(access, config.rollout.temperature)
                rates[access].append(num_sessions / seconds)
                tokens[access] += num_tokens
                used[access] = usage.since(before)
    scored = [one for group in groups for one in group.scored]
    turns = sum(len(one.trajectory.turns) for one in scored)
    calls = sum(len(one.trajectory.tool_events) for one in scored)
    return Measurement(
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
    return await runner.run_all(
        samples, GROUP_ID, size=config.algorithm.group_size, temperature=config.rollout.temperature
    )


@asynccontextmanager
async def started(config: TrainConfig) -> AsyncIterator[tuple[GroupRunner, ActorHandle]]:
    """Start a `MeasuredRollout` actor on an engine of its own; yield its runner and its handle."""
    async with (
        reserve(config.run.name, config.placement, 0, config.rollout) as reservation,
        group_runner(config, read_inputs(config).template, reservation, MeasuredRollout) as runner,
    ):
        (actor,) = await runner.rollouts.actors()
        yield runner, actor


async def prepare(actor: ActorHandle, groups: Sequence[Group], seed: int) -> None:
    """Hand the actor the sessions that its bare engine will sample again; `seed` is the run's."""
    images: dict[str, Image] = {}
    for found in await asyncio.gather(*(group.images for group in groups)):
        images |= found
    await actor.prepare.remote([one.trajectory for group in groups for one in group.scored], images, seed)


class BareEngine(Engine):
    """An engine that can also be asked without the code around vLLM."""

    async def clear_caches(self) -> None:
        """Empty all caches, as an update of the weights does."""
        llm = self.vllm.llm
        await llm.pause_generation(mode="keep", clear_cache=True)
        await llm.resume_generation()

    async def sample(
        self, request: EngineRequest, pictures: Sequence[PILImage.Image], *, temperature: float, stop: str, name: str
    ) -> int:
        """Sample one turn with vLLM itself and return the number of its tokens; `pictures` are as the model sees them."""
        prompt: dict[str, Any] = {"prompt_token_ids": collapsed(request.prompt_ids, self._image_pad_id)}
        if request.images:
            prompt["multi_modal_data"] = {"image": list(pictures)}
            prompt["multi_modal_uuids"] = {"image": list(request.images)}
        params = self.sampling_params(request.max_tokens, temperature, request.seed, stop, request.forbidden_ids)
        num_tokens = 0
        async for output in self.vllm.llm.generate(prompt, params, name):
            num_tokens = len(output.outputs[0].token_ids)
        return num_tokens


class MeasuredRollout(RolloutActor):
    """A rollout actor whose engine can also be asked directly."""

    def __init__(self, spec: RolloutSpec, executors: Sequence[ActorHandle], number: int) -> None:
        super().__init__(spec, executors, number)
        self._engine: BareEngine = BareEngine(
            spec.model,
            spec.rollout,
            self._template.view,
            seed=derive_seed(spec.seed, "engine", number),
            use_gpu=spec.use_gpu,
            can_sleep=spec.can_sleep,
            transfer=spec.transfer,
        )

    async def prepare(self, trajectories: Sequence[Trajectory], images: Mapping[str, Image], seed: int) -> None:
        """Make the requests of these sessions ready."""
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
        """Empty all caches of the engine."""
        await self._engine.clear_caches()

    async def bare(self, access: EngineAccess, temperature: float) -> tuple[float, int]:
        """Ask the engine for all sessions at once, each turn after turn; return the seconds and the number of tokens sampled."""
        ask = self._ask_vllm if access == "vllm" else self._ask_adapter
        numbers = itertools.count()

        async def one(session: Sequence[EngineRequest]) -> int:
            async with self._session_limit:  # free: no group runs meanwhile
                return sum([await ask(request, temperature, f"bare-{next(numbers)}") for request in session])

        started = time.perf_counter()
        num_tokens = sum(await asyncio.gather(*(one(session) for session in self._sessions)))
        return time.perf_counter() - started, num_tokens

    async def _ask_vllm(self, request: EngineRequest, temperature: float, name: str) -> int:
        return await self._engine.sample(
            request,
            [self._pictures[key] for key in request.images],
            temperature=temperature,
            stop=self._template.tool_format.call_end,
            name=name,
        )

    async def _ask_adapter(self, request: EngineRequest, temperature: float, name: str) -> int:
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


def collapsed(ids: Sequence[int], pad: int) -> list[int]:
    """Return the ids with one pad for each image, as vLLM takes a prompt."""
    return [token for before, token in zip((None, *ids), ids, strict=False) if not before == token == pad]


def requests(
    trajectory: Trajectory, *, seed: int, pad: int, limit: int, forbidden: tuple[int, ...]
) -> Iterator[EngineRequest]:
    """Yield what the engine was asked for in a session, turn by turn.

    Args:
        trajectory: of the session.
        seed: of the run.
        pad: id of an image token.
        limit: tokens of a session after its prompt.
        forbidden: ids that are not sampled where no call is possible.
    """
    context = trajectory.prompt_ids
    own_seed = derive_seed(seed, trajectory.group_id, trajectory.index)
    for number, turn in enumerate(trajectory.turns):
        num_images = collapsed(context, pad).count(pad)
        yield EngineRequest(
            prompt_ids=context,
            images=tuple(image.key for image in trajectory.images[:num_images]),
            max_tokens=limit - (len(context) - len(trajectory.prompt_ids)),
            seed=own_seed + number,
            forbidden_ids=forbidden if turn.call_forbidden else (),
        )
        context += turn.token_ids + turn.observation_ids
