"""Where a text begins, ends and mentions something, as a reader sees it: not letter by letter."""

import re
import unicodedata
from collections.abc import Iterable, Iterator

from tools.text.sentences import LETTER, plain

_OPENERS = "\"'([{<«‹„「『《〈【¿¡ "
_CLOSERS = "\"')]}>»›」』》〉】 "
_ENDS = ".!?…。،؟۔।॥:;,~ "
_LETTER = re.compile(LETTER)
_LETTER_AT_END = re.compile(rf"(?:{LETTER}|_)\Z")
_MORE_OF_A_WORD = re.compile(rf"{LETTER}|_|\+\+|#")
_DIGIT_BEFORE = re.compile(r"\d[.,]")
_DIGIT_AFTER = re.compile(r"[.,]\d")
_INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff]")


def folded(text: str) -> str:
    """The text without case, the shapes of quotation marks, the width of East Asian characters (Unicode NFKC), invisible characters, and
    with single spaces for white space."""
    text = unicodedata.normalize("NFKC", text).casefold()
    if not text.isascii():
        text = _INVISIBLE.sub("", text).replace("’", "'").replace("‘", "'").replace("“", '"').replace("”", '"')
    return " ".join(text.split())


def contains(text: str, substrings: Iterable[str]) -> bool:
    """Whether any is there, as written or without Markdown's marks."""
    forms = (folded(text), folded(plain(text)))
    return any(folded(substring) in form for substring in substrings for form in forms)


def begins(text: str, substring: str) -> bool:
    """As written, without Markdown's marks, or also without opening quotation marks and brackets."""
    substring = folded(substring)
    if folded(text).startswith(substring):
        return True
    bare = folded(plain(text))
    return bare.startswith(substring) or bare.lstrip(_OPENERS).startswith(substring)


def ends(text: str, substring: str) -> bool:
    """As written, without Markdown's marks, without closing quotation marks and brackets, or also without the punctuation before these."""
    substring = folded(substring)
    if folded(text).endswith(substring):
        return True
    bare = folded(plain(text))
    unquoted = bare.rstrip(_CLOSERS)
    return any(form.endswith(substring) for form in (bare, unquoted, unquoted.rstrip(_ENDS + _CLOSERS)))


def mentions(text: str, keywords: Iterable[str]) -> Iterator[int]:
    """How often the text mentions each keyword, as whole words; one that is listed twice counts once.

    A letter at a keyword's edge has no other letter beside it in the text: hyphens and apostrophes end words here ("AI-powered" mentions
    AI). Han characters and kana have no such edges. "C" is not in "C++" or "C#", nor "3" in "3.14".
    """
    text = folded(plain(text))
    for keyword in dict.fromkeys(map(folded, keywords)):
        times, start = 0, text.find(keyword)
        while start >= 0:
            stop = start + len(keyword)
            whole = _is_whole(text[max(start - 2, 0) : start], keyword, text[stop : stop + 2])
            times += whole
            start = text.find(keyword, stop if whole else start + 1)
        yield times


def _is_whole(before: str, keyword: str, after: str) -> bool:
    """Whether a keyword stands there as whole words, from the two characters on each of its sides."""
    first, last = keyword[0], keyword[-1]
    if _LETTER.match(first) and (
        _LETTER_AT_END.search(before) or (first.isdecimal() and _DIGIT_BEFORE.fullmatch(before))
    ):
        return False
    return not (
        _LETTER.match(last) and (_MORE_OF_A_WORD.match(after) or (last.isdecimal() and _DIGIT_AFTER.match(after)))
    )
