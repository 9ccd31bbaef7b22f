"""The command `trajectories`: demonstrations for the cold start, by a stronger model."""

import argparse
import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arm_rl.core.atomic_file import replace_text
from arm_rl.core.config_file import load
from arm_rl.core.parsing import TOOL_FORMATS
from arm_rl.core.stage_config import TrainConfig
from arm_rl.core.types import Sample
from arm_rl.data.parquet_rows import require_files
from arm_rl.data.samples import read_samples
from arm_rl.prepare.progress import progress_bar
from arm_rl.run.folder import open_run, require_same_settings
from arm_rl.run.lock import locked
from jobs.command_line import Commands
from jobs.server_options import CommandError, add_server_options, read_server

if TYPE_CHECKING:
    from arm_rl.core.template import Template
    from arm_rl.judge.backends import Server

FILE, REPORT, TEACHER = "demonstrations.parquet", "report.json", "teacher.json"


def add_trajectories_command(commands: Commands) -> None:
    """Add the command that makes demonstrations."""
    parser = commands.add_parser(
        "trajectories",
        help="demonstrations for the cold start, by a stronger model",
        description="A stronger model judges the samples of data.train through the session loop, with tools. A session is kept if its form "
        "and its judgment are right and a call succeeded; of each sample, the one with the fewest calls. The file is what jobs.sft reads. "
        "The model is model.path's, or a server's: then only the processor is read from model.path. Started again, it goes on where it "
        "stopped.",
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file of a GRPO stage")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="a key of the configuration, and its value")
    parser.add_argument("--server", metavar="URL", help="http://…/v1 of an OpenAI-compatible server")
    parser.add_argument(
        "--best-of", type=int, default=1, metavar="N", help="sessions of each sample (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"(default: {FILE} in the run's folder)")
    add_server_options(parser, where="with --server")
    parser.set_defaults(run=_run_trajectories)


def _run_trajectories(arguments: argparse.Namespace) -> str:
    config = load(TrainConfig, arguments.config, arguments.overrides)
    require_files(config.data.train)
    config = replace(config, run=replace(config.run, name=f"{config.run.name}-trajectories"))
    if arguments.best_of < 1:
        raise CommandError(f"--best-of: at least 1, not {arguments.best_of}")
    from arm_rl.data.demonstrations import write_demonstrations
    from arm_rl.judge.backends import server_template
    from arm_rl.prepare.teacher_sessions import choose_best, load_sessions, plan_sessions, read_recorded, report
    from arm_rl.training.inputs import read_template

    server = read_server(arguments.server, arguments)[0] if arguments.server else None
    template = read_template(config) if server is None else server_template(config)
    samples = read_samples(config.data.train, list(template.schemas), config.data)
    with locked(config.run.folder):
        folder = open_run(config)
        teacher = {
            "--served-model": server.model if server else None
        }  # the same model may be served at another address
        require_same_settings(folder / TEACHER, teacher, remedy="choose another run.name, or remove that folder")
        sessions = plan_sessions(samples, arguments.best_of)
        known = {one.group_id for one in read_recorded(folder)}
        pending = {group_id: sample for group_id, sample in sessions.items() if group_id not in known}
        if pending:
            asyncio.run(_run_pending(config, template, pending, server))
        found = [one for one in read_recorded(folder) if one.group_id in sessions]
        chosen = choose_best(found, samples)
        shown = report(samples, found, chosen, arguments.best_of)
        replace_text(folder / REPORT, json.dumps(shown, indent=2))
        if not chosen:
            raise CommandError("\n".join(["no session can be learned from:", *summary_lines(shown)]))
        out = arguments.out or folder / FILE
        written = write_demonstrations(out, load_sessions(chosen, config.session.last_turn_notice))
        return "\n".join(
            [
                *summary_lines(shown),
                f"done: {written} demonstrations are in {out}; {REPORT} and the trajectories are in {folder}",
            ]
        )


async def _run_pending(
    config: TrainConfig, template: "Template", sessions: Mapping[str, Sample], server: "Server | None"
) -> None:
    from arm_rl.judge.backends import open_backend
    from arm_rl.prepare.teacher_sessions import run_sessions

    async with open_backend(config, template, server) as backend:
        with progress_bar("running sessions", len(sessions), "sessions") as step:
            await run_sessions(backend, sessions, config, TOOL_FORMATS[config.template.tool_format], on_done=step)


def summary_lines(shown: dict[str, Any]) -> list[str]:
    """Return the report as a few lines."""
    lines = [f"{shown['kept']} of {shown['samples']} samples have a demonstration, out of {shown['sessions']} sessions"]
    return lines + [
        f"  not learned from: {reason}: {number} sessions" for reason, number in shown["refused_sessions"].items()
    ]
