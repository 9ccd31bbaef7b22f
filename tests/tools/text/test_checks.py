"""The instruction checkers: each one's verdicts, what they say of arguments without sense, and that no text makes one raise."""

import functools
import pickle
import re

import pytest
from hypothesis import given, settings, strategies

from arm_rl.core.errors import UserError
from tools import load_tools
from tools.base import ToolContext
from tools.text.checks import CHECKS, CheckTool

TOOLS = {name: CheckTool(name) for name in CHECKS}


def result(check, text, **arguments):
    """Return the result of a check of a text."""
    context = ToolContext(images={}, texts={"text_0": text}, image_names=[])
    return TOOLS[check].call({"response": "text_0", **arguments}, context)


def verdict(check, text, **arguments):
    """Return True or False, as the check says of a text."""
    found = result(check, text, **arguments)
    assert (found.status, found.images) == ("ok", ())
    return {"Check result: True": True, "Check result: False": False}[found.text]


def between(lower, upper):
    return {"lower_bound": lower, "upper_bound": upper}


def mentions(lower, upper, *keywords):
    return {"keywords": list(keywords), "lower_bound_times": lower, "upper_bound_times": upper}


def samples(check):
    """Return arguments that fit the check."""
    known = {
        **between(1, 9),
        **mentions(1, 2, "a", "C++"),
        "ranges": [[1, 9]],
        "substring": "a",
        "substrings": ["a", "b"],
        "precision": 2,
    }
    return {
        key: value for key, value in known.items() if key in TOOLS[check].schema["function"]["parameters"]["properties"]
    }


PARAGRAPHS = (
    "One here. Two, e.g. this.\n\nOnly one of 3.14.\n\n- item\n- item. Again."  # 2, 1 and 3 sentences; 5, 4 and 3 words
)
KEYWORDS = "Reddit and Redditors: reddit. The AI-powered C++ and .NET, e.g. version 3.14 of it."

