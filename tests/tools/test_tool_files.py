"""Tool files: what they offer, and what is refused with file and entry."""

import copy
import shutil
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.support.odd_tools import CountTool
from tools import TOOLS, ToolFileError, load_tools
from tools.base import Execution, ToolContext, function_schema
from tools.image_zoom import ImageZoomTool

ROOT = Path(__file__).parents[2]
ZOOM = {"class_name": "image_zoom_in_tool"}
COUNT = {"class_name": "tests.support.odd_tools.CountTool"}
NOTHING = ToolContext(images={}, texts={}, image_names=[])


def schema_of(name, **properties):
    """A function's schema; all of its arguments are texts, and needed."""
    described = {argument: {"type": kind} for argument, kind in properties.items()}
    return function_schema(name, "Counts.", {"type": "object", "properties": described, "required": list(described)})


@pytest.fixture
def offer(tmp_path):
    """Loads a file with these entries."""

    def offer(*entries, name="tools.yaml"):
        (tmp_path / name).write_text(yaml.safe_dump({"tools": list(entries)}))
        return load_tools([str(tmp_path / name)])

    return offer


@pytest.mark.parametrize("path", sorted((ROOT / "configs/tools").glob("*.yaml")), ids=lambda path: path.name)
@pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap")
def test_every_shipped_file_loads(path, shipped_place):
    tools = load_tools([str(path)])
    assert tools
    for name, tool in tools.items():
        assert tool.schema["function"]["name"] == tool.name == name
        assert tool.schema["function"]["description"]
        jsonschema.Draft202012Validator.check_schema(tool.schema["function"]["parameters"])


@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_is_listed_under_its_own_name(name, monkeypatch):
    monkeypatch.setenv("SERPER_API_KEY", "a key")
    tool = TOOLS[name]
    made = tool if isinstance(tool, type) else tool()
    assert made.name == name == made.schema["function"]["name"]


def test_the_zoom_of_the_paper():
    (zoom,) = load_tools([str(ROOT / "configs/tools/image_zoom.yaml")]).values()
    assert isinstance(zoom, ImageZoomTool)
    assert (zoom.min_side, zoom.max_aspect, zoom.enlarge_below) == (28, 100, 224)


def test_the_configuration_reaches_the_tool(offer):
    assert offer({**ZOOM, "config": {"min_side": 5}})["image_zoom_in_tool"].min_side == 5
    assert offer(ZOOM)["image_zoom_in_tool"].min_side == 28
    assert offer({**ZOOM, "config": None})["image_zoom_in_tool"].min_side == 28


def test_a_class_may_be_given_by_its_path(offer):
    tools = offer(ZOOM, COUNT)
    assert list(tools) == ["image_zoom_in_tool", "count"]
    assert isinstance(tools["count"], CountTool)


def test_a_schema_of_its_own_renames_one_instance(offer):
    schema = schema_of("tally", word="string")
    tools = offer({**COUNT, "tool_schema": schema}, COUNT)
    assert list(tools) == ["tally", "count"]
    assert tools["tally"].schema == schema
    assert CountTool.name == "count", "the class stays as it was"
    assert tools["tally"].call({}, NOTHING).text == "Error: 'word' is a required property"


