"""Train the supervised cold start of a judge: `arm-rl sft CONFIG key=value …`."""

import sys
from collections.abc import Sequence

from arm_rl.core.stage_config import SftConfig
from arm_rl.data.parquet_rows import require_files
from jobs.command_line import run_job


async def run(config: SftConfig) -> str:
    """Train on demonstrations and return the last line of the job's output."""
    from arm_rl.training.sft import train_sft

    await train_sft(config)
    folder = config.run.folder
    return (
        f"done: metrics, checkpoints and the exported model are in {folder}; "
        f"`python -m jobs.report {folder}` shows the curves and the trajectories"
    )


def check(config: SftConfig) -> None:
    """Raise a DataError if a data file of the configuration is missing."""
    require_files(config.data.train)


def main(argv: Sequence[str] | None = None, *, program: str = "python -m jobs.sft") -> int:
    """Run the job from the command line and return the exit status."""
    return run_job(program, "Trains a judge on demonstrations, before GRPO.", SftConfig, run, argv=argv, check=check)


if __name__ == "__main__":
    sys.exit(main())
