"""An MCP server for the tests, written with the official SDK: `python -m tests.support.mcp_echo_server [http PORT]`."""

import io
import os
import sys
import time

import anyio
from mcp.server.mcpserver import Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from PIL import Image as PILImage

server = MCPServer("echo", log_level="CRITICAL")


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool(structured_output=False)
def image(width: int) -> list[str | Image]:
    """A red picture."""
    buffer = io.BytesIO()
    PILImage.new("RGB", (width, 8), "red").save(buffer, "PNG")
    return ["a picture", Image(data=buffer.getvalue(), format="png"), Image(data=b"no image", format="png")]


@server.tool()
def fail() -> str:
    """Fails."""
    raise ToolError("no luck today")


@server.tool()
async def slow(seconds: float) -> str:
    """Takes its time, and leaves it to others."""
    await anyio.sleep(seconds)
    return "awake"


@server.tool()
async def hang() -> str:
    """Stops the whole server."""
    time.sleep(3600)
    return ""


@server.tool()
def die() -> str:
    """Takes the server down."""
    os._exit(3)


@server.tool()
def surroundings() -> str:
    """What the server sees: its process, and the variables of the tests."""
    return f"{os.getpid()} {os.environ.get('TOKEN', '-')} {os.environ.get('OTHER', '-')}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["http"]:
        server.run("streamable-http", port=int(sys.argv[2]))
    else:
        server.run()