def test_several_files_are_one_list(tmp_path):
    for name, entry in (("a.yaml", ZOOM), ("b.yaml", COUNT)):
        (tmp_path / name).write_text(yaml.safe_dump({"tools": [entry]}))
    assert list(load_tools([str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")])) == ["image_zoom_in_tool", "count"]
    with pytest.raises(ToolFileError, match=r"a.yaml: tools\[0\]: 'image_zoom_in_tool' is listed twice"):
        load_tools([str(tmp_path / "a.yaml"), str(tmp_path / "a.yaml")])
    assert load_tools([]) == {}


SCHEMA = schema_of("tally")


def broken_schema(*path, value):
    schema = copy.deepcopy(SCHEMA)
    inner = schema
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return {**COUNT, "tool_schema": schema}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({**ZOOM, "clas_name": "x"}, "unknown key 'clas_name'; known: class_name, config, tool_schema, execution"),
        ({}, "class_name: '' is neither one of"),
        (
            {"class_name": "telescope"},
            r"class_name: 'telescope' is neither one of \[.*'image_zoom_in_tool'.*\] nor a class that imports",
        ),
        ({"class_name": "no.such.module.Tool"}, "class_name: 'no.such.module.Tool' is neither"),
        ({"class_name": "tools.base.NoSuchTool"}, "class_name: 'tools.base.NoSuchTool' is neither"),
        (
            {"class_name": "tools.base.ArgumentError"},
            "class_name: 'tools.base.ArgumentError' is neither a tools.base.Tool nor a class with verl's methods",
        ),
        ({"class_name": "tools.base.function_schema"}, "is neither a tools.base.Tool"),
        ({"class_name": "tools.base.Tool"}, "config: .*abstract"),
        ({"class_name": 3}, "class_name: '3' is neither"),
        ({**ZOOM, "config": {"zoom": 3}}, "config: .*unexpected keyword argument 'zoom'"),
        ({**ZOOM, "config": [1]}, "config: .*must be a mapping"),
        (
            {**COUNT, "tool_schema": {"function": {"name": "x"}}},
            "tool_schema: needs function.name and function.parameters.properties",
        ),
        ({**COUNT, "tool_schema": 3}, "tool_schema: needs function.name"),
        (
            broken_schema("function", "parameters", "properties", value={"word": {"type": "word"}}),
            "tool_schema: 'word' is not valid",
        ),
        (broken_schema("function", "name", value=3), "tool_schema: function.name is 3"),
        ({**COUNT, "execution": {"isolation": "cage"}}, "execution.isolation: one of .*not 'cage'"),
        ({**COUNT, "execution": {"concurrency": 0}}, "execution.concurrency: at least 1, not 0"),
        ({**COUNT, "execution": {"timeout_seconds": -1}}, "execution.timeout_seconds: at least 0.001, not -1"),
        ({**COUNT, "execution": {"timeout_seconds": "long"}}, "execution.timeout_seconds: a number, not 'long'"),
        ({**COUNT, "execution": {"timeout": 1}}, "execution: fields of isolation, concurrency"),
        ({**COUNT, "execution": 3}, "execution: fields of isolation, concurrency"),
    ],
)
def test_a_broken_entry_is_named(offer, entry, message):
    with pytest.raises(ToolFileError, match=rf"tools.yaml: tools\[1\].*{message}"):
        offer({**COUNT, "tool_schema": schema_of("first")}, entry)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tools: [\n", "broken.yaml: not a YAML file"),
        ("", "broken.yaml: a list of entries under the key 'tools' is needed"),
        ("tools: 3", "a list of entries"),
        ("tools: {a: 1}", "a list of entries"),
        ("tools: [image_zoom_in_tool]", "a list of entries"),
        ("- class_name: image_zoom_in_tool", "a list of entries"),
        ("tool: []", "a list of entries"),
    ],
)
def test_a_broken_file_is_named(tmp_path, text, message):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ToolFileError, match=message):
        load_tools([str(path)])


def test_a_file_that_is_not_there():
    with pytest.raises(ToolFileError, match=r"nowhere.yaml: No such file"):
        load_tools(["nowhere.yaml"])


def test_execution_is_changed_field_by_field(offer):
    tools = offer({**COUNT, "execution": {"isolation": "process", "concurrency": 3}}, ZOOM)
    assert tools["count"].execution == Execution(isolation="process", concurrency=3)
    assert CountTool.execution == Execution(isolation="thread"), "the class stays as it was"


def test_a_tool_that_cannot_run_here_says_what_is_missing(offer):
    with pytest.raises(
        ToolFileError,
        match=r"tools.yaml: tools\[0\].config: the program `telescope` is missing; install it: apt-get install",
    ):
        offer({"class_name": "tests.support.odd_tools.AbsentTool"})
