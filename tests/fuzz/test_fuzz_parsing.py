"""Whatever a model writes is read without an error, and read as what it is."""

import json

from hypothesis import given

from arm_rl.core.parsing import TOOL_FORMATS, break_tags, is_well_formed_turn, parse_judgment, repair_surrogates
from tests.fuzz.writing import JSON, NAMES, TAGS, TEXTS, THOROUGH, TURNS, call_of, deep_json

HERMES = TOOL_FORMATS["hermes"]


def depth(value) -> int:
    return (
        1 + max(map(depth, value.values() if isinstance(value, dict) else value), default=0)
        if isinstance(value, dict | list)
        else 0
    )


@given(TEXTS | TURNS)
@THOROUGH
def test_a_text_is_read(text):
    call = HERMES.parse(text)
    if call is not None:
        assert "<tool_call>" in text
        assert "</tool_call>" in text
        assert call.error is None or call.arguments == {}
        assert depth(call.arguments) <= 32
        json.dumps(call.arguments)  # it travels to the tool, to the log and into the report
    judgment = parse_judgment(text)
    assert judgment is None or judgment in ("true", "false") or 1 <= int(judgment) <= 99
    assert judgment is None or text.count("<answer>") == text.count("</answer>") == 1
    if is_well_formed_turn(text, HERMES):
        assert text.count("<think>") == 1
        assert (text.count("<tool_call>"), text.count("<answer>")) in ((1, 0), (0, 1))
        assert call is None or call.error is None


@given(TEXTS | TURNS)
@THOROUGH
def test_what_a_tool_gives_back_holds_no_tag(text):
    clean = break_tags(text)
    assert not [tag for tag in TAGS if tag in clean and tag not in ("<tools>", "</tools>")]
    assert clean.replace(" ", "") == text.replace(" ", "")
    assert break_tags(clean) == clean


@given(deep_json())
@THOROUGH
def test_json_of_any_depth_and_size_is_read(written):
    call = HERMES.parse(f"<tool_call>{written}</tool_call>")
    assert call.error is not None
    call = HERMES.parse(f'<tool_call>{{"name": "x", "arguments": {{"a": {written}}}}}</tool_call>')
    assert (call.error is None) == (call.arguments != {})
    assert depth(call.arguments) <= 32


@given(NAMES.filter(bool), JSON)
@THOROUGH
def test_a_call_is_read_as_it_was_written(name, value):
    call = HERMES.parse(call_of(name, {"a": value}))
    repaired = repair_surrogates({"a": value})  # which no UTF-8 text can hold
    if call.error is None:  # a tag inside a string ends it sooner
        assert (call.name, json.dumps(call.arguments)) == (repair_surrogates(name), json.dumps(repaired))
    else:
        assert "tool_call>" in json.dumps([name, value]) or depth(value) > 20
