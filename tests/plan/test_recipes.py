"""The shipped recipes: each loads, fits its machine with a margin, and is in the table of docs/recipes.md as the plan has it."""

from dataclasses import replace
from pathlib import Path

import pytest

from arm_rl.plan import recipes
from arm_rl.plan.fit import cache_tokens, memory_of
from arm_rl.plan.recipes import BEGIN, END, RECIPES, RecipeError, two_digits, write_table

PAGE = Path("docs/recipes.md")
NAMES = [f"{Path(one.config).stem}-{one.gpu}" for one in RECIPES]


def test_every_recipe_is_planned():
    files = {str(path) for path in Path("configs/recipes").glob("*.yaml")}
    assert files <= {one.config for one in RECIPES}
    assert {str(path) for path in Path("configs").glob("arm_thinker_*.yaml")} <= {one.config for one in RECIPES}


@pytest.mark.parametrize("recipe", RECIPES, ids=NAMES)
def test_a_recipe_fits_with_a_margin(recipe):
    setting = recipe.setting()
    found = memory_of(setting)
    assert found.problems == ()
    assert found.margin > 0.05
    if found.engine:
        assert cache_tokens(setting, found.engine) > 2 * setting.train.rollout.max_model_len


def test_a_recipe_of_a_smaller_card_is_refused():
    setting = RECIPES[2].setting()
    assert setting.cluster.gpu.memory_gib < 24
    small = replace(setting, cluster=replace(setting.cluster, gpu=replace(setting.cluster.gpu, memory_gib=12.0)))
    assert memory_of(small).problems


@pytest.mark.slow
def test_the_table_is_what_the_plan_says():
    """Where it is not: python -m jobs.plan --recipes docs/recipes.md."""
    table = PAGE.read_text().split(BEGIN)[1].split(END)[0].strip().splitlines()
    assert table == recipes.table_lines(map(recipes.plan, RECIPES))


def test_the_table_has_a_row_for_each_recipe_with_its_memory():
    rows = PAGE.read_text().split(BEGIN)[1].split(END)[0].strip().splitlines()[2:]
    assert len(rows) == len(RECIPES)
    for row, recipe in zip(rows, RECIPES, strict=True):
        assert f"| `{recipe.config}` |" in row
        assert f"| {memory_of(recipe.setting()).margin:.0%} |" in row
    assert "planned, not run on a GPU" in PAGE.read_text()


def test_a_page_is_written_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_table(page, ["new", "lines"])
    assert page.read_text() == f"before\n{BEGIN}\nnew\nlines\n{END}\nafter\n"
    page.write_text("nothing")
    with pytest.raises(RecipeError, match="the marks .* are missing"):
        write_table(page, [])
    with pytest.raises(RecipeError, match="No such file"):
        write_table(tmp_path / "none.md", [])


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123, "0.012"), (3.14, "3.1"), (97.6, "98"), (378.2, "380"), (9.96, "10")]
)
def test_numbers_have_two_digits(value, text):
    assert two_digits(value) == text
