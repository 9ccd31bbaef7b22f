"""Classes with verl's interface: used as they are, for a session's time, and with no say in rewards."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image as PILImage

from arm_rl.core.errors import UserError
from arm_rl.core.images import Image
from tests.support.verl_style_tools import (
    BeginsWithTool,
    HalfTool,
    NeedsSchemaTool,
    NewTool,
    NoNumberTool,
    OldTool,
    StoreTool,
    WordCountTool,
)
from tools.adapters.verl import as_object, is_verl_class, verl_tool
from tools.base import ToolContext, function_schema
from tools.image_zoom import ImageZoomTool

NOTE = function_schema(
    "take_note",
    "Takes a note.",
    {"type": "object", "properties": {"note": {"type": "string", "minLength": 1}}, "required": ["note"]},
)
PICTURE = Image.from_pil(PILImage.new("RGB", (40, 20), "red"))


def context(session="s1", **images):
    return ToolContext(
        session=session, images=images, texts={"text_0": "first", "text_1": "second"}, image_names=list(images)
    )


def note(tool, text, session="s1"):
    return tool.call({"note": text}, context(session))


@pytest.fixture
def old():
    return verl_tool(OldTool, {"type": "native", "mark": "!"}, NOTE)


@pytest.fixture
def new():
    return verl_tool(NewTool, {}, None)


def test_which_classes_are_verls():
    assert is_verl_class(OldTool)
    assert is_verl_class(NewTool)
    assert not is_verl_class(HalfTool)
    assert not is_verl_class(ImageZoomTool)
    assert not is_verl_class(NOTE)
    assert not is_verl_class(NewTool({}, None)), "an instance is no class"


def test_the_older_form(old):
    result = note(old, "one")
    assert result.status == "ok"
    assert result.text == "take_note! created with ['text_0', 'text_1'] ['create_kwargs'] | one"


def test_an_instance_lives_as_long_as_its_session(old):
    note(old, "one")
    note(old, "other", session="s2")
    assert note(old, "two").text.endswith("| one | two")
    old.release("s1")
    assert note(old, "three").text.endswith("['create_kwargs'] | three")
    assert note(old, "more", session="s2").text.endswith("| other | more"), "others stay"
    old.release("s1")
    old.release("s1")
    old.release("nobody")


def test_arguments_are_checked_against_the_schema(old):
    assert note(old, "").status == "bad_arguments"
    assert old.call({}, context()).text == "Error: 'note' is a required property"


def test_the_newer_form(new):
    result = new.call({"what": "half"}, context(original_image=PICTURE))
    assert (result.status, result.text) == ("ok", "the left half")
    assert [image.size for image in result.images] == [(20, 20)]
    assert result.images[0].pil().getpixel((0, 0)) == (255, 0, 0)


def test_the_class_gives_its_own_schema(new):
    assert new.name == "look"
    assert new.schema["function"]["parameters"]["required"] == ["what"]
    assert new.description == "Looks."
    assert new.call({}, context()).status == "bad_arguments"


def test_the_files_schema_goes_before_its_own():
    tool = verl_tool(NewTool, {}, NOTE)
    assert tool.name == "take_note"


@pytest.mark.parametrize(
    ("what", "status", "text", "images"),
    [
        ("lie", "ok", "Error: success! True", 0),  # neither text nor reward decides
        ("miss", "failed", "all is well", 0),
        ("film", "ok", "a film\n[a video was left out: videos are not shown]", 0),
        ("dict", "ok", "a dictionary", 1),
        ("nothing", "ok", "", 0),
    ],
)
def test_what_it_returns(new, what, status, text, images):
    result = new.call({"what": what}, context())
    assert (result.status, result.text, len(result.images)) == (status, text, images)


def test_what_it_raises_is_a_failed_call(new):
    assert new.call({"what": "nonsense"}, context()).status == "failed"
    assert new.call({"what": "sessions"}, context()).text == "1", "its instance stays"


def test_sessions_at_the_same_time_have_one_instance_each(new):
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: new.call({"what": "nothing"}, context(session=f"s{n % 4}")), range(32)))
    assert new.call({"what": "sessions"}, context(session="s0")).text == "4"
    for n in range(4):
        new.release(f"s{n}")
    assert new.call({"what": "sessions"}, context(session="s0")).text == "1"


def test_the_references_store_of_files_and_texts():
    tool = verl_tool(StoreTool, {}, NewTool({}, None).tool_schema)
    assert tool.sees_all_images
    assert tool.call({"what": "original_image"}, context(original_image=PICTURE)).text == "(40, 20)"
    assert tool.call({"what": "text_1"}, context(original_image=PICTURE)).text == "second"
    later = Image.from_pil(PILImage.new("RGB", (7, 5)))
    assert tool.call({"what": "../odd/observation_1"}, context(**{"../odd/observation_1": later})).text == "(7, 5)", (
        "the store grows"
    )
    folder = tool._instances["s1"].store._folder.name
    tool.release("s1")
    assert not Path(folder).exists()


@pytest.mark.parametrize(
    ("cls", "given", "result"),
    [
        (WordCountTool, {"lower_bound": 1, "upper_bound": 1}, True),
        (WordCountTool, {"lower_bound": 2, "upper_bound": 3}, False),
        (BeginsWithTool, {"substring": "SEC"}, True),
        (NoNumberTool, {}, True),
    ],
)
def test_the_references_checkers_find_their_texts(cls, given, result):
    tool = verl_tool(cls, {"type": "native"}, None)
    for image in ({}, {"original_image": PICTURE}):
        called = tool.call({"response": "text_1", **given}, context(session=str(image), **image))
        assert (called.status, called.text) == ("ok", f"Check result: {result}")
    assert tool.call({"response": "text_7", **given}, context()).status == "failed"


def test_only_a_class_that_asks_for_images_sees_all(old, new):
    assert not old.sees_all_images
    assert not new.sees_all_images


def test_it_pickles_before_its_first_call(old):
    tool = pickle.loads(pickle.dumps(old))
    assert note(tool, "one").status == "ok"
    assert (tool.name, tool.stateful, tool.execution.isolation) == ("take_note", True, "process")


def test_a_class_without_a_schema_needs_one():
    with pytest.raises(
        UserError, match=r"tool_schema: it is needed, since NeedsSchemaTool has none of its own \(AttributeError"
    ):
        verl_tool(NeedsSchemaTool, {}, None)
    assert verl_tool(NeedsSchemaTool, {}, NOTE).name == "take_note"


def test_an_entry_for_verls_mcp_clients_is_refused():
    with pytest.raises(UserError, match="type: only 'native' classes are run, not 'mcp'"):
        verl_tool(NewTool, {"type": "mcp"}, NOTE)


def test_the_schema_as_an_object():
    schema = as_object(NOTE)
    assert (schema.type, schema.function.name) == ("function", "take_note")
    assert schema.function.parameters.properties["note"].type == "string"
    assert schema.function.parameters.properties["note"].enum is None
    assert schema.function.parameters.required == ["note"]
    assert schema.model_dump(exclude_unset=True, exclude_none=True) == NOTE
