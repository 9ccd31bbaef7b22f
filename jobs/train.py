"""Train one GRPO stage: `arm-rl train CONFIG key=value …`."""

import sys
from collections.abc import Sequence

from arm_rl.core.stage_config import TrainConfig
from jobs.command_line import run_job


async def run(config: TrainConfig) -> str:
    """Train one stage of GRPO and return the last line of the job's output."""
    from arm_rl.training.grpo import train_grpo

    await train_grpo(config)
    return f"done: metrics, checkpoints and the exported model are in {config.run.folder}"


def main(argv: Sequence[str] | None = None, *, program: str = "python -m jobs.train") -> int:
    """Run the job from the command line and return the exit status."""
    return run_job(
        program, "Trains a judge by GRPO: rollouts with tools, rewards, learners.", TrainConfig, run, argv=argv
    )


if __name__ == "__main__":
    sys.exit(main())
