"""Evaluation on held-out samples: each judged once, through the same engines, session loop and tools as in training."""

import json
from collections.abc import Sequence
from dataclasses import replace

from actors.reservation import reserved
from arm_rl.core.config import ConfigError, EvaluationConfig, TrainConfig
from arm_rl.core.types import Sample
from arm_rl.groups import GroupRunner, group_runner
from arm_rl.inputs import read_inputs
from arm_rl.metrics import evaluation_metrics
from arm_rl.run_folder import open_run


async def evaluate(runner: GroupRunner, samples: Sequence[Sample], config: EvaluationConfig, *, stage: str, step: int) -> dict[str, float]:
    """Metrics of one pass; with `without_tools`, also the accuracy where no tool is offered. The trajectories are recorded."""
    samples = samples[: config.num_samples]
    name = f"{stage}-evaluation"
    groups = await runner.run(samples, f"{name}/{step}", size=1, temperature=config.temperature)
    runner.record(name, step, groups)
    by_id = {sample.id: sample for sample in samples}
    metrics = evaluation_metrics(by_id, [group.scored[0] for group in groups])
    if config.without_tools:
        toolless = [replace(sample, tools=()) for sample in samples]
        bare = await runner.run(toolless, f"{name}/{step}/without-tools", size=1, temperature=config.temperature)
        metrics["accuracy_without_tools"] = evaluation_metrics(by_id, [group.scored[0] for group in bare])["accuracy"]
    return metrics


async def evaluate_model(config: TrainConfig) -> dict[str, float]:
    """Evaluates config.model on config.data.held_out; the metrics are written to the run folder too.

    Raises:
        ConfigError: there is nothing to evaluate on.
    """
    inputs = read_inputs(config)
    if not inputs.held_out:
        raise ConfigError("data.held_out: at least one parquet file is needed to evaluate")
    folder = open_run(config)
    async with (
        reserved(config.run.name, config.placement, 0, config.rollout) as reservation,
        group_runner(config, inputs.template, reservation) as runner,
    ):
        metrics = await evaluate(runner, inputs.held_out, config.evaluation, stage=config.run.name, step=0)
    (folder / "evaluation.json").write_text(json.dumps(metrics, indent=2))
    return metrics
