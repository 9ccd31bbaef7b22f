"""The words by which pages are found: what is indexed of a page's text, and what is asked of a query."""

import re
import unicodedata

MAX_QUERY_TERMS = 64  # of one query: what a policy writes has no natural end

# Scripts that put no blanks between words, or glue endings to them: Thai, Lao, Khmer, Myanmar, kana, Han, Hangul.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
_RUNS = re.compile(rf"(?P<unspaced>[{_UNSPACED}]+)|[^\W_{_UNSPACED}]+")


def page_terms(text: str) -> str:
    """The terms of a page, with blanks between them.

    Words are as they stand, in lower case; of scripts without blanks each character and each pair of neighbours is a term, so that any part
    of a sentence is found without a dictionary.
    """
    terms: list[str] = []
    for run, unspaced in _split_runs(text):
        terms += [*run, *_character_pairs(run)] if unspaced else [run]
    return " ".join(terms)


def query_terms(query: str) -> str:
    """The terms of a query, each once; empty where it has no letter and no digit."""
    terms: dict[str, None] = {}
    for run, unspaced in _split_runs(query):
        terms.update(dict.fromkeys(_character_pairs(run) if unspaced and len(run) > 1 else [run]))
        if len(terms) >= MAX_QUERY_TERMS:
            break
    return " ".join(list(terms)[:MAX_QUERY_TERMS])


def _split_runs(text: str) -> list[tuple[str, bool]]:
    """Split a text into words, and into runs of characters of scripts without blanks."""
    normal = unicodedata.normalize("NFKC", text).casefold()
    return [(match.group(), match.group("unspaced") is not None) for match in _RUNS.finditer(normal)]


def _character_pairs(run: str) -> list[str]:
    return [run[start : start + 2] for start in range(len(run) - 1)]
