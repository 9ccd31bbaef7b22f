"""The options of jobs that ask an OpenAI-compatible server."""

import argparse
import os
from typing import TYPE_CHECKING

import httpx

from arm_rl.core.errors import UserError
from arm_rl.core.http_clients import make_client

if TYPE_CHECKING:
    from arm_rl.judge.backends import Server


class CommandError(UserError):
    """A command line that cannot be followed."""


def add_server_options(parser: argparse.ArgumentParser, *, where: str) -> None:
    """Add the options of a server; `where` is the title of their section in the help."""
    server = parser.add_argument_group(where)
    server.add_argument("--served-model", metavar="NAME", help="by default the only one that the server offers")
    server.add_argument("--concurrency", type=int, default=32, help="requests at a time (default: %(default)s)")
    server.add_argument(
        "--timeout", type=float, default=300.0, metavar="SECONDS", help="of one request (default: %(default)g)"
    )
    server.add_argument(
        "--retries", type=int, default=5, help="of a request that the server could not take (default: %(default)s)"
    )
    server.add_argument("--api-key-variable", metavar="NAME", help="environment variable that holds the server's key")


def read_server(url: str, arguments: argparse.Namespace, *, with_source: bool = False) -> "tuple[Server, str | None]":
    """The server, and from where it loaded its model, which is asked for only if need be.

    Raises:
        CommandError: there is no such key, or the server does not say what must be known.
    """
    if arguments.concurrency < 1:
        raise CommandError(f"--concurrency: at least 1, not {arguments.concurrency}")
    key = None
    if arguments.api_key_variable:
        key = os.environ.get(arguments.api_key_variable)
        if not key:
            raise CommandError(f"--api-key-variable: there is no environment variable {arguments.api_key_variable}")
    name, source = arguments.served_model, None
    if not name or with_source:
        offered = _list_models(url, key)
        if not name and len(offered) != 1:
            raise CommandError(f"--served-model: one of {', '.join(offered)}")
        name = name or next(iter(offered))
        source = offered.get(name)
    from arm_rl.judge.backends import Server

    server = Server(
        url=url,
        model=name,
        api_key=key,
        concurrency=arguments.concurrency,
        timeout_seconds=arguments.timeout,
        num_retries=arguments.retries,
    )
    return server, source


def _list_models(url: str, key: str | None) -> dict[str, str | None]:
    """Return the server's models, and where it loaded each from if it reports that (vLLM does)."""
    try:
        with make_client(headers={"Authorization": f"Bearer {key}"} if key else None, timeout=30) as client:
            response = client.get(f"{url.rstrip('/')}/models")
        return {one["id"]: one.get("root") for one in response.raise_for_status().json()["data"]}
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        raise CommandError(
            f"{url}: no list of models ({error!r}): name --served-model and --processor, or is it another address?"
        ) from error
