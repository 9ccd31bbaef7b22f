"""Base model of a demo as a Hugging Face folder: built, trained, and written with what it can do."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from arm_rl.core.atomic_file import replace_text
from arm_rl.core.config import ModelConfig, TemplateConfig
from arm_rl.core.template import Template
from arm_rl.demo import model, pretrain
from arm_rl.demo.pretrain import PretrainPlan, PretrainResult
from arm_rl.demo.tasks import Track

LINE_EVERY = 100  # steps between lines where the output is no terminal
SKILLS_FILE = "skills.json"  # in the model's folder: its skills with their marks, and the steps of each phase


def make_base(
    folder: Path,
    template: TemplateConfig,
    schemas: Mapping[str, dict[str, Any]],
    *,
    tracks: Sequence[Track],
    plan: PretrainPlan,
    seed: int,
    share: float = 1.0,
    start: Path | None = None,
    on_progress: Callable[[float], None] = lambda share: None,
) -> PretrainResult:
    """Train the base model and write it to a folder, with `skills.json`.

    Args:
        folder: Folder of the model.
        template: System prompt and tool format that the model learns.
        schemas: Schemas of the tools that are offered, by name.
        tracks: What the model learns to judge.
        plan: Settings of the training.
        seed: Seed of weights, tasks and lessons.
        share: Share of the steps; less than 1 shows that training runs, and teaches little.
        start: Base model of such tracks that is trained further; by default fresh weights.
        on_progress: Called with the share of the steps that are done (0..1).

    Returns:
        How training ended.
    """
    if start is None:
        model.build(folder, seed, tracks, list(schemas))
    else:
        shutil.copytree(start, folder, dirs_exist_ok=True)
    written = Template.load(ModelConfig(path=str(folder), dtype="float32"), template, schemas)
    judge, _ = model.load(folder)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[loss]}")
    ) as progress:
        task = progress.add_task("pre-training", loss="")

        def show(phase: str, done: int, total: int, loss: float) -> None:
            on_progress(done / total)
            progress.update(
                task,
                description=f"pre-training: {phase}",
                completed=done,
                total=total,
                loss=f"loss {loss:.3f}",
            )
            if not progress.console.is_terminal and done % LINE_EVERY == 0:
                progress.console.print(f"pre-training: {phase} {done}/{total}  loss {loss:.3f}", highlight=False)

        result = pretrain.train(judge, written, plan=_scale_plan(plan, share), seed=seed, on_step=show, tracks=tracks)
    judge.save_pretrained(folder)
    replace_text(folder / SKILLS_FILE, json.dumps(result.entries(), indent=2))
    return result


def read_skills(folder: Path) -> dict[str, Any]:
    """Return the skills and phases that were written with a base model; empty if none were."""
    file = folder / SKILLS_FILE
    return json.loads(file.read_text()) if file.is_file() else {}


def _scale_plan(plan: PretrainPlan, share: float) -> PretrainPlan:
    """Return a plan with a share of the steps of each phase."""
    phases = {name: getattr(plan, name) for name in ("warm_up", "matching", "joint")}
    scaled = {
        name: dataclasses.replace(
            phase, steps=max(1, round(phase.steps * share)), cooldown=round(phase.cooldown * share)
        )
        for name, phase in phases.items()
    }
    return dataclasses.replace(plan, **scaled)
