"""Run all benchmarks, or one by its key. Each measures both sides of its comparison in turn, in one run."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import track

from arm_rl.core.atomic_file import replace_text
from arm_rl.core.config import ToolsConfig
from arm_rl.core.errors import UserError
from arm_rl.experiments.bench import summary
from arm_rl.run.folder import require_same_settings
from jobs.command_line import run_guarded

if TYPE_CHECKING:
    from arm_rl.experiments.bench.benchmark import SpeedBenchmark

SETTINGS = "settings.json"  # sizes of the numbers in the folder
TOOL_FILES = [f"configs/tools/{name}.yaml" for name in ("image_zoom", "text_checks", "python_executor")]

BENCHMARKS = {
    "vs_trl": "GRPO steps over those of TRL, small images",
    "vs_trl_images": "GRPO steps over those of TRL, large images",
    "rollout_efficiency": "sessions through the rollout actor with tools and scoring, over its bare engine",
    "learner_efficiency": "loss tokens a second of one learner rank over a bare torch loop",
    "packed_text": "loss tokens a second of packed groups, over a bare loop that pads and repeats prompts",
    "packed_images": "the same with an image in each prompt",
    "packed_none": "the same where no group shares anything",
    "activation_bytes": "saved activations of a packed row, over those of the padded, repeated batch",
    "overlap": "asynchronous steps, over 1 / max(rollouts alone, learner alone)",
    "sync_over_copy": "seconds from learner done to every engine serving the new version, over copying the same bytes",
    "driver_share": "trajectories through driver, scorers and batching, over bare calls of a Ray actor",
    "ranks": "loss tokens a second of 2 learner ranks over 1",
    "service": "judgments a second over HTTP, tools included, over the bare engine sampling the same sessions",
}


def load_benchmarks() -> dict[str, tuple["SpeedBenchmark", ...]]:
    """Return the comparisons of each key of BENCHMARKS."""
    from arm_rl.experiments.bench import driver, learner, overlap, packed, rollout, service, sync, trl

    return {
        "vs_trl": (trl.ON_SMALL_IMAGES,),
        "vs_trl_images": (trl.ON_LARGE_IMAGES,),
        "rollout_efficiency": (rollout.BENCHMARK,),
        "learner_efficiency": learner.AGAINST_BARE_LOOP,
        "packed_text": (packed.TEXT,),
        "packed_images": (packed.IMAGES,),
        "packed_none": (packed.NONE,),
        "activation_bytes": (packed.ACTIVATIONS,),
        "overlap": (overlap.BENCHMARK,),
        "sync_over_copy": (sync.BENCHMARK,),
        "driver_share": (driver.BENCHMARK,),
        "ranks": learner.TWO_RANKS_OVER_ONE,
        "service": (service.BENCHMARK,),
    }


def measure_one(arguments: argparse.Namespace) -> str:
    """Measure what one benchmark compares."""
    _require_same_sizes(arguments)
    from actors.cluster.connection import cluster

    path = arguments.out / f"{arguments.key}.json"
    with cluster():
        results = [
            benchmark.run(arguments.out, quick=arguments.quick) for benchmark in load_benchmarks()[arguments.key]
        ]
    summary.save(path, results)
    Console(width=160).print(summary.table(results))
    return f"done: the numbers are in {path}"


def measure_all(arguments: argparse.Namespace) -> str:
    """Measure all, each in a process of its own, and write summary.json, table.md and plot.svg."""
    if not arguments.resume:
        (arguments.out / SETTINGS).unlink(missing_ok=True)  # all numbers are measured again
    _require_same_sizes(arguments)
    begun, failed = time.time(), []
    for key in track(BENCHMARKS, description="benchmarks", console=Console(stderr=True)):
        path = arguments.out / f"{key}.json"
        if arguments.resume and path.is_file():
            continue
        command = [sys.executable, "-m", "jobs.bench", "--out", str(arguments.out), key]
        if subprocess.run([*command, *(["--quick"] if arguments.quick else [])], check=False).returncode:
            failed.append(key)
    found = [path for key in BENCHMARKS if (path := arguments.out / f"{key}.json").is_file() and key not in failed]
    if failed:
        raise UserError(f"{', '.join(failed)}: no numbers, see above; --resume measures only what is missing")
    path = summary.write(arguments.out, [result for file in found for result in summary.read(file)])
    minutes = (time.time() - begun) / 60
    return f"done in {minutes:.0f} minutes: {path}, with the table in table.md and the plot in plot.svg beside it"


def _require_same_sizes(arguments: argparse.Namespace) -> None:
    """Raise a ConfigError if the folder holds numbers of other sizes, which do not belong into one table."""
    settings = {"--quick": arguments.quick}
    require_same_settings(arguments.out / SETTINGS, settings, remedy="choose another --out, or remove that folder")


def measure_tools(arguments: argparse.Namespace) -> str:
    """Measure calls a second and latencies of each tool, directly and through an executor."""
    from actors.cluster.connection import cluster
    from arm_rl.experiments.bench import tools

    config = ToolsConfig(files=tuple(arguments.files))
    given = json.loads(arguments.arguments)
    with cluster():
        speeds = tools.measure(
            given,
            num_sessions=arguments.sessions,
            seconds=arguments.seconds,
            repeats=arguments.repeats,
            config=config,
        )
        measured = list(track(speeds, description="tools", total=None))
    Console(width=200).print(tools.table(measured))
    path = arguments.out / "tools.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps([asdict(tool) for tool in measured], indent=2))
    return f"done: the numbers are in {path}"


def main(argv: Sequence[str] | None = None, *, program: str = "python -m jobs.bench") -> int:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of the results")
    commands = parser.add_subparsers(required=True, dest="key")
    command = commands.add_parser("all", help=measure_all.__doc__, description=measure_all.__doc__)
    command.add_argument("--resume", action="store_true", help="leaves out what has its numbers already")
    command.add_argument("--quick", action="store_true", help="small sizes, to try it")
    command.set_defaults(run=measure_all)
    for key, what in BENCHMARKS.items():
        command = commands.add_parser(key, help=what, description=what)
        command.add_argument("--quick", action="store_true", help="small sizes, to try it")
        command.set_defaults(run=measure_one)
    command = commands.add_parser("tools", help=measure_tools.__doc__, description=measure_tools.__doc__)
    command.add_argument("files", nargs="*", default=TOOL_FILES, help="tool files")
    command.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    command.add_argument("--sessions", type=int, default=64, help="that call at the same time")
    command.add_argument("--repeats", type=int, default=5, help="of each measurement")
    command.add_argument(
        "--arguments", default="{}", help='JSON: arguments by tool, as in \'{"count_words": {"response": "text_0"}}\''
    )
    command.set_defaults(run=measure_tools)
    arguments = parser.parse_args(argv)
    resume_hint = "--resume measures only what is missing" if arguments.key == "all" else ""
    return run_guarded(lambda: arguments.run(arguments), resume_hint=resume_hint)


if __name__ == "__main__":
    sys.exit(main())
