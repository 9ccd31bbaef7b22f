"""The supervised cold start: `python -m jobs.sft CONFIG key=value …`."""

import sys

from arm_rl.core.stage_config import SftConfig
from arm_rl.training.sft import train_sft
from jobs.command_line import run_job


async def main(config: SftConfig) -> str:
    """The whole cold start."""
    await train_sft(config)
    return f"done: metrics, checkpoints and the exported model are in {config.run.folder}"


if __name__ == "__main__":
    sys.exit(run_job("sft", "Trains a judge on demonstrations, before GRPO.", SftConfig, main))