# For each check: a text, the check's arguments, the right verdict. A value alone is the check's only argument.
CASES = {
    "check_whether_response_paragraph_number_in_range": [
        (PARAGRAPHS, between(3, 3), True),
        (PARAGRAPHS, between(1, 2), False),
        (PARAGRAPHS, between(4, 9), False),
        ("", between(0, 0), True),
        ("", between(1, 1), False),
        ("One\nparagraph", between(1, 1), True),
        ("第一段。\n\n第二段。", between(2, 2), True),
        ("1. a\n2. b\n3. c", between(1, 1), True),
    ],
    "check_whether_response_sentence_number_in_range": [
        (PARAGRAPHS, between(6, 6), True),
        (PARAGRAPHS, between(0, 5), False),
        (PARAGRAPHS, between(7, 10**6), False),
        ("", between(0, 0), True),
        ("Dr. Who is 3.14 m tall, e.g. here.", between(1, 1), True),
        ("你好。今天很好！", between(2, 2), True),
        ("- a\n- b", between(2, 2), True),
    ],
    "check_whether_each_paragraph_sentence_number_in_range": [
        (PARAGRAPHS, between(1, 3), True),
        (PARAGRAPHS, between(2, 3), False),
        (PARAGRAPHS, between(1, 2), False),
        ("", between(0, 9), False),  # there is none that could be in the range
        ("See Fig. 3, e.g. there.\n\n你好。", between(1, 1), True),
        ("- a\n- b\n\n好。好。", between(2, 2), True),
    ],
    "check_whether_each_paragraph_sentence_number_in_range_list": [
        (PARAGRAPHS, {"ranges": [[2, 2], [1, 1], [3, 3]]}, True),
        (PARAGRAPHS, {"ranges": [[1, 5], [0, 1], [3, 10]]}, True),
        (PARAGRAPHS, {"ranges": [[1, 1], [2, 2], [3, 3]]}, False),
        (PARAGRAPHS, {"ranges": [[2, 2], [1, 1]]}, False),
        (PARAGRAPHS, {"ranges": [[2, 2], [1, 1], [3, 3], [0, 9]]}, False),
        ("", {"ranges": [[0, 9]]}, False),
        ("好。好。\n\n- e.g. 3.14", {"ranges": [[2, 2], [1, 1]]}, True),
    ],
    "check_whether_response_word_count_in_range": [
        (PARAGRAPHS, between(12, 12), True),
        (PARAGRAPHS, between(1, 11), False),
        (PARAGRAPHS, between(13, 20), False),
        ("", between(0, 0), True),
        ("e.g. 3.14 don't well-known", between(4, 4), True),
        ("今天天气很好。", between(6, 6), True),
        ("1. a\n2. b", between(2, 2), True),
    ],
    "check_whether_each_paragraph_word_count_in_range": [
        (PARAGRAPHS, between(3, 5), True),
        (PARAGRAPHS, between(4, 5), False),
        (PARAGRAPHS, between(3, 4), False),
        ("", between(0, 9), False),
        ("你好\n\n- 1,000.5 e.g.", between(2, 2), True),
    ],
    "check_whether_whole_response_not_contain_certain_substrings": [
        ("An apple.", {"substrings": ["pear", "plum"]}, True),
        ("An apple.", {"substrings": ["pear", "APP"]}, False),
        ("", {"substrings": ["a"]}, True),
        ("我喜欢苹果", {"substrings": ["梨", "苹果"]}, False),
        ("- e.g. 3.14", {"substrings": ["E.G.", "x"]}, False),
    ],
    "check_whether_whole_response_not_contain_certain_substring": [
        ("An **AI** here", "**AI**", False),
        ("An A**I** here", "**AI**", False),
        ("None here", "**", True),
        ("One **b**", "**", False),
        ("An apple.", "pear", True),
        ("An apple.", "APPLE", False),
        ("Pineapple", "apple", False),  # not only whole words
        ("STRASSE", "straße", False),
        ("cafe\u0301", "CAFÉ", False),
        ("don’t", "don't", False),
        ("very\n well", "very well", False),
        ("**very** well", "very well", False),
        ("**very** well", "**", False),
        ("你好！", "!", False),
        ("app\u200ble", "apple", False),
        ("3.14, e.g. this", "3.15", True),
        ("", "a", True),
        ("- a list", "- A", False),
    ],
    "check_whether_each_sentence_begin_with_certain_substring": [
        ("**Note:** it is.", "**Note:**", True),
        ("Note: it is. *Note:* too.", "**Note:**", True),
        ("It is.", "**Note:**", False),
        ("I go. I see, e.g. you. I am 3.14.", "i ", True),
        ("I go. You see.", "I", False),
        ("- I go\n- I see", "I", True),
        ("1. I go\n2. I see", "I", True),
        ('"I go." **I see.** (I am.)', "I", True),
        ("¡Hola! ¡Hasta luego!", "¡h", True),
        ("我来。我走！", "我", True),
        ("我来。他走！", "我", False),
        ("", "I", False),
    ],
    "check_whether_each_sentence_end_with_certain_substring": [
        ("Bye **now**. And _now_!", "**now**", True),
        ("Go now.", "**then**", False),
        ("Hi you! Go, e.g. now!", "!", True),
        ("Hi you! Go now.", "!", False),
        ("I say meow. You say Meow! He says “meow.”", "meow", True),
        ("I say meow. You do not.", "meow", False),
        ("- one meow\n- two meow.", "meow", True),
        ("It is 3.14. So is 3.14", "3.14", True),
        ("No stop\n\n# Here", ".", False),
        ("(Hi!) **You!**", "!", True),
        ("我来了。他走了！", "了", True),
        ("我来！他走！", "!", True),
        ("", "!", False),
    ],
    "check_whether_each_paragraph_begin_with_certain_substring": [
        ("**Note:** a.\n\nNote: b.\n\n- *Note:* c", "**Note:**", True),
        ("** a.\n\nb.", "**", False),
        ("So it is. But no.\n\nSo be it.", "so", True),
        ("So it is.\n\nNo.", "So", False),
        ("- So\n- no\n\n**So** it is\n\n# So", "so", True),
        ("- a\n\n- b", "-", True),
        ("1. a\n\n1. b", "1.", True),
        ("E.g. 3.14\n\ne.g. this", "e.g.", True),
        ("但是，好。\n\n“但是”", "但是", True),
        ("  \n So \n\n\n So", "So", True),
        ("", "So", False),
    ],
    "check_whether_each_paragraph_end_with_certain_substring": [
        ("See **Note:**\n\nSee Note:", "**Note:**", True),
        ("It is done.\n\nAll is DONE!", "done", True),
        ("It is done.\n\nNo.", "done", False),
        ("It is done.\n\nDone", "done.", False),  # a point that is asked for must be there
        ("- a\n- the end\n\nthe end.  \n", "the end", True),
        ("about 3.14.\n\ne.g. 3.14", "3.14", True),
        ("好了。\n\n走了！", "了", True),
        ("", "done", False),
    ],
    "check_whether_whole_response_begin_with_certain_substring": [
        ("Note: a", "`Note:`", True),
        ("Hello there", "hello", True),
        (" \n Hello there", "Hello", True),
        ("**Hello** there", "Hello there", True),
        ("# Hello", "# hello", True),
        ("Say Hello", "Hello", False),
        ("Hell", "Hello", False),
        ("E.g. this", "e.g.", True),
        ("- 3.14", "3.14", True),
        ("你好，世界", "你好", True),
        ("！你好", "!", True),
        ("", "Hello", False),
    ],
    "check_whether_whole_response_end_with_certain_substring": [
        ("Bye **now**.", "**now**", True),
        ("Bye now", "__now__", True),
        ("That is the end.", "The end", True),
        ("That is the end.", "the end.", True),
        ("That is the end", "the end.", False),
        ("The end is near.", "the end", False),
        ("Any **questions?** \n", "questions?", True),
        ("He said: “The end.”", "the end", True),
        ("Really?!", "?", False),
        ("P.S. see 3.14", "3.14", True),
        ("- a\n- b, e.g.", "e.g.", True),
        ("再见。", "再见", True),
        ("", "end", False),
    ],
    "check_whether_each_keyword_in_list_mentioned_in_range": [
        ("**AI** and AI, *AI*", mentions(3, 3, "**AI**"), True),
        ("We said AIs", mentions(0, 0, "`AI`"), True),
        (KEYWORDS, mentions(2, 2, "reddit"), True),
        (KEYWORDS, mentions(1, 2, "reddit", "ai", "C++", ".net", "version 3.14"), True),
        (KEYWORDS, mentions(1, 1, "reddit", "ai"), False),
        (KEYWORDS, mentions(1, 9, "reddit", "powers"), False),
        (KEYWORDS, mentions(0, 0, "C", "3", "14", "Redd", "power", "net a"), True),
        ("snake_case", mentions(0, 0, "snake"), True),
        ("**Very** *good*\nvery  good", mentions(2, 2, "very good"), True),
        ("50% and C#", mentions(1, 1, "%", "c#"), True),
        ("我用Python写AI程序，AI好", mentions(1, 2, "python", "AI", "程序"), True),
        ("café cafe\u0301 cafés", mentions(2, 2, "Café"), True),
        ("हिन्दी हिन्", mentions(1, 1, "हिन्दी"), True),
        ("- apple\n- e.g. apples", mentions(1, 1, "apple", "e.g."), True),
        ("a a a", mentions(1, 1, "a a"), True),  # without overlap
        ("", mentions(0, 5, "a"), True),
        ("", mentions(1, 5, "a"), False),
    ],
    "check_whether_total_keyword_in_list_mentioned_in_range": [
        ("**AI** and AI", mentions(2, 2, "**AI**", "AI"), True),
        (KEYWORDS, mentions(3, 3, "reddit", "ai"), True),
        (KEYWORDS, mentions(2, 2, "reddit", "REDDIT"), True),  # the same one
        (KEYWORDS, mentions(3, 9, "reddit", "absent"), False),
        (KEYWORDS, mentions(0, 1, "reddit", "absent"), False),
        ("苹果和梨，苹果", mentions(3, 3, "苹果", "梨"), True),
        ("- e.g. 3.14\n- e.g.", mentions(3, 3, "e.g.", "3.14"), True),
        ("", mentions(0, 0, "a"), True),
        ("", mentions(1, 1, "a"), False),
    ],
    "check_percentage_number_precision_in_response": [
        ("It is 3.50% or 4.25 percent of 7.", 2, True),
        ("It is 3.5%.", 2, False),
        ("It is 3%.", 0, True),
        ("It is 3%.", 1, False),
        ("No percentage in e.g. 3.14.", 5, True),
        ("1. 3.50 %\n2. 4.25 %", 2, True),
        ("占3.5％，即百分之3.5", 1, True),
        ("", 2, True),
    ],
    "check_number_precision_in_response": [
        ("1 000,50 €", 2, True),
        ("It is 3.14 of 1,000.00, e.g. 50.00%.", 2, True),
        ("It is 3.14 of 1,000.", 2, False),
        ("1,000 or 1e-5 in 2024", 0, True),
        ("3.1 or 3.14", 1, False),
        ("1. 3.14\n2. 2.71", 2, True),
        ("Version 1.2.3 of 2024-05-01 costs 3.50", 2, True),
        ("共3.14米", 2, True),
        ("共3米", 2, False),
        ("", 2, True),
    ],
    "check_whether_has_no_arabic_number_in_response": [
        ("Three, e.g. IV.", {}, True),
        ("It is 3.14.", {}, False),
        ("H2O", {}, False),
        ("1. first", {}, False),
        ("有３个", {}, False),
        ("有三个", {}, True),
        ("", {}, True),
    ],
}


