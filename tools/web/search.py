"""Web search: the top results of a search engine as numbered snippets. The whole call is bounded in time, and the answer in size."""

import asyncio
import json
import logging
import math
import os
import random
import re
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Annotated, Any

import httpx
from pydantic import Field

from arm_rl.core.errors import UserError
from arm_rl.core.http_clients import check_proxy, make_async_client
from arm_rl.core.session import ToolResult
from tools.base import ArgumentError, Execution, Tool, ToolContext
from tools.execution.tool_loop import tool_loop
from tools.web.cache import SearchCache
from tools.web.engines import ENGINES, SearchResult, clean

logger = logging.getLogger(__name__)

MAX_BYTES = 2 << 20  # of an engine's answer
MAX_CHARS = (150, 200, 450)  # of a title, a link and a text: five results stay within one tool response
HEADERS = {
    "User-Agent": "arm_rl",
    "Accept": "application/json",
    "Accept-Encoding": "identity",
}  # identity: the bytes read are all there are
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 8.0  # between two tries; the first is doubled each time


class SearchError(Exception):
    """The engine gave nothing; the message, for the policy too, says why in words of our own: an engine's may hold what is secret."""

    def __init__(self, message: str, *, retryable: bool = False, wait_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.retryable = retryable  # another try may help ...
        self.wait_seconds = wait_seconds  # ... after as long as the engine asks for


class WebSearchTool(Tool):
    """Asks Serper or SearXNG. Failed tries are repeated, answers may be kept on disk, and the whole call is bounded in time.

    The key is read from the environment for each request and kept nowhere else, so that it cannot reach a file, a log or a pickle.
    """

    name = "web_search"
    description = "Searches the web and shows the titles, links and snippets of the top results."
    execution = Execution(isolation="thread")

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Arguments:
        """What to search for."""

        query: Annotated[str, Field(max_length=1000, description="A search query that can be understood by itself.")]

    def __init__(
        self,
        *,
        engine: str = "serper",
        base_url: str | None = None,
        api_key_variable: str | None = None,
        num_results: int = 5,
        timeout_seconds: float = 20.0,
        retries: int = 3,
        calls_per_second: float | None = None,
        cache: str | None = None,
        cache_days: float = 7.0,
    ) -> None:
        """Checks the configuration; connects with the first call.

        Args:
            engine: `serper`, or `searxng` (whose settings must list `json` among `search.formats`).
            base_url: where the engine answers, without `/search`; needed for `searxng`.
            api_key_variable: name of the environment variable with the key, in the processes that run the tool; SERPER_API_KEY.
            timeout_seconds: for a call with all its tries and waits.
            retries: tries after the first, where the engine is busy or cannot be reached.
            calls_per_second: requests that one process sends, at most.
            cache: a folder; the same query is then asked once in `cache_days`, by all processes that share it.
        """
        if engine not in ENGINES:
            raise UserError(f"engine: one of {', '.join(ENGINES)}, not {engine!r}")
        self.engine = engine
        self.base_url = _check_url(base_url or ENGINES[engine].base_url)
        check_proxy(self.base_url)
        self.key_variable = _check_key_variable(engine, api_key_variable or ENGINES[engine].key_variable)
        _check_range("num_results", num_results, 1, 20, int)
        _check_range("timeout_seconds", timeout_seconds, 0.1, 600)
        _check_range("retries", retries, 0, 10, int)
        _check_range("calls_per_second", 1 if calls_per_second is None else calls_per_second, 0.01, 1000)
        _check_range("cache_days", cache_days, 0, 3650)
        self.num_results, self.timeout_seconds, self.retries = num_results, timeout_seconds, retries
        self._seconds_apart = 1 / calls_per_second if calls_per_second else 0.0
        self._cache = SearchCache(cache, cache_days * 86400) if cache else None
        self._client: httpx.AsyncClient | None = None  # these three live on the tools' event loop
        # one request for the sessions that ask the same at the same time
        self._running: dict[str, asyncio.Task[list[SearchResult]]] = {}
        self._next_slot = 0.0

    def run(self, arguments: Arguments, context: ToolContext) -> ToolResult:
        """The results as text."""
        query = clean(arguments.query)
        if not query:
            raise ArgumentError("query: it is empty")
        key = json.dumps([self.engine, self.base_url, query, self.num_results])
        found = self._cache.get(key) if self._cache else None
        if found is None:
            try:
                found = tool_loop().wait(self._search_once(query))
            except TimeoutError:
                return ToolResult(
                    status="timeout",
                    text=f"Error: the search engine gave no answer within {self.timeout_seconds:g} seconds",
                )
            except SearchError as error:
                logger.warning("%s at %s: %s", self.engine, self.base_url, error)
                return ToolResult(status="failed", text=f"Error: {error}")
            if self._cache:
                self._cache.put(key, found)
        return ToolResult(status="ok", text=_as_text(found))

    def close(self) -> None:
        """Closes the connections."""
        if self._client is not None:
            tool_loop().wait(self._client.aclose())
            self._client = None

    async def _search_once(self, query: str) -> list[SearchResult]:
        task = self._running.get(query)
        if task is None:
            task = self._running[query] = asyncio.create_task(self._search(query))
            task.add_done_callback(lambda _: self._running.pop(query))
        return await asyncio.shield(task)

    async def _search(self, query: str) -> list[SearchResult]:
        """Asks until there is an answer; raises TimeoutError when the time is over."""
        deadline = asyncio.get_running_loop().time() + self.timeout_seconds
        async with asyncio.timeout_at(deadline):
            for retry in range(self.retries + 1):
                await self._wait_for_slot(deadline)
                try:
                    return await self._ask(query)
                except SearchError as error:
                    # spread: others wait for the same engine
                    backoff = FIRST_WAIT_SECONDS * 2**retry * random.uniform(0.5, 1)
                    wait = min(max(backoff, error.wait_seconds), LONGEST_WAIT_SECONDS)
                    left = deadline - asyncio.get_running_loop().time()
                    if not error.retryable or retry == self.retries or wait >= left:
                        raise
                    await asyncio.sleep(wait)
        raise AssertionError("the last try returns or raises")

    async def _wait_for_slot(self, deadline: float) -> None:
        now = asyncio.get_running_loop().time()
        slot = max(now, self._next_slot)
        if slot >= deadline:  # it is left to others
            raise TimeoutError
        self._next_slot = slot + self._seconds_apart
        await asyncio.sleep(slot - now)

    async def _ask(self, query: str) -> list[SearchResult]:
        if self._client is None:
            self._client = make_async_client(follow_redirects=False)  # a key is for one address
        engine = ENGINES[self.engine]
        secret = _read_key(self.key_variable) if self.key_variable else ""
        request = engine.request(self.base_url, query, self.num_results, secret)
        request.extensions["timeout"] = httpx.Timeout(self.timeout_seconds).as_dict()
        request.headers.update(HEADERS)
        try:
            response = await self._client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise SearchError(f"the search engine cannot be reached ({type(error).__name__})", retryable=True) from None
        try:
            _check_status(response)
            body = await _read_limited_body(response)
        finally:
            await response.aclose()
        found = engine.read(_as_dict(body))
        if found is None:
            raise SearchError("the search engine sent something else than results")
        if secret:  # an engine that sends the key back
            found = [
                (title.replace(secret, "***"), link.replace(secret, "***"), text.replace(secret, "***"))
                for title, link, text in found
            ]
        cut = [tuple(_cut(part, limit) for part, limit in zip(result, MAX_CHARS, strict=True)) for result in found]
        return [(title, link, text) for title, link, text in cut if title or link or text][: self.num_results]


def _check_status(response: httpx.Response) -> None:
    status = response.status_code
    if status == 200:
        return
    if status == 429 or status >= 500:
        said = "is busy" if status in (429, 503) else "failed"
        raise SearchError(
            f"the search engine {said} (HTTP {status})", retryable=True, wait_seconds=_retry_after(response)
        )
    if status in (401, 403):
        raise SearchError(
            f"the search engine refused the request (HTTP {status}); its key or its settings do not allow it"
        )
    raise SearchError(f"the search engine refused the request (HTTP {status})")


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the engine asks to wait: a number or a date; 0 where it says nothing that can be read."""
    said = response.headers.get("Retry-After", "")
    try:
        seconds = float(said) if said.strip().isdecimal() else parsedate_to_datetime(said).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


async def _read_limited_body(response: httpx.Response) -> bytes:
    body = bytearray()
    try:
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > MAX_BYTES:
                raise SearchError("the search engine sent too much")
    except httpx.HTTPError as error:
        raise SearchError(
            f"the connection to the search engine broke ({type(error).__name__})", retryable=True
        ) from None
    return bytes(body)


def _as_dict(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise SearchError("the search engine sent something else than results")
    return content


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def _as_text(found: list[SearchResult]) -> str:
    if not found:
        return "No results."
    blocks = ("\n".join(part for part in result if part) for result in found)
    return "\n\n".join(f"[{number}] {block}" for number, block in enumerate(blocks, start=1))


def _read_key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    # a header with anything else is refused by an error that shows it
    if not key or not key.isascii() or not key.isprintable():
        raise SearchError("the search engine has no key on this machine")
    return key


def _check_key_variable(engine: str, variable: str | None) -> str | None:
    if ENGINES[engine].key_variable is None:
        if variable is not None:
            raise UserError(f"api_key_variable: {engine} takes no key")
        return None
    if not isinstance(variable, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
        raise UserError("api_key_variable: the name of an environment variable is needed, and never the key itself")
    try:
        _read_key(variable)
    except SearchError:
        raise UserError(
            f"api_key_variable: set the environment variable {variable} to your key for {engine}, in every process that runs the tool"
        ) from None
    return variable


def _check_url(url: Any) -> str:
    if url is None:
        raise UserError("base_url: the address of your SearXNG is needed, such as http://localhost:8888")
    try:
        parts = httpx.URL(str(url))
        usable = parts.scheme in ("http", "https") and bool(parts.host)
    except httpx.InvalidURL:
        usable = False
    if not usable:
        raise UserError("base_url: an address such as https://host or http://host:port is needed")
    if parts.userinfo or parts.query or parts.fragment:
        raise UserError("base_url: only scheme, host, port and path; no user, password, query or fragment")
    return str(url).rstrip("/").removesuffix("/search")


def _check_range(name: str, value: Any, least: float, most: float, kind: type = float) -> None:
    fits = isinstance(value, int | float if kind is float else int) and not isinstance(value, bool)
    if not fits or not least <= value <= most:
        raise UserError(f"{name}: a {'whole ' if kind is int else ''}number from {least:g} to {most:g}, not {value!r}")
