"""The rollout actor: one engine, and the many sessions that interleave in it. `pool` starts these actors and calls them."""

import asyncio
import functools
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.actor import ActorHandle

from actors.rollout.engine import Engine
from actors.rollout.engine_settings import spare_threads
from actors.supervision import SupervisedActor
from actors.tool_executor import ToolPool, ToolTraits
from actors.weights.files import WeightFile, place_weights, weights_folder
from arm_rl.core import session, tracing
from arm_rl.core.compute_config import RolloutConfig, Transfer
from arm_rl.core.config import ModelConfig, SessionConfig, TemplateConfig
from arm_rl.core.images import Image
from arm_rl.core.seeding import derive_seed
from arm_rl.core.session import Completion, PolicyRequest, Start
from arm_rl.core.template import Template
from arm_rl.core.tracing import SpanBatch, span
from arm_rl.core.types import Sample, Trajectory


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutSpec:
    """Settings that all rollout actors of a run share."""

    model: ModelConfig
    template: TemplateConfig
    limits: SessionConfig
    rollout: RolloutConfig
    schemas: Mapping[str, dict[str, Any]]  # of all tools, by name
    traits: ToolTraits  # of the same
    use_gpu: bool
    can_sleep: bool  # the engines share their GPUs with learners
    core_share: float = 0.0  # of its node's cores, that an engine may use for images
    transfer: Transfer = "file"  # how new weights come
    seed: int  # of the run
    stall_seconds: float  # as in the run's configuration


class RolloutActor(SupervisedActor):
    """One engine and the sessions that use it. A group's sessions run here together, so that they share the prompt's cache."""

    def __init__(self, spec: RolloutSpec, executors: Sequence[ActorHandle], number: int) -> None:
        self._template = Template.load(spec.model, spec.template, spec.schemas)
        self._limits = spec.limits
        self._copies: Path | None = None  # folder of this node for weights that come from another one
        self._tools = ToolPool(executors, spec.traits)
        self._session_limit = asyncio.Semaphore(spec.rollout.max_concurrent_sessions)
        threads = spec.rollout.image_threads or spare_threads(spec.core_share)
        self._engine = Engine(
            spec.model,
            replace(spec.rollout, image_threads=threads),
            self._template.view,
            seed=derive_seed(spec.seed, "engine", number),
            use_gpu=spec.use_gpu,
            can_sleep=spec.can_sleep,
            transfer=spec.transfer,
        )

    async def start(self) -> str:
        """Load the model; return the node's id when the engine serves."""
        await self._engine.start()
        return str(ray.get_runtime_context().get_node_id())

    @ray.method(num_returns=2)
    async def run_group(
        self, sample: Sample, *, group_id: str, size: int, temperature: float, seed: int
    ) -> tuple[list[Trajectory], dict[str, Image]]:
        """Run `size` sessions of one sample; return their trajectories, and as a second object their images by key.

        Raises:
            EngineDied: If the engine is gone: this actor is of no use any more.
        """

        async def policy(request: PolicyRequest) -> Completion:
            call_token = self._template.call_token_id
            with span("turn", prompt_tokens=len(request.prompt_ids)):
                return await self._engine.generate(
                    request.prompt_ids,
                    request.images,
                    max_tokens=request.max_tokens,
                    temperature=temperature,
                    seed=request.seed,
                    stop_text=self._template.tool_format.call_end,
                    forbidden_ids=() if request.allow_call or call_token is None else (call_token,),
                )

        start = functools.cache(lambda: Start.of(sample, self._template))

        async def run_session(index: int) -> session.Session:
            async with self._session_limit:
                with span("session", track="session", group=group_id, index=index):
                    return await session.run(
                        sample,
                        policy,
                        self._tools,
                        self._limits,
                        template=self._template,
                        seed=derive_seed(seed, group_id, index),
                        group_id=group_id,
                        index=index,
                        start=start,
                    )

        sessions = await asyncio.gather(*(run_session(index) for index in range(size)))
        self._engine.check()  # sessions that ended with the engine are not broken ones: the group is run again elsewhere
        images = {key: image for finished in sessions for key, image in finished.images.items()}
        return [finished.trajectory for finished in sessions], images

    async def copy_weights(self, weights: WeightFile, data: np.ndarray) -> WeightFile:
        """Write the bytes of another node's file to this node, for all of its engines; return the copy."""
        folder = weights_folder(weights.path.parent.name, len(data))
        path = await asyncio.to_thread(place_weights, data.data, folder, weights.version)
        return replace(weights, path=path, is_copy=True)

    async def load_weights(self, weights: WeightFile) -> None:
        """Load a version of the weights from a file of this node."""
        if weights.is_copy:
            self._copies = weights.path.parent
        await self._engine.load_weights(weights.path, weights.version, is_adapter=weights.is_adapter)

    async def connect_weights(self, info: dict[str, Any]) -> None:
        """Join the learners' transfer group. Learner rank 0 calls this and the three parts of an update (`weights.direct`)."""
        await self._engine.connect_weights(info)

    async def begin_update(self) -> None:
        """Pause running requests."""
        await self._engine.begin_update()

    async def receive_weights(self, info: dict[str, Any]) -> None:
        """Receive weights from the learners' GPUs."""
        await self._engine.receive_weights(info)

    async def end_update(self, version: int) -> None:
        """Resume running requests under the new version."""
        await self._engine.end_update(version)

    async def sample_weights(self, names: Sequence[str]) -> dict[str, tuple[list[int], bytes]]:
        """Return blocks of the named weights, to compare with the learners'."""
        return await self._engine.sample_weights(names)

    async def sleep(self) -> None:
        """Free the GPU for a learner that shares it; the weights are dropped."""
        await self._engine.sleep()

    async def wake(self) -> None:
        """Take the GPU back for the weights; the end of the next update takes the rest."""
        await self._engine.wake()

    async def pulse(self) -> None:
        """Wait until the engine has answered.

        Raises:
            EngineDied: If the engine is gone.
        """
        await self._engine.pulse()

    async def spans(self) -> SpanBatch:
        """Return this actor's spans since the last call, for the timeline."""
        return tracing.take()

    async def close(self) -> None:
        """End the engine and its processes."""
        await self._engine.close()
        if self._copies is not None:
            shutil.rmtree(self._copies, ignore_errors=True)  # another engine of this node may have done so
