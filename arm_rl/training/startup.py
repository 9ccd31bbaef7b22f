"""The actors of a stage: started from its configuration, and ended whatever happens."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass

import ray
from ray.actor import ActorHandle

from actors.archive import Archive
from actors.cluster.reservation import Reservation
from actors.learner.ranks import LearnerRanks
from actors.learner.settings import LearnerSpec
from actors.rollout.actor import RolloutActor, RolloutSpec
from actors.rollout.pool import RolloutPool
from actors.scorer import Scorer
from actors.tool_executor import ToolExecutor
from arm_rl.core.compute_config import Transfer
from arm_rl.core.stage_config import SftConfig, TrainConfig
from arm_rl.core.template import Template
from arm_rl.training.group_runner import GroupRunner
from arm_rl.training.weight_sync import published_folder


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutService:
    """Engines, and the tool executors that their sessions call. Runs of one model's shape may share them, one after another."""

    rollouts: RolloutPool
    executors: Sequence[ActorHandle]
    reservation: Reservation  # their place on the cluster


@asynccontextmanager
async def rollout_service(
    config: TrainConfig,
    template: Template,
    reservation: Reservation,
    actor_class: type[RolloutActor] = RolloutActor,
    *,
    transfer: Transfer = "file",
) -> AsyncIterator[RolloutService]:
    """Start engines and tool executors, and end them whatever happens.

    Args:
        config: Configuration of the run.
        template: Template of the model, with the schemas of the tools.
        reservation: Place of the actors on the cluster.
        actor_class: Class of the rollout actors.
        transfer: Way in which learners send weights, if any do.
    """
    executors = [
        ray.remote(ToolExecutor).options(**reservation.light_options("tools", number)).remote(config.tools)
        for number in range(config.tools.num_executors)
    ]
    rollouts = None
    try:
        spec = RolloutSpec(
            model=config.model,
            template=config.template,
            limits=config.session,
            rollout=config.rollout,
            schemas=template.schemas,
            traits=await executors[0].traits.remote(),
            use_gpu=config.placement.use_gpu,
            can_sleep=config.placement.kind == "shared",
            core_share=_core_share(config),
            transfer=transfer,
            seed=config.run.seed,
            stall_seconds=config.run.stall_seconds,
        )
        rollouts = await RolloutPool.start(spec, executors, reservation, actor_class)
        yield RolloutService(rollouts=rollouts, executors=executors, reservation=reservation)
    finally:
        if rollouts is not None:
            await rollouts.close()
        for actor in executors:
            ray.kill(actor)


def _core_share(config: TrainConfig) -> float:
    """Return the share of its node's cores that goes with an engine's GPUs; 0 on CPU, where models use all cores."""
    placement = config.placement
    return config.rollout.tensor_parallel_size / placement.gpus_per_node if placement.use_gpu else 0.0


@asynccontextmanager
async def group_runner(
    config: TrainConfig,
    template: Template,
    service: RolloutService | Reservation,
    actor_class: type[RolloutActor] = RolloutActor,
    *,
    transfer: Transfer = "file",
) -> AsyncIterator[GroupRunner]:
    """Start scorers and an archive, and end them whatever happens; the same for engines where only their place is given.

    Args:
        config: Configuration of the run.
        template: Template of the model, with the schemas of the tools.
        service: Engines that serve already, or the place on the cluster for engines of the run's own.
        actor_class: Class of the rollout actors.
        transfer: Way in which learners send weights, if any do.
    """
    reservation = service.reservation if isinstance(service, RolloutService) else service
    scorers = [
        ray.remote(Scorer)
        .options(**reservation.light_options("scorer", number))
        .remote(config.reward, config.template.tool_format)
        for number in range(config.reward.num_scorers)
    ]
    archive = ray.remote(Archive).options(**reservation.light_options("archive", 0)).remote()
    try:
        async with (
            nullcontext(service)
            if isinstance(service, RolloutService)
            else rollout_service(config, template, service, actor_class, transfer=transfer) as used
        ):
            runner = GroupRunner(config, used.rollouts, scorers, used.executors, archive)
            try:
                yield runner
                await runner.written()
            finally:
                runner.close()
    finally:
        for actor in (*scorers, archive):
            ray.kill(actor)


@asynccontextmanager
async def learner_ranks(
    config: TrainConfig | SftConfig, template: Template, reservation: Reservation, *, num_steps: int
) -> AsyncIterator["asyncio.Task[LearnerRanks]"]:
    """Start the learner ranks in a task while the caller continues, and end them whatever happens.

    Where engines share the ranks' GPUs, the caller continues when the ranks have started: vLLM sizes its cache by the memory that is
    free as an engine starts, and ends where that memory changes meanwhile.

    Args:
        config: Configuration of the stage.
        template: Template of the model.
        reservation: Place of the ranks on the cluster.
        num_steps: Optimizer steps of the stage, for the learning-rate schedule.
    """
    spec = LearnerSpec(
        model=config.model,
        config=config.learner,
        view=template.view,
        num_steps=num_steps,
        never_sampled_ids=template.never_sampled_ids,
        call_token_id=template.call_token_id,
        with_reference=isinstance(config, TrainConfig) and config.algorithm.kl_coefficient != 0,
        use_gpu=config.placement.use_gpu,
        transfer=config.transfer if isinstance(config, TrainConfig) else "file",
        seed=config.run.seed,
    )
    options = [reservation.learner_options(rank) for rank in range(config.learner.num_ranks)]
    starting = asyncio.create_task(asyncio.to_thread(LearnerRanks, spec, options))
    try:
        if config.placement.takes_turns:
            await asyncio.to_thread((await asyncio.shield(starting)).free_cache)
        yield starting
    finally:
        (started,) = await asyncio.gather(starting, return_exceptions=True)
        if isinstance(started, LearnerRanks):
            started.remove_published(published_folder(config.run))
            started.close()
