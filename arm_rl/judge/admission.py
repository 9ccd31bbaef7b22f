"""Admission to the judge's service: the token, the size and the arrival of a body come before a request costs anything."""

import asyncio
import hmac

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HELD_BODIES = 32  # complete bodies of the largest size that may be held at a time, those of waiting requests included


class _RefusedError(Exception):
    def __init__(self, status: int, reason: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, headers or {}


class _ClientGoneError(Exception):
    """The client closed the connection before its body was complete."""


class Admission:
    """ASGI middleware that passes a request on with its complete body. Requests without a body, such as GET, pass at once."""

    def __init__(self, app: ASGIApp, *, token: str | None, max_body_bytes: int, body_seconds: float) -> None:
        """Store the limits.

        Args:
            app: Application behind the middleware.
            token: Token that every request with a body must bear; None accepts all requests.
            max_body_bytes: Size of the largest body.
            body_seconds: Seconds in which a body has to arrive.
        """
        self._app, self._token, self._max_bytes, self._seconds = app, token, max_body_bytes, body_seconds
        self._held = 0  # bytes of bodies that arrive or are worked on

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        body = bytearray()
        try:
            try:
                self._check_headers(dict(reversed(scope["headers"])))
                await self._receive_body(receive, body)
            except _RefusedError as refused:
                headers = {**refused.headers, "Connection": "close"}  # the rest of the body is not read
                await JSONResponse({"detail": refused.reason}, refused.status, headers)(scope, receive, send)
                return
            except _ClientGoneError:
                return
            await self._app(scope, _replay(bytes(body), receive), send)
        finally:
            self._held -= len(body)

    def _check_headers(self, headers: dict[bytes, bytes]) -> None:
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if self._token is not None and not (
            scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._token.encode())
        ):
            reason = "a valid access token is needed: Authorization: Bearer TOKEN"
            raise _RefusedError(401, reason, {"WWW-Authenticate": "Bearer"})
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_bytes:
            raise self._too_large()

    async def _receive_body(self, receive: Receive, body: bytearray) -> None:
        """Append the body to `body` as it arrives."""
        try:
            async with asyncio.timeout(self._seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _ClientGoneError
                    chunk, more = message.get("body", b""), message.get("more_body", False)
                    if len(body) + len(chunk) > self._max_bytes:
                        raise self._too_large()
                    if self._held + len(chunk) > _HELD_BODIES * self._max_bytes:
                        raise _RefusedError(429, "the bodies of other requests fill the memory", {"Retry-After": "1"})
                    body += chunk
                    self._held += len(chunk)
        except TimeoutError:
            raise _RefusedError(408, f"the body did not arrive within {self._seconds:g} seconds") from None

    def _too_large(self) -> _RefusedError:
        return _RefusedError(413, f"the body has more than {self._max_bytes} bytes")


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that delivers a body that has arrived, and then whatever the client sends."""
    sent = False

    async def deliver() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return deliver
