"""The numbers in a text, and how many digits each has after its decimal point."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from tools.text.sentences import LETTER

_FULL_WIDTH = str.maketrans("．，：％﹪٪−–", ".,:%%%--")

# "1." in front of an item, "2.3" in front of a heading; these count things and measure none.
_NUMBERING = re.compile(
    r"^[ \t>*_-]*(?:\(\d{1,3}\)|\d{1,3}(?:[)、]|\.(?!\d)))|^[ \t>]*#+[ \t]*[*_]*\d{1,3}(?:\.\d{1,3})*[.)、]?(?=[ \t])",
    re.MULTILINE,
)
# "1 000,50" and "1'000.50": what parts thousands ends no number
_GROUPS = re.compile(
    rf"(?<![\d'’])(?<!{LETTER})(?<!\d[.,:/-])\d{{1,3}}(?:(?P<parted>[ \u00a0\u2009\u202f'’])\d{{3}})(?:(?P=parted)\d{{3}})*(?!\d)"
)
_TOKEN = re.compile(
    rf"(?=[百.\d])(?P<prefix>百分之[ ]?)?(?<!{LETTER})(?<!{LETTER}[-‐‑.,:/_])"  # not the end of a name: H2O, GPT-4, v1.2
    r"(?P<digits>(?:(?<!\.)\.)?\d+(?:[.,:/-]\d+)*)"
    r"(?:[eE][+-]?\d+|[ ]?[×x*·][ ]?10(?:\^\{?[+-]?\d+\}?|[⁺⁻]?[⁰¹²³⁴-⁹]+))?"
    rf"(?P<percent>[ \t\u00a0\u202f]?(?:%|(?:percent(?:age)?|per[ ]cent|pct|Prozent|pour[ ]?cent|por[ ]?ciento|процент\w*)(?!{LETTER})))?"
    rf"(?P<glued>{LETTER})?",
    re.IGNORECASE,
)
_DATE_OR_TIME = re.compile(r"\d{4}-\d{1,2}-\d{1,2}|\d{1,4}/\d{1,2}/\d{1,4}|\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{2,3})*,\d{3}(?:\.(\d+))?")
_DECIMAL_COMMA = re.compile(r"\d{1,3}(?:\.\d{3})*,(\d+)|\d+,(\d+)")
_POINT = re.compile(r"\d*(?:\.(\d+))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Number:
    """A number in a text."""

    decimals: int  # digits after its decimal point
    percentage: bool


def numbers(text: str) -> list[Number]:
    """The numbers that a text gives, in order.

    "1,000" is one, without decimals; so are "1.000.000,5" and "1 000 000,5", with one. A comma that cannot part thousands ("3,14") is a
    decimal point.
    What is multiplied by a power of ten counts with its own digits: "1.50e-5" has two. A range ("3.5-4.0%"), a ratio and a fraction are the
    numbers that they consist of. No numbers are: the numbering of items and headings, dates written in digits (2024-05-01, 5/1/2024),
    times of day (12:30), versions and addresses (1.2.3), names that hold digits (H2O, GPT-4), and whole numbers that run into letters
    (2nd, 3D); "3.5kg" is one. Years and counts are numbers like any other. A percentage is what "%" or a word for it follows ("3 %", "3
    percent") or 百分之 precedes.
    """
    text = _NUMBERING.sub(" ", unicodedata.normalize("NFC", text).translate(_FULL_WIDTH))
    text = _GROUPS.sub(lambda groups: groups[0].replace(groups["parted"], ""), text)
    found = []
    for token in _TOKEN.finditer(text):
        percentage = bool(token["percent"] or token["prefix"])
        for decimals in _decimals(token["digits"]):
            if percentage or decimals or not token["glued"]:
                found.append(Number(decimals=decimals, percentage=percentage))
    return found


def _decimals(digits: str) -> Iterator[int]:
    """The digits after the decimal point, of each number that digits and the separators between them make."""
    if _DATE_OR_TIME.fullmatch(digits):
        return
    for part in re.split("[:/-]", digits):
        match = _POINT.fullmatch(part) or _THOUSANDS.fullmatch(part) or _DECIMAL_COMMA.fullmatch(part)
        if match:
            yield len("".join(group or "" for group in match.groups()))
        elif part.count(",") and ".." not in part:  # 1,2,3
            yield from (len(point[1] or "") for piece in part.split(",") if (point := _POINT.fullmatch(piece)))
