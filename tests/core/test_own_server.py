"""Ports of servers, and the token that tells our own server from another program."""

import socket

import httpx
import pytest
from fastapi import FastAPI

from arm_rl.core.own_server import HEADER, HealthToken, PortTaken, is_healthy, require_free_port, server_url
from tests.support.http_server import LoopbackServer, send


@pytest.mark.parametrize("interface", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_a_program_listens_on_is_taken(interface):
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as Ray Serve's proxies: they would share the port
        other.bind((interface, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"127\.0\.0\.1:{port} cannot be listened on .*in use.*--port"):
            require_free_port("127.0.0.1", port)
    require_free_port("127.0.0.1", port)


def test_a_port_beyond_all_ports_is_refused():
    with pytest.raises(PortTaken, match="65535"):
        require_free_port("127.0.0.1", 70000)


def test_only_our_own_server_is_healthy(free_port):
    with LoopbackServer(lambda handler: send(handler, headers={HEADER: "ours"})) as server:
        assert is_healthy(server.url, "ours")
        with pytest.raises(PortTaken, match="answered by another program"):
            is_healthy(server.url, "another")
    with LoopbackServer(lambda handler: send(handler, status=503, headers={HEADER: "ours"})) as server:
        assert not is_healthy(server.url, "ours")
    with LoopbackServer(send) as server, pytest.raises(PortTaken):
        is_healthy(server.url, "ours")
    assert not is_healthy(f"http://127.0.0.1:{free_port}", "ours")


async def test_the_middleware_sends_the_token_with_health_alone(monkeypatch):
    monkeypatch.setenv("ARM_RL_SERVER_TOKEN", "ours")
    app = FastAPI()
    app.add_middleware(HealthToken)
    app.get("/health")(lambda: {"status": "ok"})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
        answers = [await client.get(path) for path in ("/health", "/docs")]
    assert [answer.headers.get(HEADER) for answer in answers] == ["ours", None]


def test_urls_of_interfaces():
    assert server_url("0.0.0.0", 80) == "http://127.0.0.1:80"
    assert server_url("::1", 80) == "http://[::1]:80"
    assert server_url("node7", 80) == "http://node7:80"
