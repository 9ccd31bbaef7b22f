"""The planner's answer: tables, or JSON, and a verdict of a few lines."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import Progress

from arm_rl.core.stage_config import TrainConfig
from arm_rl.plan.advice import advise, most_prompt_tokens
from arm_rl.plan.duration import Duration, duration_of
from arm_rl.plan.fit import GpuMemory, memory_of
from arm_rl.plan.modelled import Setting
from arm_rl.plan.overheads import Overheads, overheads_of
from arm_rl.plan.search import Candidate, search
from arm_rl.plan.steps import StepPlan, scaling, step_of, stops_at
from arm_rl.plan.tables import (
    candidates_table,
    memory_table,
    overheads_table,
    relative_seconds,
    sizes_table,
    step_table,
)

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