def named(check, arguments):
    """Return a row's arguments by their names."""
    if isinstance(arguments, dict):
        return arguments
    (name,) = samples(check)
    return {name: arguments}


@pytest.mark.parametrize("check", CHECKS)
def test_verdicts(check):
    rows = CASES[check]
    wrong = [row for row in rows if verdict(check, row[0], **named(check, row[1])) is not row[2]]
    assert wrong == []
    assert {expected for _, _, expected in rows} == {True, False}


def test_every_check_was_tried():
    assert CASES.keys() == CHECKS.keys()


BOUNDS = [("lower_bound", "upper_bound"), ("lower_bound_times", "upper_bound_times")]


def having(*keys):
    """Return each check with those of the arguments that the check has."""
    return [
        (check, key) for check in CHECKS for key in keys if (key if isinstance(key, str) else key[0]) in samples(check)
    ]


@pytest.mark.parametrize(("check", "bounds"), having(*BOUNDS))
def test_reversed_and_negative_bounds_are_told(check, bounds):
    arguments, (lower, upper) = samples(check), bounds
    assert result(check, "a", **{**arguments, lower: 5, upper: 5}).status == "ok"
    found = result(check, "a", **{**arguments, lower: 5, upper: 4})
    assert (found.status, found.text) == (
        "bad_arguments",
        f"Error: {lower} is 5 and {upper} is 4: the lower bound must not be above the upper one",
    )
    found = result(check, "a", **{**arguments, lower: -1})
    assert (found.status, found.text) == ("bad_arguments", f"Error: {lower}: -1 is less than the minimum of 0")


