"""An HTTP server on the loopback interface whose answers are a function of the request."""

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

Respond = Callable[[BaseHTTPRequestHandler], None]


class LoopbackServer:
    """Server that answers in threads until it is closed."""

    def __init__(self, respond: Respond, *, keeps_connections: bool = False) -> None:
        """Start to serve.

        Args:
            respond: called with each request's handler, whatever the method; writes the answer.
            keeps_connections: whether a connection may carry several requests.
        """

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1" if keeps_connections else "HTTP/1.0"

            def do_POST(self) -> None:
                respond(self)

            do_GET = do_HEAD = do_POST

            def log_message(self, *arguments: object) -> None:
                """Log nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False  # an answer may never end
            request_queue_size = 64

        self._server = Server(("127.0.0.1", 0), Handler)
        # The interval is how long `close` waits: half a second by default, for every test with a server.
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """Stop to serve; from now on connections are refused."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def body_of(handler: BaseHTTPRequestHandler) -> Any:
    """Return the JSON value of a request's body, or None for a request without one."""
    length = int(handler.headers.get("Content-Length", 0))
    return json.loads(handler.rfile.read(length)) if length else None


def send(
    handler: BaseHTTPRequestHandler,
    content: bytes = b"",
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Answer a request with these bytes."""
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content)
