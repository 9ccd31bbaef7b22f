"""Who answers where nobody trains: own engines, or a model behind an OpenAI-compatible server. Both run the one session loop."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from actors.cluster.connection import cluster
from actors.cluster.reservation import reserve
from arm_rl.core import session, trajectory_file
from arm_rl.core.images import Image
from arm_rl.core.seeding import derive_seed
from arm_rl.core.session import Policy, Session, Tools
from arm_rl.core.stage_config import TrainConfig
from arm_rl.core.template import Template
from arm_rl.core.types import Sample, ScoredTrajectory, Trajectory
from arm_rl.judge.remote_policy import ServerPolicy
from arm_rl.training.group import Group
from arm_rl.training.group_runner import GroupRunner
from arm_rl.training.startup import group_runner
from tools import load_tools
from tools.execution.local import LocalTools

RecordingT = TypeVar("RecordingT")


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedSession(Generic[RecordingT]):
    """A sample with the session that it was judged in."""

    sample: Sample
    trajectory: Trajectory
    recording: RecordingT  # what the backend needs to record it


class Backend(Protocol[RecordingT]):
    """Runs sessions, and records them."""

    concurrency: int  # sessions that are worth running at a time

    async def ask(self, sample: Sample, group_id: str) -> JudgedSession[RecordingT]:
        """Runs one session to its end, whatever that is."""
        ...

    async def record(
        self, stage: str, step: int, asked: Sequence[tuple[JudgedSession[RecordingT], ScoredTrajectory]]
    ) -> None:
        """Writes sessions to a file of the run's `trajectories`."""
        ...


class SessionFiles:
    """A backend's sessions on their way to files: `per_file` sessions of one stage each, numbered by stage."""

    def __init__(self, backend: Backend[Any], earlier: Path | None = None, per_file: int = 64) -> None:
        """Prepare.

        Args:
            backend: Writes the files.
            earlier: Folder with the files of earlier runs, which stay; by default there are none.
            per_file: Sessions of a file.
        """
        self._backend, self._earlier, self._per_file = backend, earlier, per_file
        self._unwritten: dict[str, list[tuple[JudgedSession[Any], ScoredTrajectory]]] = {}  # by stage
        self._steps: dict[str, int] = {}  # the next file's number, by stage

    async def add(self, stage: str, asked: JudgedSession[Any], scored: ScoredTrajectory) -> None:
        """Take a session, and write a file if the session completes one."""
        unwritten = self._unwritten.setdefault(stage, [])
        unwritten.append((asked, scored))
        if len(unwritten) == self._per_file:
            await self._write(stage)

    async def flush(self) -> None:
        """Write the sessions that are in no file yet."""
        for stage in list(self._unwritten):
            await self._write(stage)

    async def _write(self, stage: str) -> None:
        if stage not in self._steps:
            earlier = () if self._earlier is None else self._earlier.glob(f"{stage}-*.parquet")
            numbers = [int(path.stem.rpartition("-")[2]) for path in earlier]
            self._steps[stage] = max(numbers, default=-1) + 1
        step = self._steps[stage]
        self._steps[stage] += 1
        await self._backend.record(stage, step, self._unwritten.pop(stage))


class EngineBackend:
    """Own engines, with executors for the tools."""

    def __init__(self, runner: GroupRunner, config: TrainConfig) -> None:
        self.concurrency = config.rollout.num_actors * config.rollout.max_concurrent_sessions
        self._runner, self._temperature = runner, config.evaluation.temperature

    async def ask(self, sample: Sample, group_id: str) -> JudgedSession[Group]:
        """See `Backend`."""
        group = await self._runner.run_group(sample, group_id, size=1, temperature=self._temperature)
        return JudgedSession(sample=sample, trajectory=group.scored[0].trajectory, recording=group)

    async def record(
        self, stage: str, step: int, asked: Sequence[tuple[JudgedSession[Group], ScoredTrajectory]]
    ) -> None:
        """See `Backend`. Written by a task of its own, which is waited for when the backend closes."""
        self._runner.record(stage, step, [replace(one.recording, scored=(scored,)) for one, scored in asked])


class ServerBackend:
    """A policy that is somewhere else, with tools beside this process."""

    def __init__(
        self, policy: Policy, tools: Tools, template: Template, config: TrainConfig, *, concurrency: int
    ) -> None:
        self.concurrency = concurrency
        self._policy, self._tools, self._template, self._config = policy, tools, template, config

    async def ask(self, sample: Sample, group_id: str) -> JudgedSession[Session]:
        """See `Backend`."""
        seed = derive_seed(self._config.run.seed, group_id, 0)
        ran = await session.run(
            sample,
            self._policy,
            self._tools,
            self._config.session,
            template=self._template,
            seed=seed,
            group_id=group_id,
        )
        return JudgedSession(sample=sample, trajectory=ran.trajectory, recording=ran)

    async def record(
        self, stage: str, step: int, asked: Sequence[tuple[JudgedSession[Session], ScoredTrajectory]]
    ) -> None:
        """See `Backend`."""
        images: dict[str, Image] = {key: image for one, _ in asked for key, image in one.recording.images.items()}
        path = trajectories_folder(self._config) / trajectory_file.file_name(stage, step)
        samples = {one.sample.id: one.sample for one, _ in asked}
        await asyncio.to_thread(
            trajectory_file.write, path, [scored for _, scored in asked], samples, images, stage=stage, step=step
        )


@asynccontextmanager
async def engine_backend(config: TrainConfig, template: Template) -> AsyncIterator[EngineBackend]:
    """Starts engines, and ends them whatever happens."""
    async with (
        reserve(config.run.name, config.placement, 0, config.rollout) as reservation,
        group_runner(config, template, reservation) as runner,
    ):
        yield EngineBackend(runner, config)


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """An OpenAI-compatible server."""

    url: str  # with its /v1
    model: str  # the name under which it offers the model
    api_key: str | None = None
    concurrency: int = 32  # sessions at a time
    timeout_seconds: float = 300.0  # of one turn
    num_retries: int = 5  # of a request that the server could not take


def server_template(config: TrainConfig) -> Template:
    """The template of a model that is served elsewhere: of its folder only the processor and the config are needed."""
    schemas = {name: tool.schema for name, tool in load_tools(config.tools.files).items()}
    return Template.load(config.model, config.template, schemas)


@asynccontextmanager
async def server_backend(config: TrainConfig, template: Template, server: Server) -> AsyncIterator[ServerBackend]:
    """Connects to a server, with the configuration's tools and limits."""
    policy = ServerPolicy(
        server.url,
        server.model,
        template,
        temperature=config.evaluation.temperature,
        max_tokens=config.session.max_response_tokens,
        timeout_seconds=server.timeout_seconds,
        num_retries=server.num_retries,
        api_key=server.api_key,
    )
    tools = LocalTools(
        load_tools(config.tools.files),
        concurrency=config.tools.concurrency,
        timeout_seconds=config.tools.timeout_seconds,
    )
    try:
        yield ServerBackend(policy, tools, template, config, concurrency=server.concurrency)
    finally:
        tools.close()
        await policy.close()


@asynccontextmanager
async def open_backend(config: TrainConfig, template: Template, server: Server | None) -> AsyncIterator[Backend[Any]]:
    """Connect to a server, or start engines on the Ray cluster if there is no server."""
    if server is not None:
        async with server_backend(config, template, server) as backend:
            yield backend
    else:
        with cluster():
            async with engine_backend(config, template) as engines:
                yield engines


def trajectories_folder(config: TrainConfig) -> Path:
    """Where a run's sessions are written."""
    return config.run.folder / "trajectories"
