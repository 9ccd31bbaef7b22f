"""Connections to MCP servers, with the official client. All of it runs on the tools' event loop."""

import asyncio
import contextlib
import logging
import os
import sys
import weakref
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import IO, Any

from arm_rl.core.http_clients import ProxyError, make_async_client
from arm_rl.core.owner import tie_to_parent
from arm_rl.core.session import ToolResult
from tools.adapters.mcp_content import as_result

logger = logging.getLogger(__name__)

START_SECONDS = 60.0  # for a server to start and list its tools
PROBE_SECONDS = 5.0  # for a server that let a call run out of time to show that it still answers
CLOSE_SECONDS = 8.0  # for a server to end when asked to, and by force then
MAX_PAGES = 100  # of a list of tools


@dataclass(frozen=True, kw_only=True, slots=True)
class McpServer:
    """How a server is reached. It names environment variables and holds none of their values."""

    command: tuple[str, ...] = ()
    cwd: str | None = None
    url: str | None = None
    variables: tuple[tuple[str, str], ...] = ()  # (the server's variable or the header, our environment variable)

    @property
    def label(self) -> str:
        """For messages."""
        return self.url or " ".join(self.command)

    def values(self) -> dict[str, str]:
        """What `env` or `headers` lead to."""
        return {name: os.environ.get(variable, "") for name, variable in self.variables}


class McpError(Exception):
    """The server cannot be reached, died, or answered with an error of the protocol."""


@contextlib.asynccontextmanager
async def _connect_client(server: McpServer, errors: IO[str] | None, ended: asyncio.Event) -> AsyncIterator[Any]:
    """Open a client and shake hands; set `ended` when the server closes the connection."""
    import httpx2  # these take a second, which tools without a server need not spend
    from mcp import Client, StdioServerParameters
    from mcp.client.stdio import stdio_client
    from mcp.client.streamable_http import streamable_http_client

    async with contextlib.AsyncExitStack() as stack:
        if server.url is not None:
            client = await stack.enter_async_context(
                make_async_client(
                    base_url=server.url, library=httpx2, headers=server.values(), timeout=httpx2.Timeout(30, read=300)
                )
            )
            transport = streamable_http_client(server.url, http_client=client)
        else:
            program = sys.executable if server.command[0] == "python" else server.command[0]
            launch = tie_to_parent([program, *server.command[1:]])
            parameters = StdioServerParameters(command=launch[0], args=launch[1:], env=server.values(), cwd=server.cwd)
            transport = stdio_client(parameters, errlog=errors)  # type: ignore[arg-type]
        yield await stack.enter_async_context(Client(_watch_transport(transport, ended), cache=None))


@contextlib.asynccontextmanager
async def _watch_transport(transport: Any, ended: asyncio.Event) -> AsyncIterator[Any]:
    """Open the transport and set `ended` when the server's stream ends."""
    import anyio

    async with transport as (read, write), anyio.create_task_group() as group:
        forward, received = anyio.create_memory_object_stream[Any](0)

        async def pump() -> None:
            async with forward:
                with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                    async for message in read:
                        await forward.send(message)
            ended.set()

        group.start_soon(pump)
        yield received, write
        group.cancel_scope.cancel()


async def list_tools(server: McpServer, errors: IO[str] | None) -> dict[str, Any]:
    """What the server offers, by name; raises McpError, and TimeoutError when its process has ended."""
    from mcp import MCPError

    tools: dict[str, Any] = {}
    try:
        async with asyncio.timeout(START_SECONDS), _connect_client(server, errors, asyncio.Event()) as client:
            cursor = None
            for _ in range(MAX_PAGES):
                page = await client.list_tools(cursor=cursor)
                tools |= {tool.name: tool for tool in page.tools}
                cursor = page.next_cursor
                if cursor is None:
                    break
    except TimeoutError:
        raise
    except Exception as error:
        first = _first_error(error)
        said = str(first) if isinstance(first, MCPError | OSError | ProxyError) else type(first).__name__
        raise McpError(f"it does not answer as an MCP server: {said}") from error
    return tools


def _first_error(error: BaseException) -> BaseException:
    """Return the first error inside nested exception groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class Connection:
    """This process's connection to a server: made when needed, and again after it ended."""

    def __init__(self, server: McpServer) -> None:
        self.server = server
        self.users: weakref.WeakSet[Any] = weakref.WeakSet()
        self._client: asyncio.Future[Any] | None = None
        self._ended = asyncio.Event()  # the server closed it, or it is not to be used any more
        self._tasks: set[asyncio.Task[None]] = set()  # each keeps a connection open, or closes one

    async def call(self, name: str, arguments: dict[str, Any], timeout: float) -> ToolResult:
        """Calls a tool; raises TimeoutError and McpError."""
        from mcp import MCPError
        from mcp_types import CONNECTION_CLOSED

        async with asyncio.timeout(timeout):
            client, ended = await self._connect()
            try:
                return as_result(await client.call_tool(name, arguments))
            except MCPError as error:
                if error.code == CONNECTION_CLOSED or "Session terminated" in error.message:
                    ended.set()
                    raise McpError("its server ended during the call") from None
                raise McpError(error.message) from None
            except asyncio.CancelledError:  # the time is over
                self._start(self._replace_if_silent(client, ended))
                raise

    async def _connect(self) -> tuple[Any, asyncio.Event]:
        if self._client is None or self._ended.is_set():
            self._ended, self._client = asyncio.Event(), asyncio.get_running_loop().create_future()
            self._start(self._hold_open(self._client, self._ended))
        ended = self._ended
        return await asyncio.shield(self._client), ended

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _hold_open(self, client: asyncio.Future[Any], ended: asyncio.Event) -> None:
        """Open the connection and close it after `ended` is set: the same task must do both."""
        try:
            async with contextlib.AsyncExitStack() as stack:
                async with asyncio.timeout(START_SECONDS):
                    opened = await stack.enter_async_context(_connect_client(self.server, sys.__stderr__, ended))
                client.set_result(opened)
                await ended.wait()
        except Exception as error:
            if client.done():
                logger.warning("%s: the connection broke: %s", self.server.label, type(_first_error(error)).__name__)
            else:
                client.set_exception(McpError(f"its server does not answer ({type(_first_error(error)).__name__})"))
        finally:
            ended.set()
            client.cancel()

    async def _replace_if_silent(self, client: Any, ended: asyncio.Event) -> None:
        """After a call that ran out of time: a server that answers nothing else either hangs as a whole."""
        try:
            await asyncio.wait_for(client.list_tools(), PROBE_SECONDS)
        except Exception as error:
            if not ended.is_set():
                logger.warning(
                    "%s does not answer any more and is replaced: %s", self.server.label, type(error).__name__
                )
            ended.set()

    async def close(self) -> None:
        """Ends the server's process and waits for that."""
        self._client = None
        self._ended.set()
        if self._tasks and (late := (await asyncio.wait(set(self._tasks), timeout=CLOSE_SECONDS))[1]):
            for task in late:  # such as one that still waits for its server to start
                task.cancel()
            await asyncio.wait(late)
