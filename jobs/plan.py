"""Plans a run without a GPU: `python -m jobs.plan CONFIG --nodes 2 --gpus 8 --gpu h200 key=value …`."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from arm_rl.core.config_file import load_saved
from arm_rl.core.stage_config import SftConfig, TrainConfig
from arm_rl.plan import memory
from arm_rl.plan.fit import GpuMemory, memory_of
from arm_rl.plan.hardware import GIB, GPUS, Cluster
from arm_rl.plan.modelled import Setting
from arm_rl.plan.search import Candidate, search
from arm_rl.plan.shapes import ModelShape
from arm_rl.plan.steps import StepPlan, scaling, step_of, stops_at
from arm_rl.plan.workload import Workload
from jobs.command_line import run_guarded

_SHOWN = 8  # nearby settings
_WORTH_SAYING = 0.03  # of a step's seconds


def print_plan(setting: Setting, *, nearby: bool, most_gpus: int, console: Console, as_json: bool) -> str:
    """Print tables, or JSON, and return the verdict."""
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)

        def show_progress(name: str) -> None:
            progress.update(task, description=name)

        needs = memory_of(setting)
        show_progress("as configured")
        step = step_of(setting) if needs.fits else None
        candidates = search(setting, show_progress) if nearby else []
        sizes = scaling(setting, most_gpus, show_progress) if most_gpus and step is not None else []
    text = describe_verdict(setting, needs, step, candidates, sizes)
    if as_json:
        return json.dumps(_as_json(setting, needs, step, candidates, sizes, text), indent=1)
    console.print(*_make_tables(setting, needs, step, candidates, sizes), sep="\n")
    return text


def describe_verdict(
    setting: Setting,
    needs: GpuMemory,
    step: StepPlan | None,
    candidates: Sequence[Candidate],
    sizes: Sequence[tuple[int, StepPlan]],
) -> str:
    """Return the verdict as one line."""
    best = candidates[0] if candidates and candidates[0].step is not None else None
    if step is None:
        text = "does not fit: " + "; ".join(needs.problems)
        return text + (f"; {', '.join(best.changes)} fits" if best is not None else "")
    share = memory.on_gpu(needs.learner) / needs.limit
    text = f"fits: a learner takes {share:.0%} of its GPU; {step.seconds:.0f} s a step, {step.rate:.1f} trajectories/s"
    gain = 1 - _relative_seconds(best, candidates) if best is not None else 0.0
    if best is not None and gain > _WORTH_SAYING:
        text += f"; {', '.join(best.changes)} takes {gain:.0%} less"
    last = stops_at(sizes)
    if last is not None:
        text += f"; more than {last} GPUs bring little"
    return text


def _relative_seconds(candidate: Candidate, candidates: Sequence[Candidate]) -> float:
    """Return the seconds of a candidate's step over those of the configured setting."""
    own = next((other.step for other in candidates if not other.changes), None)
    return candidate.step.seconds / own.seconds if candidate.step is not None and own is not None else 1.0


def _make_tables(
    setting: Setting,
    needs: GpuMemory,
    step: StepPlan | None,
    candidates: Sequence[Candidate],
    sizes: Sequence[tuple[int, StepPlan]],
) -> list[Table]:
    cluster, shape = setting.cluster, setting.shape
    gpus = f"{cluster.nodes} x {cluster.gpus_per_node} {cluster.gpu.name}"
    title = f"{shape.name}, {shape.parameters / 1e9:.2f} billion parameters, on {gpus}"
    tables = [_memory_table(title, setting, needs)]
    if step is not None:
        tables.append(_step_table(step))
    if candidates:
        tables.append(_candidates_table(candidates))
    if sizes:
        tables.append(_sizes_table(sizes))
    return tables


def _memory_table(title: str, setting: Setting, needs: GpuMemory) -> Table:
    table = Table("GPU of", "part", "GiB", title=title, title_justify="left")
    table.columns[-1].justify = "right"
    rows: list[tuple[str, Mapping[str, int]]] = [("a learner", needs.learner)]
    if needs.engine:
        rows.append(("an engine", needs.engine))
    for name, parts in rows:
        for part, size in parts.items():
            if size and part != "host":
                table.add_row(name, part, f"{size / GIB:.1f}")
                name = ""
        table.add_row(name, "in all", f"{memory.on_gpu(parts) / GIB:.1f}")
        table.add_section()
    if needs.longest != memory.on_gpu(needs.learner):
        table.add_row("a learner", "in all, with the longest session that is allowed", f"{needs.longest / GIB:.1f}")
    if setting.takes_turns:
        table.add_row(
            "both", "engine, and what a learner keeps beside it", f"{_shared_gpu_bytes(setting, needs) / GIB:.1f}"
        )
    if needs.learner["host"]:
        table.add_row("host", "optimizer of a rank, off-loaded", f"{needs.learner['host'] / GIB:.1f}")
    table.add_row("", "there is", f"{needs.limit / GIB:.1f}")
    return table


def _shared_gpu_bytes(setting: Setting, needs: GpuMemory) -> int:
    return memory.on_gpu(needs.engine) + memory.idle_learner(needs.learner)


