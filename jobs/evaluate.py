"""Evaluates a model on held-out data: `python -m jobs.evaluate CONFIG model.path=… data.held_out=[…]`."""

import sys

from arm_rl.core.config import TrainConfig
from arm_rl.evaluation import evaluate_model
from jobs.command_line import run_job


async def main(config: TrainConfig) -> str:
    """One pass over the held-out samples."""
    metrics = await evaluate_model(config)
    shown = "  ".join(f"{name} {value:.3g}" for name, value in metrics.items())
    return f"{shown}\ndone: evaluation.json and the trajectories are in {config.run.folder}"


if __name__ == "__main__":
    sys.exit(run_job("evaluate", "Judges the held-out samples of a configuration once each.", TrainConfig, main))
