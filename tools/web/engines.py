"""The search engines that can be asked: how each takes a query, and how its answer is read. What it sends is cleaned and never trusted."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

SearchResult = tuple[str, str, str]  # title, link, text: cleaned and cut

_TAG = re.compile(r"<(?=/?\s*(?:think|answer|tool_call|tool_response|tools)\b)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchEngine:
    """How one kind of search engine is asked and read."""

    base_url: str | None  # None: each installation has its own
    key_variable: str | None  # the environment variable with the key; None: it takes no key
    request: Callable[[str, str, int, str], httpx.Request]  # base URL, query, number of results, key
    read: Callable[[dict[str, Any]], list[SearchResult] | None]  # None: not what this engine sends


def _serper_request(base_url: str, query: str, num_results: int, key: str) -> httpx.Request:
    return httpx.Request(
        "POST", f"{base_url}/search", json={"q": query, "num": num_results}, headers={"X-API-KEY": key}
    )


def _read_serper(content: dict[str, Any]) -> list[SearchResult] | None:
    answer, entity = content.get("answerBox"), content.get("knowledgeGraph")
    organic = _dicts(content.get("organic"))
    if organic is None and not isinstance(answer, dict) and not isinstance(entity, dict):
        return None
    found = []
    if isinstance(answer, dict):
        found.append(_make_result(answer, "title", "link", "answer", "snippet"))
    if isinstance(entity, dict):
        found.append(_make_result(entity, "title", "descriptionLink", "type", "description"))
    return found + [_make_result(result, "title", "link", "date", "snippet") for result in organic or []]


def _searxng_request(base_url: str, query: str, num_results: int, key: str) -> httpx.Request:
    return httpx.Request("GET", f"{base_url}/search", params={"q": query, "format": "json"})


def _read_searxng(content: dict[str, Any]) -> list[SearchResult] | None:
    results = _dicts(content.get("results"))
    if results is None:
        return None
    boxes = [_make_result(box, "infobox", "id", "content") for box in _dicts(content.get("infoboxes")) or []]
    return boxes + [_make_result(result, "title", "url", "content") for result in results]


def _dicts(value: Any) -> list[dict[str, Any]] | None:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else None


def _make_result(result: dict[str, Any], title: str, link: str, *texts: str) -> SearchResult:
    parts = (clean(result.get(key)) for key in texts)
    return clean(result.get(title)), clean(result.get(link)), ". ".join(part for part in parts if part)


def clean(text: Any) -> str:
    """One line without control, format and broken characters, and without what looks like the tags of a turn; "" for what is no text."""
    if not isinstance(text, str):
        return ""
    spaced = "".join(" " if character.isspace() else character for character in text[:20_000])
    kept = "".join(character for character in spaced if not unicodedata.category(character).startswith("C"))
    return _TAG.sub("< ", " ".join(kept.split()))


ENGINES: dict[str, SearchEngine] = {
    "serper": SearchEngine(
        base_url="https://google.serper.dev", key_variable="SERPER_API_KEY", request=_serper_request, read=_read_serper
    ),
    "searxng": SearchEngine(base_url=None, key_variable=None, request=_searxng_request, read=_read_searxng),
}
