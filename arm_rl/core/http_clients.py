"""HTTP clients of the project: the only module that decides which requests go through a proxy.

Requests to this machine and to its cluster are sent directly. All others take the proxies that the environment names:
HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY. `arm_rl.judge.reward_client` follows the same rule with its own code,
because the file is copied into other trainers.
"""

import asyncio
import functools
import ipaddress
import re
import socket
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, Generic, TypeVar
from urllib.request import getproxies, proxy_bypass

import httpx
import psutil

from arm_rl.core.errors import UserError

TransportT = TypeVar("TransportT")

PRIVATE_DOMAINS = (".localhost", ".local", ".internal", ".svc")  # names that no public DNS server resolves


class ProxyError(UserError):
    """A proxy of the environment that cannot be used; the message says what would be right."""


def make_client(*, base_url: str = "", retries: int = 0, **settings: Any) -> httpx.Client:
    """Return a client that sends requests to the cluster directly and all others through the environment's proxies.

    Args:
        base_url: Address that relative URLs are joined to.
        retries: Number of further attempts to open a connection.
        settings: Further arguments of `httpx.Client`.

    Raises:
        ProxyError: If requests to `base_url` need a proxy that cannot be used.
    """
    limits = httpx.Limits(max_connections=None)  # callers limit the number of requests
    routes = _Routes(lambda proxy: httpx.HTTPTransport(proxy=proxy, limits=limits, retries=retries))
    if base_url:
        check_proxy(base_url)
    return httpx.Client(base_url=base_url, transport=_Transport(routes), **settings)


def make_async_client(*, base_url: str = "", library: ModuleType = httpx, **settings: Any) -> Any:
    """Return the asynchronous client with the rules of `make_client`.

    Args:
        base_url: Address that relative URLs are joined to.
        library: `httpx` or its successor `httpx2`, which has the same interface.
        settings: Further arguments of `httpx.AsyncClient`.

    Returns:
        The `AsyncClient` of that library.

    Raises:
        ProxyError: If requests to `base_url` need a proxy that cannot be used.
    """
    limits = library.Limits(max_connections=None)
    routes = _Routes(lambda proxy: library.AsyncHTTPTransport(proxy=proxy, limits=limits))
    if base_url:
        check_proxy(base_url)
    return library.AsyncClient(base_url=base_url, transport=_AsyncTransport(routes), **settings)


def check_proxy(url: str) -> None:
    """Raise ProxyError if requests to `url` need a proxy that cannot be used."""
    target = httpx.URL(url)
    proxy = find_proxy(target)
    if proxy is not None:
        _open(lambda proxy: httpx.HTTPTransport(proxy=proxy), proxy, target.host).close()


def find_proxy(url: httpx.URL) -> str | None:
    """Return the proxy for requests to `url`, or None if they are sent directly."""
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(url.netloc.decode()) or is_in_cluster(url.host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


@functools.lru_cache(maxsize=1024)
def is_in_cluster(host: str) -> bool:
    """Return whether a host is this machine, or has a name or addresses that only a private network knows.

    Args:
        host: Name or IP address, an IPv6 address without brackets.
    """
    name = host.rstrip(".").lower()
    if not set(name) & {".", ":"} or name.endswith(PRIVATE_DOMAINS):
        return True
    try:
        addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):  # a name that only the proxy can resolve
        return False
    own = {entry.address for entries in psutil.net_if_addrs().values() for entry in entries}
    return all(address in own or not ipaddress.ip_address(address).is_global for address in addresses)


class _Routes(Generic[TransportT]):
    """A client's transports: one for each proxy, and one for requests that are sent directly."""

    def __init__(self, open_transport: Callable[[str | None], TransportT]) -> None:
        self._open_transport = open_transport
        self._opening = threading.Lock()  # requests of many threads share a client
        self._by_proxy: dict[str | None, TransportT] = {}
        self._by_host: dict[tuple[str, str, int | None], TransportT] = {}

    def known(self, url: Any) -> TransportT | None:
        """Return the transport for a host that was asked before."""
        return self._by_host.get((url.scheme, url.host, url.port))

    def find(self, url: Any) -> TransportT:
        """Return the transport for `url`; may look up the host's name.

        Raises:
            ProxyError: If the environment's proxy for `url` cannot be used.
        """
        with self._opening:
            if (transport := self.known(url)) is None:
                proxy = find_proxy(httpx.URL(str(url)))
                if proxy not in self._by_proxy:
                    self._by_proxy[proxy] = _open(self._open_transport, proxy, url.host)
                transport = self._by_host[url.scheme, url.host, url.port] = self._by_proxy[proxy]
        return transport

    @property
    def opened(self) -> list[TransportT]:
        """Transports that were used."""
        return list(self._by_proxy.values())


def _open(open_transport: Callable[[str | None], TransportT], proxy: str | None, host: str) -> TransportT:
    """Return a transport through `proxy`, or a direct one for None.

    Raises:
        ProxyError: If the proxy cannot be used.
    """
    try:
        if proxy is not None:
            httpx.Proxy(proxy)  # reports a wrong scheme in the same way for every library
        return open_transport(proxy)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        shown = re.sub(r"//[^@/]*@", "//", str(proxy))  # without a password
        needed = "the package socksio is missing" if isinstance(error, ImportError) else str(error)
        raise ProxyError(
            f"requests to {host} go through the proxy {shown} of the environment, which cannot be used: {needed}; "
            "set another proxy (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY), or add the host to NO_PROXY"
        ) from error


class _Transport(httpx.BaseTransport):
    """Sends each request through the transport of its host."""

    def __init__(self, routes: _Routes[httpx.HTTPTransport]) -> None:
        self._routes = routes

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._routes.find(request.url).handle_request(request)

    def close(self) -> None:
        for transport in self._routes.opened:
            transport.close()


class _AsyncTransport(httpx.AsyncBaseTransport):
    """Sends each request through the transport of its host."""

    def __init__(self, routes: _Routes[httpx.AsyncHTTPTransport]) -> None:
        self._routes = routes

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        transport = self._routes.known(request.url)
        if transport is None:  # a name server may take its time
            transport = await asyncio.to_thread(self._routes.find, request.url)
        return await transport.handle_async_request(request)

    async def aclose(self) -> None:
        for transport in self._routes.opened:
            await transport.aclose()
