"""OpenAI-compatible servers in place of a model: answers by a function of the request, or one scripted answer after the other."""

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.support.http_server import LoopbackServer, body_of, send

# From a request's body: what the model says, a status that refuses the request, or a status and an answer's complete body.
Answer = Callable[[dict[str, Any]], str | int | tuple[int, Any]]


class FakeServer(LoopbackServer):
    """Chat server that keeps the requests."""

    def __init__(self, answer: Answer, models: list[dict[str, Any]] | None = None) -> None:
        self.answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.keys: list[str | None] = []
        self.headers: dict[str, str] = {}  # of answers
        self._models = [{"id": "judge"}] if models is None else models
        super().__init__(self._respond, keeps_connections=True)
        self.url += "/v1"

    def _respond(self, handler: BaseHTTPRequestHandler) -> None:
        if handler.command == "GET":
            send(handler, json.dumps({"data": self._models}).encode())
            return
        body = body_of(handler)
        self.bodies.append(body)
        self.paths.append(handler.path)
        self.keys.append(handler.headers["Authorization"])
        said = self.answer(body)
        if isinstance(said, int):
            said = (said, {"error": "refused"})
        elif isinstance(said, str):
            said = (200, completion(said))
        status, content = said
        text = content if isinstance(content, str) else json.dumps(content)
        send(handler, text.encode(), status=status, headers=self.headers)


class ScriptedServer(FakeServer):
    """Chat server that gives its answers in the order in which they were written down."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any]] = []  # status, and a JSON value or a text
        super().__init__(lambda body: self.answers.pop(0))

    def says(self, content: str | None, *, calls: list | None = None, finish_reason: str = "stop") -> None:
        """Append an answer of the model."""
        self.answers.append((200, completion(content, calls or [], finish_reason)))

    def calls(self, content: str | None, arguments: str, name: str) -> None:
        """Append an answer whose call is taken out of the text, as servers do."""
        made = {"type": "function", "function": {"name": name, "arguments": arguments}}
        self.says(content, calls=[made], finish_reason="tool_calls")


def completion(content: str | None, calls: list | None = None, finish_reason: str = "stop") -> dict[str, Any]:
    """Return a server's answer with one message of the model."""
    message = {"role": "assistant", "content": content} | ({} if calls is None else {"tool_calls": calls})
    return {"choices": [{"message": message, "finish_reason": finish_reason}]}


def text_of(body: dict[str, Any]) -> str:
    """Return all text of a request."""
    return "\n".join(
        part["text"] for message in body["messages"] for part in message["content"] if part["type"] == "text"
    )
