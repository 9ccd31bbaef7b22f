"""What a judge answered, read as a verdict: strictly as it is taught to write it, then as other models write it. None: not readable."""

import re
from collections.abc import Callable, Sequence

from arm_rl.benchmarks.base import Kind
from arm_rl.core.parsing import parse_judgment

_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL)
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_BETTER = re.compile(
    r"answer\s*(\d+)\s*is\s*(?:the\s*)?(?:slightly\s*|much\s*)?(?:better|superior|preferred|best)", re.IGNORECASE
)
_NUMBER = re.compile(r"\s*(?:answer\s*)?(\d+)\s*\.?\s*", re.IGNORECASE)
_TRUTH = re.compile(r"\b(true|false)\b", re.IGNORECASE)
_LETTER_ALONE = re.compile(r"[\s(\[*]*([A-Z])(?:[\s)\].:,*]|$)")
# a small letter is one only where nothing follows it: "the answer is a glove"
_LETTER_NAMED = re.compile(
    r"(?i:answer|option|choice)(?i:\s+is|\s*:)?\s*[(\[*]*(?:([A-Z])(?![a-zA-Z])|([a-z])(?=[)\].:*]|\s*$))"
)
_LETTER_BOXED = re.compile(r"\\boxed\{\s*(?:\\(?:text|mathrm|mathbf)\{)?\s*\(?([A-Za-z])(?:\s*\}|[.:,)])")
_LETTER_WORD = re.compile(r"(?<![^\W_])(?!(?:A|I)\s+[a-z])([A-Z])(?![^\W_]|['’])")
_RATING = re.compile(r"(?<![\d.])(10|[1-9])(?![\d.]*\d)")


def read_verdict(kind: Kind, text: str, num_options: int = 0, options: Sequence[str] = ()) -> str | None:
    """The verdict in the last turn's text.

    Args:
        num_options: for a choice or a letter: another one is not readable.
        options: texts of the options that letters name: one that is answered in place of its letter is readable.

    Returns:
        "1".."N", "true" or "false", "A".."Z", or "1".."10"; None where there is none.
    """
    found = _read_letter(text, num_options, options) if kind == "letter" else _READERS[kind](text)
    if kind == "choice" and found is not None and not 1 <= int(found) <= num_options:
        return None
    if kind == "letter" and found is not None and ord(found) - ord("A") >= num_options:
        return None
    return found


def answer_text(text: str) -> str:
    """What stands inside the last `<answer>`; without one, all but the thoughts."""
    answers = _ANSWER.findall(text)
    return answers[-1].strip() if answers else _THOUGHT.sub("", text).strip()


def _read_choice(text: str) -> str | None:
    strict = parse_judgment(text)
    if strict is not None:
        return strict if strict.isdigit() else None
    answer = answer_text(text).replace("*", "")
    alone = _NUMBER.fullmatch(answer)
    if alone:
        return str(int(alone[1]))
    found = _BETTER.findall(answer)
    return str(int(found[-1])) if found else None


def _read_truth(text: str) -> str | None:
    strict = parse_judgment(text)
    if strict is not None:
        return strict if not strict.isdigit() else None
    found = _TRUTH.findall(answer_text(text))
    return found[-1].lower() if found else None


def _read_letter(text: str, num_options: int, options: Sequence[str]) -> str | None:
    answer = answer_text(text)
    alone = _LETTER_ALONE.match(answer)
    if alone and not re.match(r"(?:A|I)\s+[a-z]", answer):  # an article or a pronoun begins a sentence
        return alone[1]
    named = _LETTER_BOXED.findall(answer) or ["".join(found) for found in _LETTER_NAMED.findall(answer)]
    if named:
        return named[-1].upper()
    words = {letter for letter in _LETTER_WORD.findall(answer) if ord(letter) - ord("A") < num_options}
    if len(words) == 1:
        return words.pop()
    told = _find_options(answer, options)
    return chr(ord("A") + told[0]) if len(told) == 1 else None


def _find_options(answer: str, options: Sequence[str]) -> list[int]:
    """Return the places of the options whose text an answer holds as whole words, without those that are part of another one."""
    said, *wanted = (" ".join(["", *re.findall(r"\w+", text.casefold()), ""]) for text in (answer, *options))
    told = [number for number, words in enumerate(wanted) if words.strip() and words in said]
    return [
        number
        for number in told
        if not any(wanted[number] != wanted[other] and wanted[number] in wanted[other] for other in told)
    ]


def _read_rating(text: str) -> str | None:
    found = _RATING.findall(re.sub(r"/\s*10\b", "", answer_text(text)))
    return found[-1] if found else None


_READERS: dict[Kind, Callable[[str], str | None]] = {
    "choice": _read_choice,
    "truth": _read_truth,
    "rating": _read_rating,
}
