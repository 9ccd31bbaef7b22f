"""The shipped recipes: a configuration for each machine that people have, and what the plan says of it.

`python -m jobs.plan --recipes docs/recipes.md` writes the table of that page again; a test compares the two.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from arm_rl.core.config_file import load_saved
from arm_rl.core.errors import UserError
from arm_rl.plan.fit import GpuMemory, memory_of
from arm_rl.plan.hardware import GIB, GPUS, Cluster
from arm_rl.plan.modelled import Setting
from arm_rl.plan.overheads import Overheads, overheads_of
from arm_rl.plan.shapes import ModelShape
from arm_rl.plan.steps import StepPlan, fraction_of, step_of
from arm_rl.plan.workload import Workload

BEGIN, END = "<!-- planned: begin -->", "<!-- planned: end -->"
_BASE_7B = "Qwen/Qwen2.5-VL-7B-Instruct"


class RecipeError(UserError):
    """A page that has no place for the table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A shipped configuration, and the machine that it is for."""

    config: str  # path of the YAML file
    gpu: str  # key of GPUS
    nodes: int = 1
    gpus: int = 1  # of a node
    model: str | None = None  # where the configuration starts from an earlier stage: the model of all stages

    def setting(self) -> Setting:
        """Return what the recipe is planned with: the plan's usual sessions."""
        config = load_saved(self.config, [f"model.path={self.model}"] if self.model else [])
        return Setting(
            config=config,
            shape=ModelShape.of(config.model.path),
            cluster=Cluster(gpu=GPUS[self.gpu], nodes=self.nodes, gpus_per_node=self.gpus),
            workload=Workload(),
        )


RECIPES = (
    Recipe(config="configs/recipes/quickstart_sft.yaml", gpu="l4"),
    Recipe(config="configs/recipes/qwen3_vl_2b_lora_1x24gb.yaml", gpu="rtx4090"),
    Recipe(config="configs/recipes/qwen3_vl_2b_lora_1x24gb.yaml", gpu="l4"),
    Recipe(config="configs/recipes/qwen2_5_vl_3b_lora_1x24gb.yaml", gpu="rtx4090"),
    Recipe(config="configs/recipes/qwen2_5_vl_3b_full_1x80gb.yaml", gpu="a100-80g"),
    Recipe(config="configs/recipes/qwen2_5_vl_3b_full_1x80gb.yaml", gpu="h100"),
    Recipe(config="configs/recipes/qwen2_5_vl_7b_lora_1x80gb.yaml", gpu="a100-80g"),
    Recipe(config="configs/recipes/qwen2_5_vl_7b_lora_1x80gb.yaml", gpu="h100"),
    Recipe(config="configs/recipes/qwen2_5_vl_7b_full_8x80gb.yaml", gpu="a100-80g", gpus=8),
    Recipe(config="configs/recipes/qwen2_5_vl_7b_full_8x80gb.yaml", gpu="h100", gpus=8),
    Recipe(config="configs/arm_thinker_sft.yaml", gpu="h100", nodes=2, gpus=8),
    Recipe(config="configs/arm_thinker_stage1.yaml", gpu="h200", nodes=2, gpus=8, model=_BASE_7B),
    Recipe(config="configs/arm_thinker_stage2.yaml", gpu="h200", nodes=2, gpus=8, model=_BASE_7B),
    Recipe(config="configs/arm_thinker_stage2_async.yaml", gpu="h200", nodes=2, gpus=8, model=_BASE_7B),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRecipe:
    """What the plan says of a recipe."""

    recipe: Recipe
    memory: GpuMemory
    step: StepPlan
    overheads: Overheads


def plan(recipe: Recipe) -> PlannedRecipe:
    """Plan a recipe."""
    setting = recipe.setting()
    config = setting.config
    return PlannedRecipe(
        recipe=recipe,
        memory=memory_of(setting),
        step=step_of(setting, fraction=fraction_of(config)),
        overheads=overheads_of(config, setting.shape, setting.cluster, setting.efficiency, element=setting.element),
    )


def table_lines(planned: Iterable[PlannedRecipe]) -> list[str]:
    """Return the table of the recipes in Markdown. Seconds have two digits: machines differ in the others."""
    lines = [
        "| configuration | GPUs | memory of a GPU, GiB | free | trajectories a step | a step, s | sync, s | checkpoint, s "
        "| engine restart, s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in planned:
        recipe, found = one.recipe, one.memory
        events = (one.overheads.sync, one.overheads.checkpoint, one.overheads.engine_restart)
        cells = (
            f"`{recipe.config}`",
            f"{recipe.nodes} x {recipe.gpus} {recipe.gpu}" if recipe.nodes > 1 else f"{recipe.gpus} {recipe.gpu}",
            f"{found.peak / GIB:.1f} of {found.limit / GIB:.1f}",
            f"{found.margin:.0%}",
            str(one.step.trajectories),
            two_digits(one.step.seconds),
            *(two_digits(seconds) if seconds else "–" for seconds in events),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def two_digits(value: float) -> str:
    """Return a number with two significant digits, without an exponent."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:.0f}" if rounded >= 10 else f"{rounded:g}"


def write_table(page: Path, lines: Sequence[str]) -> None:
    """Write the table into a page, between its two marks.

    Raises:
        RecipeError: If the page cannot be read, or has no such marks.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{page}: {error.strerror or error}") from error
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise RecipeError(f"{page}: the marks {BEGIN} and {END} are missing")
    page.write_text("\n".join([f"{before}{begin}", *lines, f"{end}{after}"]), encoding="utf-8")
