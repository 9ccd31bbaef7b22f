"""Schemas from dataclasses, and the checks of arguments."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
from pydantic import Field

from arm_rl.core.session import ToolResult
from tools.base import ArgumentError, ImageName, TextName, Tool, ToolContext, function_schema, parameters_of

CONTEXT = ToolContext(images={}, texts={"text_0": "one two", "text_1": ""}, image_names=[])


class CountWords(Tool):
    """As README shows it."""

    name = "count_words"
    description = "Counts the words of a text."

    @dataclass(frozen=True)
    class Arguments:
        """Which text."""

        response: TextName
        at_least: Annotated[int, Field(ge=0, description="Words to have.")] = 0

    def run(self, arguments: Arguments, context: ToolContext) -> ToolResult:
        """The number."""
        if arguments.at_least > 1000:
            raise ArgumentError("at_least: nobody writes that much")
        number = len(context.text(arguments.response).split())
        return ToolResult(status="ok", text=f"{number} {number >= arguments.at_least}")


def test_the_schema_follows_from_the_dataclass():
    assert CountWords.schema == {
        "type": "function",
        "function": {
            "name": "count_words",
            "description": "Counts the words of a text.",
            "parameters": {
                "type": "object",
                "properties": {
                    "response": {"type": "string", "description": "Name of a text: text_0, text_1, ..."},
                    "at_least": {"type": "integer", "minimum": 0, "default": 0, "description": "Words to have."},
                },
                "required": ["response"],
                "additionalProperties": False,
            },
        },
    }


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        ({"response": "text_0"}, "ok", "2 True"),
        ({"response": "text_0", "at_least": 3}, "ok", "2 False"),
        ({"response": "text_0", "at_least": 2.0}, "ok", "2 True"),
        ({"response": "text_1"}, "ok", "0 True"),
        ({"response": "text_2"}, "bad_arguments", "Error: there is no text 'text_2'; known: text_0, text_1"),
        ({}, "bad_arguments", "Error: 'response' is a required property"),
        ({"response": 0}, "bad_arguments", "Error: response: 0 is not of type 'string'"),
        ({"response": "text_0", "at_least": -1}, "bad_arguments", "Error: at_least: -1 is less than the minimum of 0"),
        ({"response": "text_0", "at_least": "2"}, "bad_arguments", "Error: at_least: '2' is not of type 'integer'"),
        ({"response": "text_0", "at_least": True}, "bad_arguments", "Error: at_least: True is not of type 'integer'"),
        ({"response": "text_0", "at_least": 2.5}, "bad_arguments", "Error: at_least: 2.5 is not of type 'integer'"),
        (
            {"response": "text_0", "at_most": 1},
            "bad_arguments",
            "Error: Additional properties are not allowed ('at_most' was unexpected)",
        ),
        ({"response": "text_0", "at_least": 1001}, "bad_arguments", "Error: at_least: nobody writes that much"),
    ],
)
def test_arguments_are_checked_before_the_tool_sees_them(arguments, status, text):
    result = CountWords().call(arguments, CONTEXT)
    assert (result.status, result.text) == (status, text)


@dataclass(frozen=True)
class Point:
    """A place."""

    x: float
    y: float


@dataclass(frozen=True)
class Many:
    """Arguments of many kinds."""

    image: ImageName
    kind: Literal["a", "b"]
    pairs: list[tuple[int, int]]
    points: list[Point] = field(default_factory=list)
    note: str | None = None


def test_a_schema_of_many_kinds():
    schema = parameters_of(Many)
    assert schema["required"] == ["image", "kind", "pairs"]
    assert schema["properties"]["kind"] == {"enum": ["a", "b"], "type": "string"}
    assert "title" not in str(schema)

    class ManyTool(Tool):
        name = "many"
        description = "Many."
        Arguments = Many

        def run(self, arguments, context):
            return ToolResult(status="ok", text=repr(arguments))

    def said(**arguments):
        return ManyTool().call({"image": "i", "kind": "a", "pairs": [[1, 2]], **arguments}, CONTEXT).text

    assert said(points=[{"x": 1, "y": 2.5}]).endswith("pairs=[(1, 2)], points=[Point(x=1.0, y=2.5)], note=None)")
    assert said(kind="c") == "Error: kind: 'c' is not one of ['a', 'b']"
    assert said(pairs=[[1, 2], [3]]).startswith("Error: pairs[1]: [3] is too short")
    assert said(points=[{"x": 1}]) == "Error: points[0]: 'y' is a required property"


def test_a_tool_without_a_dataclass_gets_what_was_written():
    class Loose(Tool):
        name = "loose"
        schema = function_schema(name, "Anything.", {"type": "object", "properties": {"a": {"type": "integer"}}})

        def run(self, arguments, context):
            return ToolResult(status="ok", text=str(arguments))

    assert Loose().call({"a": 1, "b": [None]}, CONTEXT).text == "{'a': 1, 'b': [None]}"
    assert Loose().call({"a": "1"}, CONTEXT).text == "Error: a: '1' is not of type 'integer'"


def test_a_tool_that_raises_has_failed(caplog):
    class Falling(CountWords):
        def run(self, arguments, context):
            raise OSError("down")

    result = Falling().call({"response": "text_0"}, CONTEXT)
    assert (result.status, result.text) == ("failed", "Error: count_words failed: OSError")
    assert "OSError: down" in caplog.text, "the traceback is ours"


def test_arguments_must_be_a_dataclass():
    with pytest.raises(TypeError, match="Arguments must be a dataclass"):

        class Wrong(Tool):
            name = description = "wrong"

            class Arguments:
                a: int


def test_a_schema_that_cannot_travel_is_refused_at_once():
    with pytest.raises(TypeError):
        function_schema("x", "", {"a": {"default": {1, 2}}})