def _step_table(step: StepPlan) -> Table:
    table = Table(
        "phase",
        "seconds",
        "share",
        "bound by",
        title=f"a step: {step.seconds:.1f} s, {step.trajectories} trajectories",
        title_justify="left",
    )
    for column in table.columns[1:3]:
        column.justify = "right"

    def add_row(name: str, seconds: float, bound: str = "") -> None:
        if seconds:
            table.add_row(name, f"{seconds:.1f}", f"{seconds / step.seconds:.0%}", bound)

    add_row("the driver waits for groups", step.rollout)
    add_row("learners train", step.learner, _format_bounds(step.bounds))
    add_row("new weights travel", step.sync, "host and network")
    table.add_section()
    add_row("an engine reads prompts", step.prefill, "compute")
    add_row("an engine samples", step.decode, _format_bounds(step.engine_bounds))
    if step.rollout or step.prefill:
        add_row("an engine is idle", step.engine_idle * step.seconds, "tools, the longest sessions, learners, weights")
    add_row("a learner is idle", step.learner_idle * step.seconds, "groups, weights")
    add_row("a call waits for an executor", step.tools, "tools.num_executors")
    return table


def _format_bounds(bounds: Mapping[str, float]) -> str:
    total = sum(bounds.values()) or 1.0
    shares = sorted(bounds.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in shares if seconds >= 0.01 * total)


def _candidates_table(candidates: Sequence[Candidate]) -> Table:
    table = Table("nearby settings", "seconds", "idle: engine, learner", "", title_justify="left")
    table.columns[1].justify = "right"
    fitting = [candidate for candidate in candidates if candidate.step is not None]
    for candidate in (*fitting[:_SHOWN], *[candidate for candidate in fitting[_SHOWN:] if not candidate.changes]):
        assert candidate.step is not None
        idle = f"{candidate.step.engine_idle:.0%}, {candidate.step.learner_idle:.0%}"
        table.add_row(
            "\n".join(candidate.changes) or "as configured",
            f"{_relative_seconds(candidate, candidates):.2f} x",
            idle,
            "",
        )
    for candidate in [candidate for candidate in candidates if candidate.step is None][: _SHOWN // 2]:
        table.add_row("\n".join(candidate.changes) or "as configured", "", "", candidate.problems[0])
    return table


def _sizes_table(sizes: Sequence[tuple[int, StepPlan]]) -> Table:
    table = Table(
        "GPUs",
        "s a step",
        "trajectories/s",
        "of linear",
        "rollouts",
        "learners",
        "sync",
        "engine idle",
        "learners bound by",
        title_justify="left",
    )
    for column in table.columns[:-1]:
        column.justify = "right"
    first_gpus, first = sizes[0]
    for gpus, step in sizes:
        linear = step.rate / first.rate * first_gpus / gpus
        times = (step.rollout, step.learner, step.sync)
        table.add_row(
            str(gpus),
            f"{step.seconds:.1f}",
            f"{step.rate:.1f}",
            f"{linear:.0%}",
            *(f"{seconds:.1f}" for seconds in times),
            f"{step.engine_idle:.0%}",
            _format_bounds(step.bounds),
        )
    return table


def _as_json(
    setting: Setting,
    needs: GpuMemory,
    step: StepPlan | None,
    candidates: Sequence[Candidate],
    sizes: Sequence[tuple[int, StepPlan]],
    text: str,
) -> dict[str, Any]:
    return {
        "model": dataclasses.asdict(setting.shape),
        "cluster": dataclasses.asdict(setting.cluster),
        "workload": dataclasses.asdict(setting.workload),
        "efficiency": dataclasses.asdict(setting.efficiency),
        "memory": dataclasses.asdict(needs),
        "step": None if step is None else dataclasses.asdict(step),
        "nearby": [dataclasses.asdict(candidate) for candidate in candidates],
        "scaling": [{"gpus": gpus, **dataclasses.asdict(step)} for gpus, step in sizes],
        "verdict": text,
    }


def main(argv: Sequence[str] | None = None, *, program: str = "python -m jobs.plan") -> int:
    """Plans from the command line."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="What a run needs of its GPUs, and how long its steps take. It needs none itself.",
    )
    parser.add_argument("config", help="YAML file of jobs.train or jobs.sft")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="a key of the configuration, and its value; model.path may be a name",
    )
    parser.add_argument("--nodes", type=int, default=1, help="of the cluster (%(default)s)")
    parser.add_argument("--gpus", type=int, default=8, help="of a node (%(default)s)")
    parser.add_argument("--gpu", choices=sorted(GPUS), default="h200", help="their kind (%(default)s)")
    parser.add_argument(
        "--workload",
        nargs="+",
        default=[],
        metavar="key=value",
        help="what sessions are like: " + ", ".join(f.name for f in dataclasses.fields(Workload)),
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
    arguments = parser.parse_args(argv)

    def start() -> str:
        config: TrainConfig | SftConfig = load_saved(arguments.config, arguments.overrides)
        setting = Setting(
            config=config,
            shape=ModelShape.of(config.model.path),
            cluster=Cluster(gpu=GPUS[arguments.gpu], nodes=arguments.nodes, gpus_per_node=arguments.gpus),
            workload=Workload.parse(arguments.workload),
        )
        console = Console(width=140, soft_wrap=False)
        return print_plan(
            setting, nearby=not arguments.no_search, most_gpus=arguments.scale, console=console, as_json=arguments.json
        )

    return run_guarded(start)


if __name__ == "__main__":
    sys.exit(main())
