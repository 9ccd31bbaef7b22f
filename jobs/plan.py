"""Plans a run without a GPU: `python -m jobs.plan CONFIG --nodes 2 --gpus 8 --gpu h200 key=value …`."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from arm_rl.core.config_file import load_saved
from arm_rl.core.errors import UserError
from arm_rl.core.stage_config import SftConfig, TrainConfig
from arm_rl.plan.hardware import GPUS, Cluster, find_gpu
from arm_rl.plan.workload import Workload
from jobs.command_line import run_guarded


def main(argv: Sequence[str] | None = None, *, program: str = "python -m jobs.plan") -> int:
    """Plans from the command line."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="What a run needs of its GPUs, and how long its steps take. It needs none itself.",
    )
    parser.add_argument("config", nargs="?", help="YAML file of jobs.train or jobs.sft")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="a key of the configuration, and its value; model.path may be a name",
    )
    parser.add_argument("--nodes", type=int, default=1, help="of the cluster (%(default)s)")
    parser.add_argument("--gpus", type=int, default=8, help="of a node (%(default)s)")
    parser.add_argument("--gpu", choices=[*GPUS], default="h200", help="their kind (%(default)s)")
    parser.add_argument("--gpu-memory", type=float, metavar="GIB", help="of another card; the rest as --gpu")
    parser.add_argument(
        "--gpu-tflops", type=float, metavar="N", help="of another card, dense bfloat16; the rest as --gpu"
    )
    parser.add_argument(
        "--workload",
        nargs="+",
        default=[],
        metavar="key=value",
        help="what sessions are like: " + ", ".join(f.name for f in dataclasses.fields(Workload)),
    )
    parser.add_argument(
        "--samples", type=int, metavar="N", help="of the training data (default: rows of data.train, if it is there)"
    )
    parser.add_argument(
        "--scale",
        type=int,
        default=0,
        metavar="GPUS",
        help="also on twice, four times, … as many nodes, up to so many GPUs",
    )
    parser.add_argument("--no-search", action="store_true", help="leave out the nearby settings")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--recipes",
        type=Path,
        metavar="PAGE",
        help="plan all shipped recipes instead, and write their table into this page (docs/recipes.md)",
    )
    arguments = parser.parse_intermixed_args(argv)
    if arguments.config is None and arguments.recipes is None:
        parser.error("a configuration is needed, or --recipes")
    return run_guarded(lambda: _plan_recipes(arguments.recipes) if arguments.recipes else _plan_config(arguments))


def _plan_config(arguments: argparse.Namespace) -> str:
    config: TrainConfig | SftConfig = load_saved(arguments.config, arguments.overrides)
    for option, value in (("--nodes", arguments.nodes), ("--gpus", arguments.gpus), ("--samples", arguments.samples)):
        if value is not None and value < 1:
            raise UserError(f"{option}: at least 1, not {value}")
    workload = Workload.parse(arguments.workload)
    cluster = Cluster(
        gpu=find_gpu(arguments.gpu, memory_gib=arguments.gpu_memory, tflops=arguments.gpu_tflops),
        nodes=arguments.nodes,
        gpus_per_node=arguments.gpus,
    )
    from arm_rl.plan.duration import count_samples
    from arm_rl.plan.modelled import Setting
    from arm_rl.plan.shapes import ModelShape
    from arm_rl.plan.verdict import print_plan

    setting = Setting(
        config=config,
        shape=ModelShape.of(config.model.path),
        cluster=cluster,
        workload=workload,
    )
    return print_plan(
        setting,
        nearby=not arguments.no_search,
        most_gpus=arguments.scale,
        console=Console(width=140, soft_wrap=False),
        as_json=arguments.json,
        num_samples=arguments.samples or count_samples(config),
    )


def _plan_recipes(page: Path) -> str:
    from arm_rl.plan.recipes import RECIPES, plan, table_lines, write_table

    lines = table_lines(map(plan, RECIPES))
    write_table(page, lines)
    return f"done: {len(RECIPES)} recipes are planned in {page}"


if __name__ == "__main__":
    sys.exit(main())
