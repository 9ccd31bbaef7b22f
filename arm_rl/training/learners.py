"""The learners of a stage: started from its configuration, and ended whatever happens."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from actors.cluster.reservation import Reservation
from actors.learner.rank import LearnerSpec
from actors.learner.ranks import LearnerRanks
from actors.weights.files import weights_folder
from arm_rl.core.config import SftConfig, TrainConfig
from arm_rl.core.seeding import derive_seed
from arm_rl.core.template import Template


@asynccontextmanager
async def learner_group(
    config: TrainConfig | SftConfig, template: Template, reservation: Reservation, *, num_steps: int
) -> AsyncIterator["asyncio.Task[LearnerRanks]"]:
    """Starts the ranks while the caller goes on; the group is there when the task is awaited.

    Args:
        num_steps: optimizer steps of the stage, for the learning-rate schedule.
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
        yield starting
    finally:
        (started,) = await asyncio.gather(starting, return_exceptions=True)
        if isinstance(started, LearnerRanks):
            started.remove_published(published_folder(config))
            started.close()


def published_folder(config: TrainConfig | SftConfig) -> Path:
    """Where this run's weights lie for its engines; the same whenever the run is started again."""
    return weights_folder(f"{config.run.name}-{derive_seed(config.run.folder.resolve())}")
