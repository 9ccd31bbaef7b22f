"""The base model of a demo as a Hugging Face folder: built, pre-trained, and written."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from arm_rl.core.config import ModelConfig, TemplateConfig
from arm_rl.core.template import Template
from arm_rl.demo import model, pretrain
from arm_rl.demo.pretrain import PretrainPlan
from arm_rl.demo.tasks import Track

LINE_EVERY = 100  # steps between lines where the output is no terminal


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
) -> None:
    """Writes the pre-trained base model to `folder`.

    Args:
        template: the system prompt and tool format that it learns.
        schemas: of the tools that are offered, by name.
        tracks: what it learns to judge.
        share: of the steps of pre-training; less than 1 shows that it runs, and learns little.
        start: a base model of such tracks that is trained further; by default fresh weights.
        on_progress: gets the share of all steps that are done (0..1).
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
                task, description=f"pre-training: {phase}", completed=done, total=total, loss=f"loss {loss:.3f}"
            )
            if not progress.console.is_terminal and done % LINE_EVERY == 0:
                progress.console.print(f"pre-training: {phase} {done}/{total}  loss {loss:.3f}", highlight=False)

        pretrain.train(judge, written, plan=_scale_plan(plan, share), seed=seed, on_step=show, tracks=tracks)
    judge.save_pretrained(folder)


def _scale_plan(plan: PretrainPlan, share: float) -> PretrainPlan:
    phases = {name: getattr(plan, name) for name in ("warm_up", "matching", "joint")}
    return dataclasses.replace(
        plan,
        **{
            name: dataclasses.replace(phase, steps=max(1, round(phase.steps * share))) for name, phase in phases.items()
        },
    )
