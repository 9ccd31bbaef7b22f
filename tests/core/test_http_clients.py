"""Which requests go through a proxy, and what a proxy that cannot be used is answered with."""

import importlib.util
import socket

import httpx
import httpx2
import pytest

from arm_rl.core.http_clients import ProxyError, find_proxy, is_in_cluster, make_async_client, make_client
from arm_rl.judge import reward_client
from tests.support.http_server import LoopbackServer, send

NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
NEAR = ["127.0.0.1", "127.8.9.1", "::1", "localhost", "node7", "10.1.2.3", "172.20.0.1", "192.168.3.4", "169.254.1.1"]
NEAR += ["100.64.0.9", "fd00::7", "serve.ray.svc", "head.default.svc.cluster.local", "vm.c.project.internal"]
FAR = ["8.8.8.8", "2606:4700:4700::1111", "192.0.2.example", "judge.example"]


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    """No proxies of whoever runs the tests, and no name server: names of `.example` are unknown."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    known = socket.getaddrinfo

    def lookup(host, *arguments, **settings):
        if str(host).endswith(".example"):
            raise socket.gaierror(-2, "Name or service not known")
        return known(host, *arguments, **settings)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    is_in_cluster.cache_clear()


@pytest.fixture
def proxy(monkeypatch):
    """A proxy that answers every request itself, and keeps the addresses that it was asked for."""
    asked = []

    def respond(handler):
        asked.append(handler.path)
        send(handler, b"from the proxy")

    with LoopbackServer(respond) as server:
        monkeypatch.setenv("HTTP_PROXY", server.url)
        yield asked


@pytest.mark.parametrize(("hosts", "near"), [(NEAR, True), (FAR, False)])
def test_hosts_of_the_cluster_are_known_by_the_library_and_by_the_copied_file(hosts, near):
    assert {host: is_in_cluster(host) for host in hosts} == dict.fromkeys(hosts, near)
    assert {host: reward_client._is_in_cluster(host) for host in hosts} == dict.fromkeys(hosts, near)


def test_a_name_with_a_private_address_is_in_the_cluster(monkeypatch):
    entry = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(*entry, ("10.0.0.7", 0))])
    assert is_in_cluster("node7.hpc.example")
    assert reward_client._is_in_cluster("node7.hpc.example")


def test_all_other_hosts_take_the_proxy_of_the_environment(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "proxy.example:3128")
    monkeypatch.setenv("ALL_PROXY", "http://all.example:1")
    monkeypatch.setenv("NO_PROXY", "mirror.example,.inside.example")
    assert find_proxy(httpx.URL("https://hub.example/x")) == "http://proxy.example:3128"
    assert find_proxy(httpx.URL("http://hub.example/x")) == "http://all.example:1"
    for host in ("mirror.example", "a.inside.example", "127.0.0.1:8000", "[::1]:8000"):
        assert find_proxy(httpx.URL(f"https://{host}/x")) is None


def test_a_client_asks_each_host_by_its_own_way(proxy):
    with LoopbackServer(lambda handler: send(handler, b"itself")) as server, make_client() as client:
        assert client.get(server.url).text == "itself"
        assert client.get("http://outside.example/a").text == "from the proxy"
    assert proxy == ["http://outside.example/a"]


@pytest.mark.parametrize("library", [httpx, httpx2])
async def test_an_asynchronous_client_asks_each_host_by_its_own_way(proxy, library):
    async with make_async_client(library=library) as client:
        with LoopbackServer(lambda handler: send(handler, b"itself")) as server:
            assert (await client.get(server.url)).text == "itself"
        assert (await client.get("http://outside.example/b")).text == "from the proxy"
    assert proxy == ["http://outside.example/b"]


@pytest.mark.parametrize(
    ("proxy", "reason"),
    [
        pytest.param(
            "socks5://user:secret@proxy.example:1080",
            "the package socksio is missing",
            marks=pytest.mark.skipif(importlib.util.find_spec("socksio") is not None, reason="socksio is installed"),
        ),
        ("socks://proxy.example:1080", "Unknown scheme"),
        ("http://proxy.example:port", "Invalid port"),
    ],
)
async def test_a_proxy_that_cannot_be_used_is_an_error_for_outside_addresses_only(monkeypatch, proxy, reason):
    monkeypatch.setenv("ALL_PROXY", proxy)
    with LoopbackServer(lambda handler: send(handler, b"itself")) as server, make_client(base_url=server.url) as client:
        assert client.get("/").text == "itself"
        with pytest.raises(ProxyError, match=reason):
            client.get("http://outside.example")
    for library in (httpx, httpx2):
        async with make_async_client(library=library) as client:
            with pytest.raises(ProxyError, match=reason):
                await client.get("http://outside.example")
        with pytest.raises(ProxyError, match=reason) as raised:
            make_async_client(library=library, base_url="http://outside.example/v1")
        assert "outside.example" in str(raised.value)
        assert "secret" not in str(raised.value)