@pytest.mark.parametrize(("check", "key"), having("precision"))
def test_a_negative_precision_is_told(check, key):
    assert result(check, "a", **{key: -1}).text == "Error: precision: -1 is less than the minimum of 0"


@pytest.mark.parametrize(("check", "key"), having("ranges"))
def test_reversed_ranges_are_told(check, key):
    found = result(check, "a", **{key: [[1, 2], [3, 1]]})
    assert (
        found.text == "Error: ranges[1][0] is 3 and ranges[1][1] is 1: the lower bound must not be above the upper one"
    )
    assert result(check, "a", ranges=[[1, 2, 3]]).status == result(check, "a", ranges=[]).status == "bad_arguments"


@pytest.mark.parametrize(("check", "key"), having("substring", "substrings", "keywords"))
def test_texts_without_a_visible_character_are_told(check, key):
    arguments = samples(check)
    several = isinstance(arguments[key], list)
    found = result(check, "a", **{**arguments, key: ["a", " \u200b"] if several else " \u200b"})
    assert found.status == "bad_arguments"
    assert found.text.startswith(f"Error: {key}[1] is " if several else f"Error: {key} is ")
    assert found.text.endswith("a text with at least one visible character is needed")
    assert result(check, "a", **{**arguments, key: [] if several else ""}).status == "bad_arguments"


