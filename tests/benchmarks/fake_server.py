"""An OpenAI-compatible server whose answers are a function of the request."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any]], str | int]  # of a request's body: what the model says, or a status that refuses it


class FakeServer:
    """Serves until it is closed; keeps the requests."""

    def __init__(self, answer: Answer, models: list[dict[str, Any]] | None = None) -> None:
        self.answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        listed = {"data": [{"id": "judge"}] if models is None else models}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._send(200, listed)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.bodies.append(body)
                outer.keys.append(self.headers.get("Authorization"))
                said = outer.answer(body)
                if isinstance(said, int):
                    self._send(said, {"error": "refused"})
                else:
                    self._send(
                        200, {"choices": [{"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}]}
                    )

            def _send(self, status: int, answer: dict[str, Any]) -> None:
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: object) -> None:
                """Says nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def text_of(body: dict[str, Any]) -> str:
    """All text of a request."""
    return "\n".join(
        part["text"] for message in body["messages"] for part in message["content"] if part["type"] == "text"
    )
