"""Servers that the project starts: a port for each, and the proof that an answer comes from our own process.

A server gets a random token when it is started and sends the token in a header with every answer to GET /health.
An answer without the token comes from another program that listens on the same port.
"""

import os
import socket

import httpx
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from arm_rl.core.errors import UserError
from arm_rl.core.http_clients import make_client

LOOPBACK = "127.0.0.1"
HEADER = "X-Server-Token"
VARIABLE = "ARM_RL_SERVER_TOKEN"  # environment variable with the token of a server that is a process of its own
HEALTH_SECONDS = 2.0  # for an answer of /health


class PortTaken(UserError):
    """A port that cannot be listened on; the message says why."""


def free_port(host: str = LOOPBACK) -> int:
    """Return a port of an interface that no program listens on."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def require_free_port(host: str, port: int) -> None:
    """Raise PortTaken if a server could not listen on this port."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host or None, None, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections do not count
            probe.bind((address[0], port, *address[2:]))
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "ports end at 65535"
        raise PortTaken(f"{host}:{port} cannot be listened on ({reason}): choose another port (--port)") from error


def server_url(host: str, port: int) -> str:
    """Return the URL of a server that listens on `host`; for all interfaces, the URL on the loopback interface."""
    host = {"": LOOPBACK, "0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_healthy(url: str, token: str) -> bool:
    """Return whether the server at `url` is healthy.

    Args:
        url: Address of the server, without a path.
        token: Token that the server was started with.

    Raises:
        PortTaken: If another program answers.
    """
    try:
        with make_client(timeout=HEALTH_SECONDS) as client:
            response = client.get(f"{url}/health")
    except httpx.TransportError:
        return False
    if response.headers.get(HEADER) != token:
        raise PortTaken(f"{url} is answered by another program: choose another port (--port)")
    return response.status_code == httpx.codes.OK


class HealthToken:
    """ASGI middleware that adds the server's token to answers to GET /health."""

    def __init__(self, app: ASGIApp, token: str | None = None) -> None:
        """Prepare the middleware.

        Args:
            app: Application that answers the requests.
            token: Token of the server; by default the environment's.
        """
        self._app = app
        self._header = (HEADER.lower().encode(), (token or os.environ[VARIABLE]).encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def send_with_token(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), self._header]}
            await send(message)

        is_health = scope["type"] == "http" and scope["path"] == "/health"
        await self._app(scope, receive, send_with_token if is_health else send)
