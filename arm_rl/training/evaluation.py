"""Evaluation on held-out samples: each judged once, through the same engines, session loop and tools as in training."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

from actors.cluster.reservation import reserve
from arm_rl.core.atomic_file import replace_text
from arm_rl.core.config import ConfigError, EvaluationConfig
from arm_rl.core.stage_config import TrainConfig
from arm_rl.core.types import Sample
from arm_rl.run.folder import open_run
from arm_rl.run.lock import locked
from arm_rl.run.metrics import evaluation_metrics
from arm_rl.training.group_runner import GroupRunner
from arm_rl.training.inputs import read_inputs
from arm_rl.training.startup import RolloutService, group_runner


async def evaluate(
    runner: GroupRunner, samples: Sequence[Sample], config: EvaluationConfig, *, stage: str, step: int
) -> dict[str, float]:
    """Metrics of one pass, whose trajectories are recorded; of passes with no tool offered, or with a prefill, where these are asked for.

    Theirs are `accuracy_without_tools` and `accuracy_with_prefill`, `tool_calls_with_prefill`, `box_hit_with_prefill`, for tracks as well.
    """
    samples = samples[: config.num_samples]
    name = f"{stage}-evaluation"
    groups = await runner.run_all(samples, f"{name}/{step}", size=1, temperature=config.temperature)
    runner.record(name, step, groups)
    by_id = {sample.id: sample for sample in samples}
    metrics = evaluation_metrics(by_id, [group.scored[0] for group in groups])

    async def add(way: str, changed: list[Sample], kept: Sequence[str]) -> None:
        others = await runner.run_all(changed, f"{name}/{step}/{way}", size=1, temperature=config.temperature)
        found = evaluation_metrics(by_id, [group.scored[0] for group in others])
        suffix = way.replace("-", "_")
        for key, value in found.items():
            metric, _, track = key.partition("/")
            if metric in kept:
                metrics["/".join(filter(None, (f"{metric}_{suffix}", track)))] = value

    if config.without_tools:
        await add(
            "without-tools",
            [replace(sample, tools=(), prefill=config.prefill_without_tools) for sample in samples],
            ("accuracy",),
        )
    if config.prefill:
        await add(
            "with-prefill",
            [replace(sample, prefill=config.prefill) for sample in samples],
            ("accuracy", "tool_calls", "box_hit"),
        )
    return metrics


async def evaluate_model(config: TrainConfig, engines: RolloutService | None = None) -> dict[str, float]:
    """Evaluates config.model on config.data.held_out; the metrics are written to the run folder too.

    Args:
        engines: that serve this very model; by default some of its own.

    Raises:
        ConfigError: there is nothing to evaluate on, or another process works in the run folder.
    """
    inputs = read_inputs(config)
    if not inputs.held_out:
        raise ConfigError("data.held_out: at least one parquet file is needed to evaluate")
    with locked(config.run.folder):
        folder = open_run(config)
        async with (
            nullcontext(engines)
            if engines is not None
            else reserve(config.run.name, config.placement, 0, config.rollout) as place,
            group_runner(config, inputs.template, place) as runner,
        ):
            metrics = await evaluate(runner, inputs.held_out, config.evaluation, stage=config.run.name, step=0)
        replace_text(folder / "evaluation.json", json.dumps(metrics, indent=2))
    return metrics
