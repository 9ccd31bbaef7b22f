"""Trains one GRPO stage: `python -m jobs.train CONFIG key=value …`."""

import sys

from arm_rl.core.stage_config import TrainConfig
from arm_rl.training.grpo import train_grpo
from jobs.command_line import run_job


async def main(config: TrainConfig) -> str:
    """The whole stage."""
    await train_grpo(config)
    return f"done: metrics, checkpoints and the exported model are in {config.run.folder}"


if __name__ == "__main__":
    sys.exit(run_job("train", "Trains a judge by GRPO: rollouts with tools, rewards, learners.", TrainConfig, main))
