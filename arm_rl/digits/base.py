"""The base model of the demo as a Hugging Face folder: built, pre-trained, and written."""

import dataclasses
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from arm_rl.core.config import ModelConfig, TemplateConfig
from arm_rl.core.template import Template
from arm_rl.digits import model, pretrain
from tools.image_zoom import ImageZoomTool

LINE_EVERY = 100  # steps between lines where the output is no terminal


def make_base(folder: Path, template: TemplateConfig, *, seed: int, share: float = 1.0) -> None:
    """Writes the pre-trained base model to `folder`.

    Args:
        template: the system prompt and tool format that it learns.
        share: of the steps of pre-training; less than 1 shows that it runs, and learns little.
    """
    model.build(folder, seed)
    written = Template.load(ModelConfig(path=str(folder), dtype="float32"), template, {ImageZoomTool.name: ImageZoomTool.schema})
    judge, _ = model.load(folder)
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[loss]}")) as progress:
        task = progress.add_task("pre-training", loss="")

        def show(phase: str, done: int, total: int, loss: float) -> None:
            progress.update(task, description=f"pre-training: {phase}", completed=done, total=total, loss=f"loss {loss:.3f}")
            if not progress.console.is_terminal and done % LINE_EVERY == 0:
                progress.console.print(f"pre-training: {phase} {done}/{total}  loss {loss:.3f}", highlight=False)

        pretrain.train(judge, written, plan=_scaled(pretrain.Plan(), share), seed=seed, on_step=show)
    judge.save_pretrained(folder)


def _scaled(plan: pretrain.Plan, share: float) -> pretrain.Plan:
    phases = {name: getattr(plan, name) for name in ("warm_up", "matching", "joint")}
    return dataclasses.replace(
        plan, **{name: dataclasses.replace(phase, steps=max(1, round(phase.steps * share))) for name, phase in phases.items()}
    )
