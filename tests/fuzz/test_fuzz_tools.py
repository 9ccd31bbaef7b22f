"""A tool that is given anything answers, and calls it a mistake of the arguments: nothing that a policy writes makes a tool fail."""

import asyncio

import pytest
from hypothesis import given, strategies

from arm_rl.core.images import Image
from arm_rl.core.types import ToolCall
from tests.fuzz.writing import GOOD_ZOOMS, JSON, NAMES, NUMBERS, TEXTS, ZOOMS
from tests.support.scripted import noise
from tests.tools.test_base import CountWords
from tools import load_tools
from tools.base import Execution, ToolContext
from tools.documents.retrieval import DocumentByIndexTool, DocumentByQueryTool
from tools.execution.runner import ToolRunner
from tools.image_zoom import ImageZoomTool
from tools.text.checks import CHECKS, CheckTool

PICTURE = Image.from_pil(noise(64, 64))
CONTEXT = ToolContext(
    session="s",
    images={"original_image": PICTURE},
    texts={"text_0": "One two. Three 4!\n\n* five", "text_1": "", "text_2": "<tool_call>"},
    image_names=["original_image"],
)


def arguments_of(tool):
    """Objects with some of the tool's arguments, their values near what its schema wants or anything."""

    def near(schema):
        kinds = {
            "string": NAMES | TEXTS,
            "integer": strategies.integers(-3, 30) | NUMBERS,
            "number": NUMBERS,
            "boolean": strategies.booleans(),
            "array": strategies.lists(NAMES | NUMBERS, max_size=5),
        }
        wanted = kinds.get(schema.get("type"), JSON)
        if "enum" in schema:
            wanted = strategies.sampled_from(schema["enum"])
        return strategies.one_of(wanted, wanted, JSON)

    properties = {name: near(schema) for name, schema in tool.schema["function"]["parameters"]["properties"].items()}
    required = set(tool.schema["function"]["parameters"].get("required", ()))
    whole = strategies.fixed_dictionaries(
        {name: values for name, values in properties.items() if name in required},
        optional={name: values for name, values in properties.items() if name not in required},
    )
    return (
        whole
        | strategies.fixed_dictionaries({}, optional={**properties, "more": JSON})
        | strategies.dictionaries(NAMES, JSON, max_size=3)
    )


CHECKERS = {name: CheckTool(name) for name in CHECKS}


@given(
    strategies.sampled_from(sorted(CHECKERS)).flatmap(
        lambda name: strategies.tuples(strategies.just(name), arguments_of(CHECKERS[name]))
    )
)
def test_a_text_check_answers(drawn):
    name, arguments = drawn
    result = CHECKERS[name].call(arguments, CONTEXT)
    assert result.status in ("ok", "bad_arguments"), result.text
    assert result.images == ()


@given(GOOD_ZOOMS | ZOOMS | JSON)
def test_the_zoom_answers(arguments):
    result = ImageZoomTool().call(arguments, CONTEXT)
    assert result.status in ("ok", "bad_arguments"), result.text
    assert (result.status == "ok") == (len(result.images) == 1)


@pytest.fixture(scope="module")
def document_tools(documents_index):
    return [tool(index=str(documents_index)) for tool in (DocumentByIndexTool, DocumentByQueryTool)]


@given(number=strategies.integers(0, 1), draw=strategies.data())
def test_the_document_tools_answer(document_tools, number, draw):
    tool = document_tools[number]
    arguments = draw.draw(arguments_of(tool))
    if draw.draw(strategies.booleans()):
        arguments["filename"] = "report"
    result = tool.call(arguments, CONTEXT)
    assert result.status in ("ok", "bad_arguments"), result.text


@given(arguments_of(CountWords()))
def test_an_inline_tool_in_its_runner_answers(arguments):
    tool = CountWords()
    tool.execution = Execution(isolation="inline")
    runner = ToolRunner({tool.name: tool}, concurrency=1, timeout_seconds=1)
    result = asyncio.run(runner.call(ToolCall(name=tool.name, arguments=arguments), CONTEXT))
    assert result.status in ("ok", "bad_arguments"), result.text


def test_all_checks_are_tried():
    assert len(CHECKERS) == len(CHECKS) > 5
    assert set(load_tools(["configs/tools/text_checks.yaml"])) <= set(CHECKERS)
