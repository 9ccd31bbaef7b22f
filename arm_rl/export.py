"""A run's newest checkpoint as a Hugging Face folder."""

import asyncio
from pathlib import Path

from actors.reservation import reserved
from arm_rl import checkpoint
from arm_rl.checkpoint import CheckpointError
from arm_rl.core.config import SftConfig, TrainConfig
from arm_rl.inputs import read_template
from arm_rl.learners import learner_group


async def export_checkpoint(config: TrainConfig | SftConfig, run: Path, out: Path) -> int:
    """Loads the checkpoint and exports; gives its step.

    Raises:
        CheckpointError: the run has none.
    """
    found = checkpoint.latest(run / "checkpoints")
    if found is None:
        raise CheckpointError(f"{run / 'checkpoints'}: there is no checkpoint")
    template = read_template(config)
    async with (
        reserved(config.run.name, config.placement, config.learner.num_ranks, None) as reservation,
        learner_group(config, template, reservation, num_steps=1) as starting,
    ):
        learners = await starting
        await asyncio.to_thread(learners.load, found.folder)
        await asyncio.to_thread(learners.export, out)
    return found.step
