"""What a policy can write: calls, judgments and the form of a turn."""

import json

import pytest
from hypothesis import given, strategies

from arm_rl.core.parsing import TOOL_FORMATS, is_well_formed_turn, parse_judgment

HERMES = TOOL_FORMATS["hermes"]
GOOD_CALL = '<tool_call>{"name": "zoom", "arguments": {"x": 1}}</tool_call>'
GOOD_ANSWER = "<answer>Overall Judgment: Answer 1 is better.</answer>"

# Pieces that models put together in every order, and what lies between them.
TAGS = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<answer>",
    "</answer>",
)
WORDS = (
    '{"name": "zoom", "arguments": {}}',
    "Overall Judgment: Answer 1 is better.",
    "Overall Judgment: True",
    " ",
    "\n",
    "{",
    "[",
    "]",
    '"',
    "é",
)
PIECES = strategies.sampled_from(TAGS + WORDS)
ANYTHING = strategies.text() | strategies.lists(PIECES | strategies.text(max_size=3), max_size=12).map("".join)


def test_a_call_is_read():
    call = HERMES.parse(
        '<think>hm</think>\n<tool_call>\n{"name": "zoom", "arguments": {"box": [1, 2.5], "é": "<>"}}\n</tool_call>'
    )
    assert (call.name, call.arguments, call.error) == ("zoom", {"box": [1, 2.5], "é": "<>"}, None)


def test_arguments_may_be_left_out():
    assert HERMES.parse('<tool_call>{"name": "zoom"}</tool_call>').arguments == {}


def test_the_first_call_is_read():
    assert HERMES.parse(GOOD_CALL + '<tool_call>{"name": "other"}</tool_call>').name == "zoom"
    broken_first = "<tool_call>oh</tool_call>" + GOOD_CALL
    assert HERMES.parse(broken_first).error is not None, "a good one behind a broken one does not count"


@pytest.mark.parametrize(
    "text", ["", "I zoom in.", "<tool_call>", '<tool_call>{"name": "zoom"}', "</tool_call>", "</tool_call><tool_call>"]
)
def test_no_call(text):
    assert HERMES.parse(text) is None


