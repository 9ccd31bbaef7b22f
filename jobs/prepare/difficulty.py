"""The command `difficulty`: training data without what the model can do already."""

import argparse
import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from actors.cluster.connection import cluster
from actors.cluster.reservation import reserved
from arm_rl.core.atomic_file import replace_text
from arm_rl.core.config_file import load
from arm_rl.core.json_lines import JsonLines
from arm_rl.core.stage_config import TrainConfig
from arm_rl.core.template import Template
from arm_rl.core.types import Sample
from arm_rl.prepare.difficulty import NeverRight, SampleRollouts, judge_all, judged_before, report, write_kept
from arm_rl.run.folder import open_run
from arm_rl.training.inputs import read_inputs
from arm_rl.training.startup import group_runner
from jobs.prepare.commands import Commands, progress

JUDGED, REPORT = "difficulty.jsonl", "report.json"


def difficulty(commands: Commands) -> None:
    """Adds the command that leaves out what is too easy, or too hard."""
    parser = commands.add_parser(
        "difficulty",
        help="training data without what a model can do already",
        description="The model of a configuration judges each sample of data.train several times, with the engines, tools and limits of "
        "training. What it gets right every time is left out: NAME-filtered.parquet beside each file holds the rest. Started again, it "
        "goes on where it stopped.",
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file of a GRPO stage")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="a key of the configuration, and its value")
    parser.add_argument("--rollouts", type=int, default=5, help="of each sample (default: %(default)s)")
    parser.add_argument(
        "--never-right",
        choices=get_args(NeverRight),
        default="keep",
        help="what becomes of samples that no rollout gets right",
    )
    parser.set_defaults(run=_difficulty)


def _difficulty(arguments: argparse.Namespace) -> str:
    config = load(TrainConfig, arguments.config, arguments.overrides)
    return "\n".join(leave_out(config, arguments.rollouts, arguments.never_right))


def leave_out(config: TrainConfig, num_rollouts: int, never_right: NeverRight) -> list[str]:
    """Writes the files of `config.data.train` anew, without what the model can do already.

    Args:
        num_rollouts: of each sample.
        never_right: what becomes of samples that no rollout gets right.

    Returns:
        What was kept and why the rest was not, a line each; the last one says where it is.
    """
    config = replace(config, run=replace(config.run, name=f"{config.run.name}-difficulty"))
    inputs = read_inputs(replace(config, data=replace(config.data, held_out=())))
    folder = open_run(config)
    with JsonLines(folder / JUDGED) as lines:
        judged = judged_before(inputs.samples, lines, num_rollouts)
        pending = [sample for sample in inputs.samples if sample.id not in judged]
        if pending:
            with cluster():
                judged |= asyncio.run(_judged(config, inputs.template, pending, lines, num_rollouts))
    kept = [write_kept(Path(file), judged, never_right) for file in config.data.train]
    found = report(inputs.samples, judged, num_rollouts, never_right)
    replace_text(folder / REPORT, json.dumps(found, indent=2))
    files = ", ".join(f"{path} ({num_rows} rows)" for path, num_rows in kept)
    return [*told(found), f"done: {files}; {REPORT} and {JUDGED} are in {folder}"]


async def _judged(
    config: TrainConfig, template: Template, samples: Sequence[Sample], lines: JsonLines, num_rollouts: int
) -> dict[str, SampleRollouts]:
    async with (
        reserved(config.run.name, config.placement, 0, config.rollout) as reservation,
        group_runner(config, template, reservation) as runner,
    ):
        with progress("judging", len(samples), "samples") as step:
            return await judge_all(
                runner,
                samples,
                lines,
                num_rollouts=num_rollouts,
                temperature=config.rollout.temperature,
                sessions_at_a_time=config.rollout.num_actors * config.rollout.max_concurrent_sessions,
                max_broken=config.run.max_broken_sessions,
                on_done=step,
            )


def told(found: dict[str, Any]) -> list[str]:
    """The report in a few lines."""
    lines = [f"{found['kept']} of {found['samples']} samples kept"]
    lines += [f"  left out: {reason}: {number}" for reason, number in found["left_out"].items()]
    for track, counts in found["histogram"].items():
        shown = ", ".join(f"{right}: {number}" for right, number in enumerate(counts))
        lines.append(f"{track}: samples by right rollouts of {found['rollouts']}: {shown}")
    return lines
