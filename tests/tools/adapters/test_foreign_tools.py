"""Tool files in the reference's style, and MCP entries: loaded, and run where executors run them."""

from pathlib import Path

import pytest

from arm_rl.core.types import ToolCall
from tools import ToolFileError, load_tools
from tools.base import ToolContext
from tools.execution.runner import ToolRunner

ROOT = Path(__file__).parents[3]

REFERENCE_STYLE = """
tools:
  - class_name: "tests.support.verl_style_tools.OldTool"
    config:
      type: native
      mark: "?"
    tool_schema:
      type: "function"
      function:
        name: "take_note"
        description: >
          Takes a note.
        parameters:
          type: "object"
          properties:
            note: {type: "string", description: "What to note."}
          required: ["note"]
  - class_name: "tests.support.verl_style_tools.NewTool"
    config: {type: native}
"""

MCP = f"""
tools:
  - mcp: {{command: [python, -m, tests.support.mcp_echo_server], cwd: "{ROOT}"}}
    tools: [add, slow]
    execution: {{timeout_seconds: 50}}
"""


def load(tmp_path, text):
    (tmp_path / "tools.yaml").write_text(text)
    return load_tools([str(tmp_path / "tools.yaml")])


def of(session):
    return ToolContext(session=session, images={}, texts={}, image_names=[])


async def test_a_file_in_the_references_style(tmp_path):
    tools = load(tmp_path, REFERENCE_STYLE)
    assert list(tools) == ["take_note", "look"]
    runner = ToolRunner(tools, concurrency=4, timeout_seconds=60)
    try:
        for number, session in enumerate(["a", "b", "a"]):
            result = await runner.call(ToolCall(name="take_note", arguments={"note": str(number)}), of(session))
            assert result.status == "ok", result
        assert result.text.endswith("| 0 | 2")
        await runner.release("a")
        result = await runner.call(ToolCall(name="take_note", arguments={"note": "new"}), of("a"))
        assert result.text.endswith("['create_kwargs'] | new")
        assert (await runner.call(ToolCall(name="look", arguments={"what": "miss"}), of("a"))).status == "failed"
        assert (await runner.call(ToolCall(name="look", arguments={"what": "nonsense"}), of("a"))).status == "failed"
        assert (await runner.call(ToolCall(name="look", arguments={"what": "lie"}), of("a"))).status == "ok"
    finally:
        runner.close()


async def test_a_file_with_an_mcp_server(tmp_path):
    tools = load(tmp_path, MCP)
    runner = ToolRunner(tools, concurrency=4, timeout_seconds=60)
    try:
        assert (await runner.call(ToolCall(name="add", arguments={"a": 1, "b": 2}), of("a"))).text == "3"
        assert tools["slow"].execution.timeout_seconds == 50
    finally:
        runner.close()


def test_broken_entries_are_named(tmp_path):
    with pytest.raises(ToolFileError, match=r"tools\[0\]: unknown key 'config'; known: mcp, tools, execution"):
        load(tmp_path, "tools: [{mcp: {url: 'http://x'}, config: {}}]")
    with pytest.raises(ToolFileError, match=r"tools\[0\].config: tool_schema: it is needed, since NeedsSchemaTool"):
        load(tmp_path, "tools: [{class_name: tests.support.verl_style_tools.NeedsSchemaTool}]")
    with pytest.raises(
        ToolFileError, match=r"tools\[0\].class_name: .*HalfTool' is neither a tools.base.Tool nor a class with verl's"
    ):
        load(tmp_path, "tools: [{class_name: tests.support.verl_style_tools.HalfTool}]")
