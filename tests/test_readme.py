"""The code blocks of README and docs: they run, or at least import what they name, as a reader copies them."""

import ast
import re
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from arm_rl.core.config import RewardConfig
from arm_rl.core.session import Memory
from arm_rl.core.types import ToolCall
from arm_rl.demo import dataset
from arm_rl.demo.tracks import TILES
from arm_rl.judge.judge import Judge
from rewards.outcome import Outcome
from tests.judge.test_judge import Preferring
from tools import load_tools
from tools.execution.local import LocalTools

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    (f"{page.name}, block {number}", block)
    for page in PAGES
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL), 1)
]


def block_with(text: str) -> str:
    """Return the only block that holds a text."""
    (found,) = [block for _, block in BLOCKS if text in block]
    return found


@pytest.mark.parametrize("block", [block for _, block in BLOCKS], ids=[name for name, _ in BLOCKS])
def test_every_block_compiles_and_imports_what_it_names(block):
    tree = ast.parse(block)
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), "block", "exec"), {})


def test_the_first_judgment_is_about_a_scene_of_the_demo(template, tmp_path, monkeypatch, capsys):
    @asynccontextmanager
    async def policy():
        yield Preferring(template)

    judge = Judge(policy(), template, LocalTools(load_tools(["configs/tools/digits.yaml"])))
    monkeypatch.setattr(Judge, "load", lambda folder: judge)
    dataset.write_example(tmp_path / "runs/demo/example", seed=0, track=TILES[0])
    monkeypatch.chdir(tmp_path)
    exec(block_with("Judge.load("), {})
    printed = capsys.readouterr().out
    assert re.search(r"^[12] 0\.9", printed, re.MULTILINE)
    assert printed.splitlines()[-1] in ("right", "wrong")


def test_the_reward_runs_as_it_is_copied():
    module: dict = {}
    exec(block_with("# rewards/brief.py"), module)
    outcome = Outcome(format_ok=True, correct=True, num_calls=2, num_successful_calls=2, num_fitting_calls=2)
    assert module["brief"](outcome, RewardConfig()) == {"accuracy": RewardConfig().accuracy, "calls": -0.1}


async def test_the_tool_runs_as_it_is_copied(tmp_path, monkeypatch):
    (tmp_path / "copied_word_count.py").write_text(block_with("# tools/word_count.py"))
    (tmp_path / "tools.yaml").write_text("tools:\n  - class_name: copied_word_count.WordCountTool\n")
    monkeypatch.syspath_prepend(tmp_path)
    tools = LocalTools(load_tools([str(tmp_path / "tools.yaml")]))
    try:
        call = ToolCall(name="count_words", arguments={"response": "text_0", "at_least": 2})
        result = await tools(call, Memory.from_images({}, ["two words"]))
    finally:
        tools.close()
        sys.modules.pop("copied_word_count", None)
    assert (result.status, result.text) == ("ok", "2 words, enough: True")


def test_the_model_of_vlmevalkit_is_registered():
    models: dict = {}
    exec(block_with("supported_VLM"), {"supported_VLM": models})
    assert "arm_rl" in models
