"""The instruction checkers: whether a text keeps a rule about its length, its words or its numbers."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import Field

from arm_rl.core.errors import UserError
from arm_rl.core.session import ToolResult
from tools.base import ArgumentError, Execution, TextName, Tool, ToolContext, function_schema, parameters_of
from tools.text.matching import begins_with, contains, count_mentions, ends_with, fold
from tools.text.numbers import numbers
from tools.text.sentences import num_words, paragraphs, sentences, sentences_by_paragraph

Part = TypeVar("Part")
Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """The text alone."""

    response: TextName

    def require_sense(self) -> None:
        """Raises an ArgumentError for values that fit the schema and still mean nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Range(Response):
    """How many there may be."""

    lower_bound: Annotated[Count, Field(description="The fewest allowed, itself included.")]
    upper_bound: Annotated[Count, Field(description="The most allowed, itself included.")]

    def require_sense(self) -> None:
        _require_order("lower_bound", self.lower_bound, "upper_bound", self.upper_bound)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranges(Response):
    """How many there may be in each paragraph."""

    ranges: Annotated[
        list[Annotated[list[Count], Field(min_length=2, max_length=2)]],
        Field(min_length=1, description="One [lower bound, upper bound] for each paragraph, in order, both included."),
    ]

    def require_sense(self) -> None:
        for number, (lower, upper) in enumerate(self.ranges):
            _require_order(f"ranges[{number}][0]", lower, f"ranges[{number}][1]", upper)


@dataclass(frozen=True, kw_only=True, slots=True)
class Substring(Response):
    """What to look for."""

    substring: Annotated[str, Field(min_length=1, description="Upper and lower case are the same.")]

    def require_sense(self) -> None:
        _require_visible("substring", self.substring)


@dataclass(frozen=True, kw_only=True, slots=True)
class Substrings(Response):
    """What to look for, any of several."""

    substrings: Annotated[list[str], Field(min_length=1, description="Upper and lower case are the same.")]

    def require_sense(self) -> None:
        for number, substring in enumerate(self.substrings):
            _require_visible(f"substrings[{number}]", substring)


@dataclass(frozen=True, kw_only=True, slots=True)
class Keywords(Response):
    """Words or phrases, and how often."""

    keywords: Annotated[
        list[str], Field(min_length=1, description="Whole words or phrases; upper and lower case are the same.")
    ]
    lower_bound_times: Annotated[Count, Field(description="The fewest mentions allowed.")]
    upper_bound_times: Annotated[Count, Field(description="The most mentions allowed.")]

    def require_sense(self) -> None:
        _require_order("lower_bound_times", self.lower_bound_times, "upper_bound_times", self.upper_bound_times)
        for number, keyword in enumerate(self.keywords):
            _require_visible(f"keywords[{number}]", keyword)


@dataclass(frozen=True, kw_only=True, slots=True)
class Precision(Response):
    """Digits after the decimal point."""

    precision: Annotated[Count, Field(description="How many digits after the decimal point.")]


def _require_order(lower_name: str, lower: int, upper_name: str, upper: int) -> None:
    if lower > upper:
        raise ArgumentError(
            f"{lower_name} is {lower} and {upper_name} is {upper}: the lower bound must not be above the upper one"
        )


def _require_visible(name: str, text: str) -> None:
    if not fold(text):
        raise ArgumentError(f"{name} is {text!r}: a text with at least one visible character is needed")


# Paragraphs, sentences and words. A text that has no paragraph or no sentence fulfils nothing that is asked of each.


def _paragraph_number_in_range(text: str, wanted: Range) -> bool:
    return _is_within(len(paragraphs(text)), wanted)


def _sentence_number_in_range(text: str, wanted: Range) -> bool:
    return _is_within(len(sentences(text)), wanted)


def _each_paragraph_sentence_number_in_range(text: str, wanted: Range) -> bool:
    return _holds_for_each(sentences_by_paragraph(text), lambda paragraph: _is_within(len(paragraph), wanted))


def _each_paragraph_sentence_number_in_range_list(text: str, wanted: Ranges) -> bool:
    found = sentences_by_paragraph(text)
    return len(found) == len(wanted.ranges) and all(
        lower <= len(paragraph) <= upper for paragraph, (lower, upper) in zip(found, wanted.ranges, strict=True)
    )


def _word_count_in_range(text: str, wanted: Range) -> bool:
    return _is_within(num_words(text), wanted)


def _each_paragraph_word_count_in_range(text: str, wanted: Range) -> bool:
    return _holds_for_each(paragraphs(text), lambda paragraph: _word_count_in_range(paragraph, wanted))


def _is_within(number: int, wanted: Range) -> bool:
    return wanted.lower_bound <= number <= wanted.upper_bound


def _holds_for_each(parts: list[Part], holds: Callable[[Part], bool]) -> bool:
    return bool(parts) and all(map(holds, parts))


def _not_contain_substrings(text: str, unwanted: Substrings) -> bool:
    return not contains(text, unwanted.substrings)


def _not_contain_substring(text: str, unwanted: Substring) -> bool:
    return not contains(text, [unwanted.substring])


def _each_sentence_begins_with(text: str, wanted: Substring) -> bool:
    return _holds_for_each(sentences(text), lambda sentence: begins_with(sentence, wanted.substring))


def _each_sentence_ends_with(text: str, wanted: Substring) -> bool:
    return _holds_for_each(sentences(text), lambda sentence: ends_with(sentence, wanted.substring))


def _each_paragraph_begins_with(text: str, wanted: Substring) -> bool:
    return _holds_for_each(paragraphs(text), lambda paragraph: begins_with(paragraph, wanted.substring))