@pytest.mark.parametrize("check", CHECKS)
def test_a_check_is_a_tool_of_its_own(check):
    tool = pickle.loads(pickle.dumps(functools.partial(CheckTool, check)()))
    function = tool.schema["function"]
    assert (function["name"], tool.name) == (check, check)
    assert function["description"] == CHECKS[check].description
    assert (
        set(function["parameters"]["required"])
        == set(samples(check)) | {"response"}
        == set(function["parameters"]["properties"])
    )
    assert tool.execution.isolation == "inline"
    tool.set_schema({"type": "function", "function": {**function, "name": "other"}})
    context = ToolContext(images={}, texts={"text_0": "a"}, image_names=[])
    assert tool.call({"response": "text_0", **samples(check)}, context).status == "ok"
    missing = tool.call({"response": "text_1", **samples(check)}, context)
    assert (missing.status, missing.text) == ("bad_arguments", "Error: there is no text 'text_1'; known: text_0")


def test_an_unknown_check_is_refused():
    with pytest.raises(
        UserError, match="no check 'check_spelling'; known: check_whether_response_paragraph_number_in_range, "
    ):
        CheckTool("check_spelling")


def test_the_tool_file_lists_every_check(monkeypatch):
    monkeypatch.setattr("tools.TOOLS", {name: functools.partial(CheckTool, name) for name in CHECKS})
    assert list(load_tools(["configs/tools/text_checks.yaml"])) == list(CHECKS)
    assert len(CHECKS) == 19


SURROGATE = re.compile("[\ud800-\udfff]")  # refused in arguments
TEXT = strategies.one_of(
    strategies.text(max_size=60),
    strategies.text(alphabet="aB 1.,!?。“”「」()\"'*_`#>-|[]<%\n…é他ßİ\u0301\u200b\ud800😀", max_size=60),
)


@settings(max_examples=200)
@given(TEXT, TEXT, strategies.integers(0, 5), strategies.integers(0, 5))
def test_no_text_and_no_argument_makes_a_check_raise(text, part, lower, more):
    values = {
        **between(lower, lower + more),
        **mentions(lower, lower + more, part, "a"),
        "ranges": [[lower, lower + more]],
        "substring": part,
        "substrings": [part, "b"],
        "precision": lower,
    }
    for check in CHECKS:
        found = result(check, text, **{key: values[key] for key in samples(check)})
        assert found.text in ("Check result: True", "Check result: False") or found.status == "bad_arguments"


@given(TEXT.filter(lambda text: not SURROGATE.search(text)), TEXT)
def test_a_text_begins_and_ends_with_and_contains_its_parts(one, other):
    part = "x" + one
    assert verdict("check_whether_whole_response_begin_with_certain_substring", part + " " + other, substring=part)
    assert verdict(
        "check_whether_whole_response_end_with_certain_substring", other + " x" + one + "x", substring="x" + one + "X"
    )
    assert not verdict(
        "check_whether_whole_response_not_contain_certain_substring", f"{other} {part} {other}", substring=part
    )


@given(TEXT, strategies.integers(0, 9), strategies.integers(0, 9))
def test_a_wider_range_is_never_stricter(text, lower, more):
    for check in CHECKS:
        if "lower_bound" in samples(check) and verdict(check, text, **between(lower + 1, lower + 1 + more)):
            assert verdict(check, text, **between(lower, lower + 2 + more))


@given(TEXT, strategies.integers(0, 6))
def test_the_precision_of_all_numbers_is_that_of_the_percentages(text, precision):
    if verdict("check_number_precision_in_response", text, precision=precision):
        assert verdict("check_percentage_number_precision_in_response", text, precision=precision)