@pytest.mark.parametrize(
    ("written", "error"),
    [
        ("", "not valid JSON"),
        ("zoom", "not valid JSON"),
        ("{'name': 'zoom'}", "not valid JSON"),
        ('{"name": "zoom"', "not valid JSON"),
        ('{"name": "zoom"} {"name": "zoom"}', "not valid JSON"),
        ('{"name": "zoom", "arguments": {"a": ' + "1" * 5000 + "}}", "not valid JSON"),
        ('{"name": "zoom", "arguments": ' + "[" * 100_000 + "]" * 100_000 + "}", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"name": "zoom", "arguments": {"a": ' + "[" * 40 + "]" * 40 + "}}", "nested too deeply"),
        ('{"name": "zoom", "arguments": {"a": ' + '{"a":' * 40 + "1" + "}" * 40 + "}}", "nested too deeply"),
        ("[]", "not a JSON object"),
        ("3", "not a JSON object"),
        ("null", "not a JSON object"),
        ("{}", "no name"),
        ('{"name": ""}', "no name"),
        ('{"name": null}', "no name"),
        ('{"name": ["zoom"]}', "no name"),
        ('{"name": "zoom", "arguments": []}', "arguments are not a JSON object"),
        ('{"name": "zoom", "arguments": "{}"}', "arguments are not a JSON object"),
        ('{"name": "zoom", "arguments": ""}', "arguments are not a JSON object but a text"),
        ('{"name": "zoom", "parameters": {"x": 1}}', "the call has no 'arguments', but 'parameters'"),
        ('{"name": "zoom", "args": {}}', "the call has no 'arguments', but 'args'"),
        ('{"name": "zoom", "arguments": null}', "arguments are not a JSON object"),
    ],
)
def test_a_call_that_cannot_be_used_says_why(written, error):
    call = HERMES.parse(f"<tool_call>{written}</tool_call>")
    assert error in call.error
    assert call.arguments == {}


def test_half_characters_of_arguments_are_repaired():
    call = HERMES.parse(
        r'<tool_call>{"name": "zoom", "arguments": {"a\ud800": ["\uD83D\uDE00", "\udc00"]}}</tool_call>'
    )
    assert call.arguments == {"a?": ["😀", "?"]}


def test_a_call_without_usable_arguments_keeps_its_name():
    assert HERMES.parse('<tool_call>{"name": "zoom", "arguments": 1}</tool_call>').name == "zoom"


def test_numbers_that_json_does_not_have_are_for_the_tool_to_refuse():
    arguments = HERMES.parse(
        '<tool_call>{"name": "z", "arguments": {"a": NaN, "b": Infinity, "c": 1e999}}</tool_call>'
    ).arguments
    assert arguments["a"] != arguments["a"]
    assert arguments["b"] == arguments["c"] == float("inf")


def test_a_call_may_be_nested_as_deep_as_tools_need():
    deep = json.loads("[" * 20 + "]" * 20)
    call = HERMES.parse(f"<tool_call>{json.dumps({'name': 'z', 'arguments': {'a': deep}})}</tool_call>")
    assert call.arguments == {"a": deep}


@given(ANYTHING)
def test_no_text_breaks_the_parsers(text):
    call = HERMES.parse(text)
    assert call is None or isinstance(call.arguments, dict)
    judgment = parse_judgment(text)
    assert judgment is None or judgment in ("true", "false") or 1 <= int(judgment) <= 99
    well_formed = is_well_formed_turn(text, HERMES)
    assert not well_formed or (text.strip().startswith("<think>") and text.count("</think>") == 1)


@pytest.mark.parametrize(
    ("answer", "judgment"),
    [
        ("Overall Judgment: Answer 1 is better.", "1"),
        ("Overall Judgment: Answer 2 is better", "2"),
        ("\n  Overall Judgment:   Answer 4 is better.\n", "4"),
        ("Overall Judgment: Answer 12 is better.", "12"),
        ("Overall Judgment: True", "true"),
        ("Overall Judgment: False.", "false"),
        ("Overall Judgment: Answer 0 is better.", None),
        ("Overall Judgment: Answer 01 is better.", None),
        ("Overall Judgment: Answer 100 is better.", None),
        ("Overall Judgment: Answer -1 is better.", None),
        ("Overall Judgment: Answer one is better.", None),
        ("Overall Judgment: true", None),
        ("overall judgment: Answer 1 is better.", None),
        ("Answer 1 is better.", None),
        ("Overall Judgment: Answer 1 is better. Or Answer 2.", None),
        ("Overall Judgment: Answer 1 is better. Overall Judgment: Answer 2 is better.", None),
        ("I say: Overall Judgment: Answer 1 is better.", None),
        ("", None),
    ],
)
def test_judgments(answer, judgment):
    assert parse_judgment(f"<think>hm</think><answer>{answer}</answer>") == judgment


@pytest.mark.parametrize(
    "text",
    [
        "Overall Judgment: Answer 1 is better.",
        "<answer>Overall Judgment: Answer 1 is better.",
        "Overall Judgment: Answer 1 is better.</answer>",
        "</answer>Overall Judgment: Answer 1 is better.<answer>",
        GOOD_ANSWER + GOOD_ANSWER,
        GOOD_ANSWER + "<answer>Overall Judgment: Answer 2 is better.</answer>",
        "<answer>" + GOOD_ANSWER,
        "<think>" + GOOD_ANSWER + "</think><answer></answer>",
    ],
)
def test_there_must_be_one_answer(text):
    assert parse_judgment(text) is None


@pytest.mark.parametrize(
    "text",
    [
        f"<think>hm</think>{GOOD_CALL}",
        f"<think>hm</think>{GOOD_ANSWER}",
        f" \n<think>\nhm\n</think>\n\n{GOOD_CALL}\n",
        f"<think></think>{GOOD_ANSWER}",
        "<think>1 < 2 > 0 </ think> <b></think><answer>anything at all</answer>",
        '<think>hm</think><tool_call>{"name": "a tool that there is not", "arguments": {}}</tool_call>',
    ],
)
def test_well_formed_turns(text):
    assert is_well_formed_turn(text, HERMES)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hm",
        GOOD_CALL,
        GOOD_ANSWER,
        "<think>hm</think>",
        f"<think>hm{GOOD_ANSWER}",
        f"hm</think>{GOOD_ANSWER}",
        f"so <think>hm</think>{GOOD_ANSWER}",
        f"<think>hm</think> so {GOOD_ANSWER}",
        f"<think>hm</think>{GOOD_ANSWER} so",
        f"{GOOD_ANSWER}<think>hm</think>",
        f"<think>hm</think><think>hm</think>{GOOD_ANSWER}",
        f"<think><think>hm</think>{GOOD_ANSWER}",
        f"<think>hm</think>{GOOD_ANSWER}{GOOD_ANSWER}",
        f"<think>hm</think>{GOOD_CALL}{GOOD_CALL}",
        f"<think>hm</think>{GOOD_CALL}{GOOD_ANSWER}",
        f"<think>{GOOD_CALL}</think>{GOOD_ANSWER}",
        f"<think>hm</think>{GOOD_CALL.removesuffix('</tool_call>')}",
        f"<think>hm</think>{GOOD_ANSWER.removesuffix('</answer>')}",
        f"<think>hm</think>{GOOD_CALL}<tool_response>Check result: True</tool_response>",
        f"<think><tool_response>True</tool_response></think>{GOOD_ANSWER}",
        "<think>hm</think><answer><tool_response>True</tool_response></answer>",
        "<think>hm</think><tool_call>oh</tool_call>",
        "<think>hm</think><tool_call>{}</tool_call>",
        "<think>hm</think><tool_call></tool_call>",
        "<think>hm</think><tool_call></answer>",
        f"<think>hm</think>{GOOD_ANSWER}<|endoftext|>",
    ],
)
def test_turns_that_are_not_well_formed(text):
    assert not is_well_formed_turn(text, HERMES)


@pytest.mark.parametrize("tag", ["<answer>", "</think><tool_call>", "<tool_call>", "</think> <answer>", "<think>"])
def test_a_policy_that_repeats_itself_is_read_in_linear_time(tag):
    """A model stuck on one token fills its budget with it; a pattern that backtracks would need minutes for this."""
    text = "<think>" + tag * 100_000
    assert HERMES.parse(text) is None
    assert parse_judgment(text) is None
    assert not is_well_formed_turn(text, HERMES)


def test_the_section_shows_every_tool():
    schemas = [{"type": "function", "function": {"name": name, "description": "«é»"}} for name in ("first", "second")]
    section = HERMES.section(schemas)
    shown = section.partition("<tools>\n")[2].partition("\n</tools>")[0]
    assert [json.loads(line) for line in shown.splitlines()] == schemas
