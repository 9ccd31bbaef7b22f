"""Where a text begins, ends and mentions something, as a reader sees it: not letter by letter."""

import re
import unicodedata
from collections.abc import Iterable, Iterator

from tools.text.sentences import LETTER, strip_emphasis, strip_markdown

_OPENERS = "\"'([{<«‹„「『《〈【¿¡ "
_CLOSERS = "\"')]}>»›」』》〉】 "
_ENDS = ".!?…。،؟۔।॥:;,~ "
_LETTER = re.compile(LETTER)
_LETTER_AT_END = re.compile(rf"(?:{LETTER}|_)\Z")
_MORE_OF_A_WORD = re.compile(rf"{LETTER}|_|\+\+|#")
_DIGIT_BEFORE = re.compile(r"\d[.,]")
_DIGIT_AFTER = re.compile(r"[.,]\d")
_INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff]")


def fold(text: str) -> str:
    """Return a text without case, quotation mark shapes, East Asian widths (NFKC) and invisible characters."""
    text = unicodedata.normalize("NFKC", text).casefold()
    if not text.isascii():
        text = _INVISIBLE.sub("", text).replace("’", "'").replace("‘", "'").replace("“", '"').replace("”", '"')
    return " ".join(text.split())


def contains(text: str, substrings: Iterable[str]) -> bool:
    """Return whether any of the substrings is in a text, as written or without Markdown's marks on both sides."""
    forms = (fold(text), fold(strip_markdown(text)))
    return any(wanted in form for substring in substrings for wanted in _forms(substring) for form in forms)


def begins_with(text: str, substring: str) -> bool:
    """Return whether a text begins with a substring, also without Markdown's marks on both sides or opening brackets."""
    wanted = _forms(substring)
    bare = fold(strip_markdown(text))
    return any(form.startswith(wanted) for form in (fold(text), bare, bare.lstrip(_OPENERS)))


def ends_with(text: str, substring: str) -> bool:
    """Return whether a text ends with a substring, also without Markdown's marks on both sides and closing quotation marks."""
    wanted = _forms(substring)
    bare = fold(strip_markdown(text))
    unquoted = bare.rstrip(_CLOSERS)
    return any(form.endswith(wanted) for form in (fold(text), bare, unquoted, unquoted.rstrip(_ENDS + _CLOSERS)))


def _forms(substring: str) -> tuple[str, ...]:
    """Return a substring as written and without marks of emphasis, where more than marks is left."""
    written, bare = fold(substring), fold(strip_emphasis(substring))
    return (written, bare) if bare else (written,)


def count_mentions(text: str, keywords: Iterable[str]) -> Iterator[int]:
    """Count how often the text mentions each distinct keyword as whole words.

    A letter at a keyword's edge has no other letter beside it in the text: hyphens and apostrophes end words here ("AI-powered" mentions
    AI). Han characters and kana have no such edges. "C" is not in "C++" or "C#", nor "3" in "3.14".
    """
    text = fold(strip_markdown(text))
    for keyword in dict.fromkeys(_forms(keyword)[-1] for keyword in keywords):
        times, start = 0, text.find(keyword)
        while start >= 0:
            stop = start + len(keyword)
            whole = _is_whole_word(text[max(start - 2, 0) : start], keyword, text[stop : stop + 2])
            times += whole
            start = text.find(keyword, stop if whole else start + 1)
        yield times


def _is_whole_word(before: str, keyword: str, after: str) -> bool:
    """Return whether a keyword stands as whole words, given the two characters on each of its sides."""
    first, last = keyword[0], keyword[-1]
    if _LETTER.match(first) and (
        _LETTER_AT_END.search(before) or (first.isdecimal() and _DIGIT_BEFORE.fullmatch(before))
    ):
        return False
    return not (
        _LETTER.match(last) and (_MORE_OF_A_WORD.match(after) or (last.isdecimal() and _DIGIT_AFTER.match(after)))
    )
