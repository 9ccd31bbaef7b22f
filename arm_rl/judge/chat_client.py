"""A chat server that speaks OpenAI's protocol: one completion at a time, asked again where the server could not take it."""

import asyncio
import logging
import random
from typing import Any

import httpx

from arm_rl.core.http_clients import make_async_client

logger = logging.getLogger(__name__)

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})  # refusals that another try may not meet
LONGEST_WAIT = 60.0  # seconds between two tries


class ServerError(RuntimeError):
    """The server refused a request or gave no usable answer; the message holds what it said."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status  # of a refusal


class ChatServer:
    """The connection to a server."""

    def __init__(
        self, base_url: str, *, timeout_seconds: float = 120.0, num_retries: int = 0, api_key: str | None = None
    ) -> None:
        """Prepares.

        Args:
            base_url: of the server, with its `/v1`.
            num_retries: of a request that got no answer or was refused for now; the time between tries doubles, and the server's own
                `Retry-After` counts where it is longer.
            api_key: sent as bearer token.
        """
        self.url = base_url.rstrip("/")
        self._num_retries = num_retries
        self._client: httpx.AsyncClient = make_async_client(
            base_url=self.url,
            timeout=timeout_seconds,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
        )

    async def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The first choice of a chat completion, with its `message` and `finish_reason`.

        Raises:
            ServerError: the server refused it, or its answer is no chat completion.
            httpx.TransportError: the server did not answer.
        """
        response = await self._post(body)
        if response.status_code != httpx.codes.OK:
            raise ServerError(
                f"{response.request.url}: {response.status_code}: {response.text[:2000]}", response.status_code
            )
        try:
            choice = response.json()["choices"][0]
            choice["message"], choice["finish_reason"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ServerError(
                f"{response.request.url}: not a chat completion ({error!r}): {response.text[:2000]}"
            ) from error
        return choice

    async def _post(self, body: dict[str, Any]) -> httpx.Response:
        """The server's answer, after as many tries as are allowed."""
        for tries in range(self._num_retries + 1):
            wait = min(2.0**tries, LONGEST_WAIT) * random.uniform(0.5, 1.0)  # not all requests at once
            try:
                response = await self._client.post("/chat/completions", json=body)
            except httpx.TransportError as error:
                if tries == self._num_retries:
                    raise
                reason = repr(error)
            else:
                if response.status_code not in PASSING or tries == self._num_retries:
                    return response
                reason = str(response.status_code)
                wait = max(wait, _retry_after(response))
            logger.warning("%s: %s; asked again in %.1f s", self.url, reason, wait)
            await asyncio.sleep(wait)
        raise AssertionError("the last try returns or raises")

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the server asks to wait; 0 where it does not say, or names a date."""
    written = response.headers.get("Retry-After", "")
    return min(float(written), LONGEST_WAIT) if written.isdigit() else 0.0
