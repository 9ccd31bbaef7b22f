"""Benchmarks: `python -m jobs.bench all`, or one by its key. Each measures what it compares side by side, in turn, in one run."""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, Self, TypeVar

from rich.console import Console
from rich.progress import track
from rich.table import Table

from actors.cluster.connection import cluster
from actors.rollout.model_server import free_port
from arm_rl.core.config import ToolsConfig
from arm_rl.core.errors import UserError
from arm_rl.experiments.bench import driver, learner, overlap, rollout, service, sessions, summary, sync, trl
from arm_rl.experiments.bench import tools as bench_tools
from arm_rl.experiments.bench.result import Result
from arm_rl.export.judge_config import JudgeSetup
from arm_rl.judge.deployment import deploy_judge
from arm_rl.judge.service import ServiceLimits
from jobs.command_line import run_guarded

TOOL_FILES = [f"configs/tools/{name}.yaml" for name in ("image_zoom", "text_checks", "python_executor")]


class Quick(Protocol):
    """Settings of a benchmark."""

    def quick(self) -> Self:
        """Small ones, to try it."""
        ...


SettingsT = TypeVar("SettingsT", bound=Quick)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How a benchmark runs."""

    out: Path
    quick: bool

    def sized(self, settings: SettingsT) -> SettingsT:
        """As large as it is to be."""
        return settings.quick() if self.quick else settings

    @property
    def judge(self) -> str:
        """A judge that calls its tool; made where it is not there yet."""
        return str(asyncio.run(sessions.judge(sessions.SESSIONS, self.out / "trl" / "judges")))


def vs_trl(options: Options) -> Iterable[Result]:
    """Trajectories a second of whole GRPO steps on the demo's sessions, against TRL's GRPOTrainer."""
    yield trl.measure(options.sized(trl.Settings(folder=options.out / "trl")))


def vs_trl_images(options: Options) -> Iterable[Result]:
    """The same on groups of 16 that share a large prompt image."""
    yield trl.measure(
        options.sized(trl.Settings(folder=options.out / "trl", size=sessions.IMAGES, steps=3, other_steps=1))
    )


def rollout_efficiency(options: Options) -> Iterable[Result]:
    """Sessions a second through the rollout actor with tools and scoring, over its bare engine."""
    yield rollout.measure(options.sized(rollout.Settings(model=options.judge)))


def learner_efficiency(options: Options) -> Iterable[Result]:
    """Loss tokens a second of a learner rank over a bare torch loop: nothing shared, groups of 8 and 16, a large image."""
    return (learner.measure(options.sized(case)) for case in learner.CASES)


def overlapping(options: Options) -> Iterable[Result]:
    """Steps a second asynchronous, over the slower of rollouts and learner alone."""
    yield overlap.measure(options.sized(overlap.Settings(model=options.judge)))


def sync_over_copy(options: Options) -> Iterable[Result]:
    """Seconds from "learner done" to "every engine serves the new version", over copying the same bytes in memory."""
    yield sync.measure(options.sized(sync.Settings()))


def driver_share(options: Options) -> Iterable[Result]:
    """Trajectories a second through driver, scorers and batching, over bare calls of a Ray actor."""
    yield driver.measure(options.sized(driver.Settings()))


def ranks(options: Options) -> Iterable[Result]:
    """Loss tokens a second of two learner ranks over one, ZeRO stages 0 and 2."""
    return (learner.measure_ranks(options.sized(case)) for case in learner.RANK_CASES)


def served(options: Options) -> Iterable[Result]:
    """Judgments a second of the reward service with 64 clients, over the bare engine sampling the same sessions."""
    settings = options.sized(service.Settings(model=options.judge))
    setup = JudgeSetup.from_config(settings.config(options.out))
    limits = ServiceLimits(max_requests=settings.clients)
    with deploy_judge(
        Path(settings.model), setup, limits=limits, port=free_port(), concurrency=settings.clients
    ) as url:
        yield service.measure(settings, url)


BENCHMARKS: dict[str, Callable[[Options], Iterable[Result]]] = {
    "vs_trl": vs_trl,
    "vs_trl_images": vs_trl_images,
    "rollout_efficiency": rollout_efficiency,
    "learner_efficiency": learner_efficiency,
    "overlap": overlapping,
    "sync_over_copy": sync_over_copy,
    "driver_share": driver_share,
    "ranks": ranks,
    "service": served,
}


def one(arguments: argparse.Namespace) -> str:
    """Measures what one benchmark compares."""
    path = arguments.out / f"{arguments.key}.json"
    with cluster():
        results = list(BENCHMARKS[arguments.key](Options(out=arguments.out, quick=arguments.quick)))
    summary.save(path, results)
    Console(width=160).print(summary.table(results))
    return f"done: the numbers are in {path}"


def every(arguments: argparse.Namespace) -> str:
    """Measures all, each in a process of its own, and writes summary.json, table.md and plot.svg."""
    begun, failed = time.time(), []
    for key in track(BENCHMARKS, description="benchmarks", console=Console(stderr=True)):
        path = arguments.out / f"{key}.json"
        if arguments.resume and path.is_file():
            continue
        command = [
            sys.executable,
            "-m",
            "jobs.bench",
            "--out",
            str(arguments.out),
            key,
            *(["--quick"] if arguments.quick else []),
        ]
        if subprocess.run(command, check=False).returncode:
            failed.append(key)
    found = [path for key in BENCHMARKS if (path := arguments.out / f"{key}.json").is_file() and key not in failed]
    if failed:
        raise UserError(f"{', '.join(failed)}: no numbers, see above; --resume measures only what is missing")
    path = summary.write(arguments.out, [result for file in found for result in summary.read(file)])
    minutes = (time.time() - begun) / 60
    return f"done in {minutes:.0f} minutes: {path}, with the table in table.md and the plot in plot.svg beside it"


def tools(arguments: argparse.Namespace) -> str:
    """Calls a second and latencies of each tool, directly and through an executor."""
    config = ToolsConfig(files=tuple(arguments.files))
    given = json.loads(arguments.arguments)
    with cluster():
        measured = list(
            track(
                bench_tools.measure(
                    given,
                    num_sessions=arguments.sessions,
                    seconds=arguments.seconds,
                    repeats=arguments.repeats,
                    config=config,
                ),
                description="tools",
                total=None,
            )
        )
    table = Table(
        "tool", "runs in", "status", "direct /s", "p50 ms", "p99 ms", "executor /s", "p50 ms", "p99 ms", "ratio"
    )
    for tool in measured:
        speeds = [
            f"{value:.4g}"
            for speed in (tool.direct, tool.executor)
            for value in (speed.rate, speed.p50_ms, speed.p99_ms)
        ]
        ratio = f"{tool.ratio:.2f} ({tool.ratio_low:.2f} to {tool.ratio_high:.2f})"
        table.add_row(tool.name, tool.isolation, tool.status, *speeds, ratio)
    Console(width=200).print(table)
    path = arguments.out / "tools.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(tool) for tool in measured], indent=2))
    return f"done: the numbers are in {path}"


def main() -> int:
    """Runs the benchmark that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m jobs.bench", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of the results")
    commands = parser.add_subparsers(required=True, dest="key")
    command = commands.add_parser("all", help=every.__doc__, description=every.__doc__)
    command.add_argument("--resume", action="store_true", help="leaves out what has its numbers already")
    command.add_argument("--quick", action="store_true", help="small sizes, to try it")
    command.set_defaults(run=every)
    for key, benchmark in BENCHMARKS.items():
        command = commands.add_parser(key, help=benchmark.__doc__, description=benchmark.__doc__)
        command.add_argument("--quick", action="store_true", help="small sizes, to try it")
        command.set_defaults(run=one)
    command = commands.add_parser("tools", help=tools.__doc__, description=tools.__doc__)
    command.add_argument("files", nargs="*", default=TOOL_FILES, help="tool files")
    command.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    command.add_argument("--sessions", type=int, default=64, help="that call at the same time")
    command.add_argument("--repeats", type=int, default=5, help="of each measurement")
    command.add_argument(
        "--arguments", default="{}", help='JSON: arguments by tool, as in \'{"count_words": {"response": "text_0"}}\''
    )
    command.set_defaults(run=tools)
    arguments = parser.parse_args()
    resume_hint = "--resume measures only what is missing" if arguments.key == "all" else ""
    return run_guarded(lambda: arguments.run(arguments), resume_hint=resume_hint)


if __name__ == "__main__":
    sys.exit(main())
