"""Benchmarks: `python -m jobs.bench tools`. Each measures what it compares side by side, in one run."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from actors.cluster import cluster
from arm_rl.bench import tools as bench_tools
from arm_rl.core.config import ToolsConfig
from jobs.command_line import guarded

TOOL_FILES = [f"configs/tools/{name}.yaml" for name in ("image_zoom", "text_checks", "python_executor")]


def tools(arguments: argparse.Namespace) -> str:
    """Calls a second and latencies of each tool, directly and through an executor."""
    config = ToolsConfig(files=tuple(arguments.files))
    given = json.loads(arguments.arguments)
    with cluster():
        measured = list(
            track(
                bench_tools.measure(
                    given, num_sessions=arguments.sessions, seconds=arguments.seconds, repeats=arguments.repeats, config=config
                ),
                description="tools",
                total=None,
            )
        )
    table = Table("tool", "runs in", "status", "direct /s", "p50 ms", "p99 ms", "executor /s", "p50 ms", "p99 ms", "ratio")
    for one in measured:
        speeds = [f"{value:.4g}" for speed in (one.direct, one.executor) for value in (speed.rate, speed.p50_ms, speed.p99_ms)]
        ratio = f"{one.ratio:.2f} ({one.ratio_low:.2f} to {one.ratio_high:.2f})"
        table.add_row(one.name, one.isolation, one.status, *speeds, ratio)
    Console(width=200).print(table)
    path = arguments.out / "tools.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([dataclasses.asdict(one) for one in measured], indent=2))
    return f"done: the numbers are in {path}"


def main() -> int:
    """Runs the benchmark that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m jobs.bench", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of the results")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("tools", help=tools.__doc__, description=tools.__doc__)
    command.add_argument("files", nargs="*", default=TOOL_FILES, help="tool files")
    command.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    command.add_argument("--sessions", type=int, default=64, help="that call at the same time")
    command.add_argument("--repeats", type=int, default=5, help="of each measurement")
    command.add_argument("--arguments", default="{}", help='JSON: arguments by tool, as in \'{"count_words": {"response": "text_0"}}\'')
    command.set_defaults(run=tools)
    arguments = parser.parse_args()
    return guarded(lambda: arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(main())
