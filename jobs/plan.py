"""Plans a run without a GPU: `python -m jobs.plan CONFIG --nodes 2 --gpus 8 --gpu h200 key=value …`."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from arm_rl.core.config_file import load_saved
from arm_rl.core.errors import UserError
from arm_rl.core.stage_config import SftConfig, TrainConfig
from arm_rl.plan.advice import advise, most_prompt_tokens
from arm_rl.plan.duration import Duration, count_samples, duration_of
from arm_rl.plan.fit import GpuMemory, memory_of
from arm_rl.plan.hardware import GPUS, Cluster, find_gpu
from arm_rl.plan.modelled import Setting
from arm_rl.plan.overheads import Overheads, overheads_of
from arm_rl.plan.recipes import RECIPES, plan, table_lines, write_table
from arm_rl.plan.search import Candidate, search
from arm_rl.plan.shapes import ModelShape
from arm_rl.plan.steps import StepPlan, scaling, step_of, stops_at
from arm_rl.plan.tables import (
    candidates_table,
    memory_table,
    overheads_table,
    relative_seconds,
    sizes_table,
    step_table,
)
from arm_rl.plan.workload import Workload
from jobs.command_line import run_guarded

_WORTH_SAYING = 0.03  # of a step's seconds


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Everything that the plan found."""

    setting: Setting
    memory: GpuMemory
    advice: Sequence[tuple[str, ...]]  # key=value, where it does not fit
    prompt_tokens: int | None  # the largest session.max_prompt_tokens that fits; None in a cold start
    step: StepPlan | None  # None where it does not fit
    overheads: Overheads
    duration: Duration | None  # None where it does not fit, or nobody knows the number of samples
    nearby: Sequence[Candidate]
    scaling: Sequence[tuple[int, StepPlan]]


def print_plan(
    setting: Setting,
    *,
    nearby: bool,
    most_gpus: int,
    console: Console,
    as_json: bool,
    num_samples: int | None = None,
) -> str:
    """Print tables, or JSON, and return the verdict."""
    needs = memory_of(setting)
    config = setting.config
    if not as_json:  # memory is known at once, the rest is simulated
        console.print(memory_table(setting, needs))
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)

        def show_progress(name: str) -> None:
            progress.update(task, description=name)

        show_progress("as configured")
        step = step_of(setting) if needs.fits else None
        overheads = overheads_of(config, setting.shape, setting.cluster, setting.efficiency, element=setting.element)
        found = Report(
            setting=setting,
            memory=needs,
            advice=[] if needs.fits else advise(setting),
            prompt_tokens=most_prompt_tokens(setting) if isinstance(config, TrainConfig) else None,
            step=step,
            overheads=overheads,
            duration=None if step is None else duration_of(setting, step, overheads, num_samples),
            nearby=search(setting, show_progress) if nearby else [],
            scaling=scaling(setting, most_gpus, show_progress) if most_gpus and step is not None else [],
        )
    text = describe_verdict(found)
    if as_json:
        return json.dumps(_as_json(found, text), indent=1)
    tables = [] if step is None else [step_table(step)]
    tables.append(overheads_table(overheads, found.duration))
    tables += [candidates_table(found.nearby)] if found.nearby else []
    tables += [sizes_table(found.scaling)] if found.scaling else []
    console.print(*tables, sep="\n")
    return text


def describe_verdict(found: Report) -> str:
    """Return the verdict, a few lines."""
    lines = [_describe_fit(found)]
    if found.step is None:
        lines += [f"  fits with: {' '.join(changes)}" for changes in found.advice]
        if not found.advice:
            lines.append("  no change of a few keys fits: more memory, more GPUs or a smaller model is needed")
    if found.prompt_tokens is not None:
        limit = found.setting.train.session.max_prompt_tokens
        lines.append(f"session.max_prompt_tokens: up to {found.prompt_tokens} fits (configured: {limit})")
    if found.duration is not None:
        one = found.duration
        lines.append(f"the run: {one.steps} steps, {one.seconds / 3600:.1f} h, {one.gpu_hours:.1f} GPU hours")
    elif found.step is not None:
        lines.append("the run: num_steps, --samples or the data's files would tell its length")
    return "\n".join(lines)


def _describe_fit(found: Report) -> str:
    needs, step, candidates = found.memory, found.step, found.nearby
    best = candidates[0] if candidates and candidates[0].step is not None else None
    if step is None:
        return "does not fit: " + "; ".join(needs.problems)
    text = (
        f"fits: {1 - needs.margin:.0%} of a learner's GPU at the peak, {needs.margin:.0%} free; "
        f"{step.seconds:.0f} s a step, {step.rate:.1f} trajectories/s"
    )
    gain = 1 - relative_seconds(best, candidates) if best is not None else 0.0
    if best is not None and gain > _WORTH_SAYING:
        text += f"; {', '.join(best.changes)} takes {gain:.0%} less"
    last = stops_at(found.scaling)
    if last is not None:
        text += f"; more than {last} GPUs bring little"
    return text


def _as_json(found: Report, text: str) -> dict[str, Any]:
    return {
        "model": dataclasses.asdict(found.setting.shape),
        "cluster": dataclasses.asdict(found.setting.cluster),
        "workload": dataclasses.asdict(found.setting.workload),
        "efficiency": dataclasses.asdict(found.setting.efficiency),
        "memory": dataclasses.asdict(found.memory) | {"margin": found.memory.margin},
        "advice": [list(changes) for changes in found.advice],
        "max_prompt_tokens": found.prompt_tokens,
        "step": None if found.step is None else dataclasses.asdict(found.step),
        "overheads": dataclasses.asdict(found.overheads),
        "run": None if found.duration is None else dataclasses.asdict(found.duration),
        "nearby": [dataclasses.asdict(candidate) for candidate in found.nearby],
        "scaling": [{"gpus": gpus, **dataclasses.asdict(step)} for gpus, step in found.scaling],
        "verdict": text,
    }


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
    setting = Setting(
        config=config,
        shape=ModelShape.of(config.model.path),
        cluster=Cluster(
            gpu=find_gpu(arguments.gpu, memory_gib=arguments.gpu_memory, tflops=arguments.gpu_tflops),
            nodes=arguments.nodes,
            gpus_per_node=arguments.gpus,
        ),
        workload=Workload.parse(arguments.workload),
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
    lines = table_lines(map(plan, RECIPES))
    write_table(page, lines)
    return f"done: {len(RECIPES)} recipes are planned in {page}"


if __name__ == "__main__":
    sys.exit(main())
