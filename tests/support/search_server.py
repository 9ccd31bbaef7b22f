"""A search engine on loopback for the tests, which answers as it is told: also wrongly, late, or not at all."""

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.support.http_server import LoopbackServer, body_of, send


@dataclass
class SearchServer:
    """What it answers next, and what it was asked."""

    url: str
    # the last one is repeated: a JSON value, or a function of the handler
    answers: list[Any] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Note the request and answer it."""
        self.requests.append(
            {
                "method": handler.command,
                "path": handler.path,
                "headers": dict(handler.headers),
                "body": body_of(handler),
                "time": time.monotonic(),
            }
        )
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(answer):
            answer(handler)
        else:
            reply(json.dumps(answer).encode())(handler)


def reply(body: bytes = b"", *, status: int = 200, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    """Return an answer with a status, a body and headers (`Retry_After="1"`)."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    def respond(handler: BaseHTTPRequestHandler) -> None:
        with contextlib.suppress(OSError):
            send(handler, body, status=status, headers=named)

    return respond


def drip(handler: BaseHTTPRequestHandler) -> None:
    """A byte every now and then, in the headers already."""
    with contextlib.suppress(OSError):
        for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 200:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            time.sleep(0.05)


def drip_body(handler: BaseHTTPRequestHandler) -> None:
    """The same after the headers."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    with contextlib.suppress(OSError):
        for _ in range(200):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    """Ends the connection without a word."""
    handler.connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def search_server() -> Iterator[SearchServer]:
    """Run a search engine in threads."""
    with LoopbackServer(lambda handler: server.answer(handler)) as http:
        server = SearchServer(url=http.url)
        yield server
