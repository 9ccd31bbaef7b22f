"""Tools of an MCP server, over its standard input and output or over HTTP. The protocol is the official client's.

An entry of a tool file offers those it names:

    mcp: {command: [python, server.py], env: {SERVER_TOKEN: NAME_OF_A_VARIABLE_HERE}, cwd: folder}
    mcp: {url: https://host/mcp, headers: {Authorization: NAME_OF_A_VARIABLE_HERE}}
    tools: [search, fetch]

`env` and `headers` lead to names of environment variables, which every process that runs tools must have: secrets never stand in files. A
server sees nothing else of the environment but PATH, HOME and the like; `python` is the one that runs this. Each process has one connection
to a server, made with the first call, and made again after the server died. A call is sent once: one whose server died in it has failed.
"""

import logging
import os
import re
import tempfile
from concurrent.futures import CancelledError
from typing import IO, Any

import jsonschema

from arm_rl.core.errors import UserError
from arm_rl.core.session import ToolResult
from tools.adapters.mcp_connection import START_SECONDS, Connection, McpError, McpServer, list_tools
from tools.base import Execution, Tool, ToolContext, function_schema, has_external_reference
from tools.execution.tool_loop import tool_loop

logger = logging.getLogger(__name__)

CALL_SECONDS = 30.0  # for a call, where the entry's `execution` does not say
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class McpTool(Tool):
    """One tool of a server. It pickles: the connection belongs to the process."""

    execution = Execution(isolation="thread", timeout_seconds=CALL_SECONDS)  # what may hang or crash is the server

    def __init__(self, server: McpServer, name: str, schema: dict[str, Any]) -> None:
        self.set_schema(schema)
        self.description = schema["function"]["description"]
        self.server, self.tool_name = server, name

    def run(self, arguments: dict[str, Any], context: ToolContext) -> ToolResult:
        """Calls the server's tool."""
        timeout = self.execution.timeout_seconds or CALL_SECONDS
        try:
            return tool_loop().wait(_get_connection(self).call(self.tool_name, arguments, timeout))
        except TimeoutError:
            return ToolResult(status="timeout", text=f"Error: {self.name} took longer than {timeout:g} seconds")
        except (McpError, CancelledError) as error:
            logger.warning("%s: %s: %s", self.name, self.server.label, error)
            return ToolResult(status="failed", text=f"Error: {self.name}: {error or 'its server was closed'}")

    def close(self) -> None:
        """Ends the server's process, if no other tool of this process uses it."""
        connection = _CONNECTIONS.get(self.server)
        if connection is not None:
            connection.users.discard(self)
            if not connection.users:
                tool_loop().wait(connection.close())


def mcp_tools(entry: dict[str, Any], where: str) -> list[Tool]:
    """The tools that an entry offers. Starts the server to ask for them, and ends it.

    Args:
        entry: with the keys `mcp` and `tools`; others are the caller's.
        where: file and entry, for messages.

    Raises:
        UserError: the entry is wrong, its server does not start within a minute, or it lacks a tool that is named.
    """
    server = _parse_server(entry.get("mcp"), f"{where}.mcp")
    names = entry.get("tools")
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        try:
            offered = tool_loop().wait(list_tools(server, said))
        except TimeoutError:
            raise UserError(
                f"{where}.mcp: {server.label} listed no tools within {START_SECONDS:g} seconds{_stderr_tail(said, server)}"
            ) from None
        except McpError as error:
            raise UserError(f"{where}.mcp: {server.label}: {error}{_stderr_tail(said, server)}") from error
    if (
        not isinstance(names, list)
        or not names
        or not all(isinstance(name, str) for name in names)
        or len(set(names)) < len(names)
    ):
        raise UserError(
            f"{where}.tools: a list of names, each once, is needed; the server offers {', '.join(offered) or 'none'}"
        )
    missing = [name for name in names if name not in offered]
    if missing:
        raise UserError(
            f"{where}.tools: {server.label} has no tool {missing[0]!r}; it offers {', '.join(offered) or 'none'}"
        )
    return [McpTool(server, name, _schema(offered[name], f"{where}.tools: {name}")) for name in names]


def _schema(tool: Any, where: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {}, **tool.input_schema}
    try:
        jsonschema.Draft202012Validator.check_schema(parameters)
        if has_external_reference(parameters):
            raise UserError(f"{where}: its inputSchema refers to another document")
    except jsonschema.SchemaError as error:
        raise UserError(f"{where}: its inputSchema is not a JSON schema: {error.message}") from error
    return function_schema(tool.name, tool.description or "", parameters)


def _parse_server(mcp: Any, where: str) -> McpServer:
    keys = ("command", "env", "cwd") if isinstance(mcp, dict) and "command" in mcp else ("url", "headers")
    if not isinstance(mcp, dict) or keys[0] not in mcp:
        raise UserError(f"{where}: either command (with env, cwd) or url (with headers) is needed")
    unknown = sorted(set(mcp) - set(keys))
    if unknown:
        raise UserError(f"{where}: unknown key {unknown[0]!r}; known beside {keys[0]}: {', '.join(keys[1:])}")
    variables = _parse_variables(mcp.get(keys[1]), f"{where}.{keys[1]}")
    if keys[0] == "url":
        # no user, password or query: secrets would hide there
        if not re.fullmatch(r"https?://[^\s/?#@]+(?:/[^\s?#]*)?", str(mcp["url"])):
            raise UserError(
                f"{where}.url: an address such as https://host/mcp is needed, without user, password and query"
            )
        return McpServer(url=str(mcp["url"]), variables=variables)
    command, cwd = mcp["command"], mcp.get("cwd")
    if not isinstance(command, list) or not command or not all(isinstance(part, str) and part for part in command):
        raise UserError(f"{where}.command: a list of texts is needed, such as [python, server.py]")
    if cwd is not None and not os.path.isdir(str(cwd)):
        raise UserError(f"{where}.cwd: there is no folder {cwd}")
    return McpServer(command=tuple(command), cwd=None if cwd is None else str(cwd), variables=variables)


def _parse_variables(given: Any, where: str) -> tuple[tuple[str, str], ...]:
    given = {} if given is None else given
    if not isinstance(given, dict):
        raise UserError(f"{where}: a mapping from names to names of environment variables is needed")
    for name, variable in given.items():
        if not isinstance(variable, str) or not _VARIABLE.fullmatch(variable) or variable not in os.environ:
            # what stands there may be a secret: it is not shown
            raise UserError(
                f"{where}.{name}: the name of an environment variable that is set is needed, and never a value itself"
            )
        if not os.environ[variable].isprintable():
            raise UserError(f"{where}.{name}: the value of {variable} has characters that cannot be sent")
    return tuple((str(name), variable) for name, variable in given.items())


def _stderr_tail(said: IO[str], server: McpServer) -> str:
    """Return the end of the server's standard error, without the values of its environment variables or headers."""
    said.seek(0)
    text = said.read()[-4000:].strip()
    for value in server.values().values():
        text = text.replace(value, "***") if value else text
    lines = [line for line in text.splitlines() if line.strip()][-3:]
    return "; it said: " + " | ".join(lines)[-500:] if lines else ""


_CONNECTIONS: dict[McpServer, Connection] = {}


def _get_connection(tool: McpTool) -> Connection:
    connection = _CONNECTIONS.setdefault(tool.server, Connection(tool.server))
    connection.users.add(tool)
    return connection
