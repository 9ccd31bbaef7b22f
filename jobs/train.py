"""Train one GRPO stage: `arm-rl train CONFIG key=value …`."""

import sys
from collections.abc import Sequence

from arm_rl.core.stage_config import TrainConfig
from arm_rl.data.parquet_rows import require_files
from jobs.command_line import run_job


async def run(config: TrainConfig) -> str:
    """Train one stage of GRPO and return the last line of the job's output."""
    from arm_rl.training.grpo import train_grpo

    await train_grpo(config)
    folder = config.run.folder
    return (
        f"done: metrics, checkpoints and the exported model are in {folder}; "
        f"`python -m jobs.report {folder}` shows the curves and the trajectories"
    )


def check(config: TrainConfig) -> None:
    """Raise a DataError if a data file of the configuration is missing."""
    require_files([*config.data.train, *config.data.held_out])


def main(argv: Sequence[str] | None = None, *, program: str = "python -m jobs.train") -> int:
    """Run the job from the command line and return the exit status."""
    description = "Trains a judge by GRPO: rollouts with tools, rewards, learners."
    return run_job(program, description, TrainConfig, run, argv=argv, check=check)


if __name__ == "__main__":
    sys.exit(main())