def _each_paragraph_ends_with(text: str, wanted: Substring) -> bool:
    return _holds_for_each(paragraphs(text), lambda paragraph: ends_with(paragraph, wanted.substring))


def _response_begins_with(text: str, wanted: Substring) -> bool:
    return begins_with(text, wanted.substring)


def _response_ends_with(text: str, wanted: Substring) -> bool:
    return ends_with(text, wanted.substring)


def _each_keyword_in_range(text: str, wanted: Keywords) -> bool:
    return all(
        wanted.lower_bound_times <= times <= wanted.upper_bound_times for times in count_mentions(text, wanted.keywords)
    )


def _total_keywords_in_range(text: str, wanted: Keywords) -> bool:
    return wanted.lower_bound_times <= sum(count_mentions(text, wanted.keywords)) <= wanted.upper_bound_times


def _percentage_precision(text: str, wanted: Precision) -> bool:
    return all(number.decimals == wanted.precision for number in numbers(text) if number.percentage)


def _number_precision(text: str, wanted: Precision) -> bool:
    return all(number.decimals == wanted.precision for number in numbers(text))


def _no_arabic_number(text: str, _: Response) -> bool:
    return not re.search(r"\d", text)


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """A rule that a text keeps or breaks."""

    description: str  # for the judge
    arguments: type[Response]
    holds: Callable[[str, Any], bool]


def _make_check(holds: Callable[[str, Any], bool], arguments: type[Response], rule: str) -> Check:
    return Check(description=f"Checks whether {rule}.", arguments=arguments, holds=holds)


CHECKS: dict[str, Check] = {
    "check_whether_response_paragraph_number_in_range": _make_check(
        _paragraph_number_in_range, Range, "the number of paragraphs (separated by blank lines) is in the range"
    ),
    "check_whether_response_sentence_number_in_range": _make_check(
        _sentence_number_in_range, Range, "the number of sentences is in the range"
    ),
    "check_whether_each_paragraph_sentence_number_in_range": _make_check(
        _each_paragraph_sentence_number_in_range, Range, "the number of sentences of every paragraph is in the range"
    ),
    "check_whether_each_paragraph_sentence_number_in_range_list": _make_check(
        _each_paragraph_sentence_number_in_range_list,
        Ranges,
        "there are as many paragraphs as ranges, and each one's number of sentences is in its own range",
    ),
    "check_whether_response_word_count_in_range": _make_check(
        _word_count_in_range, Range, "the number of words (each Chinese character is one) is in the range"
    ),
    "check_whether_each_paragraph_word_count_in_range": _make_check(
        _each_paragraph_word_count_in_range, Range, "the number of words of every paragraph is in the range"
    ),
    "check_whether_whole_response_not_contain_certain_substrings": _make_check(
        _not_contain_substrings, Substrings, "the text contains none of the substrings"
    ),
    "check_whether_whole_response_not_contain_certain_substring": _make_check(
        _not_contain_substring, Substring, "the text does not contain the substring"
    ),
    "check_whether_each_sentence_begin_with_certain_substring": _make_check(
        _each_sentence_begins_with, Substring, "every sentence begins with the substring"
    ),
    "check_whether_each_sentence_end_with_certain_substring": _make_check(
        _each_sentence_ends_with, Substring, "every sentence ends with the substring, closing punctuation aside"
    ),
    "check_whether_each_paragraph_begin_with_certain_substring": _make_check(
        _each_paragraph_begins_with, Substring, "every paragraph begins with the substring"
    ),
    "check_whether_each_paragraph_end_with_certain_substring": _make_check(
        _each_paragraph_ends_with, Substring, "every paragraph ends with the substring, closing punctuation aside"
    ),
    "check_whether_whole_response_begin_with_certain_substring": _make_check(
        _response_begins_with, Substring, "the text begins with the substring"
    ),
    "check_whether_whole_response_end_with_certain_substring": _make_check(
        _response_ends_with, Substring, "the text ends with the substring, closing punctuation aside"
    ),
    "check_whether_each_keyword_in_list_mentioned_in_range": _make_check(
        _each_keyword_in_range, Keywords, "the number of mentions of every single keyword is in the range"
    ),
    "check_whether_total_keyword_in_list_mentioned_in_range": _make_check(
        _total_keywords_in_range, Keywords, "the number of mentions of all keywords together is in the range"
    ),
    "check_percentage_number_precision_in_response": _make_check(
        _percentage_precision, Precision, "every percentage has exactly that many digits after the decimal point"
    ),
    "check_number_precision_in_response": _make_check(
        _number_precision, Precision, "every number has exactly that many digits after the decimal point"
    ),
    "check_whether_has_no_arabic_number_in_response": _make_check(
        _no_arabic_number, Response, "the text has no Arabic numerals"
    ),
}


class CheckTool(Tool):
    """One of `CHECKS`. Its result says True or False; the judge draws the conclusion."""

    execution = Execution(isolation="inline")

    def __init__(self, name: str) -> None:
        if name not in CHECKS:
            raise UserError(f"name: there is no check {name!r}; known: {', '.join(CHECKS)}")
        self._check = name
        self.name, self.description, self.Arguments = name, CHECKS[name].description, CHECKS[name].arguments
        self.schema = function_schema(name, self.description, parameters_of(self.Arguments))

    def run(self, arguments: Response, context: ToolContext) -> ToolResult:
        """Whether the text keeps the rule."""
        arguments.require_sense()
        holds = CHECKS[self._check].holds(context.text(arguments.response), arguments)
        return ToolResult(status="ok", text=f"Check result: {holds}")
