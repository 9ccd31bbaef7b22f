"""Tools run beside this process, without executor actors: for the teacher, and for a judge on one machine."""

from collections.abc import Mapping

from arm_rl.core.session import Memory, ToolResult
from arm_rl.core.types import ToolCall
from tools.base import Tool, ToolContext
from tools.execution.runner import ToolRunner


class LocalTools:
    """The `tools` of sessions on one event loop."""

    def __init__(self, tools: Mapping[str, Tool], *, concurrency: int = 32, timeout_seconds: float = 30.0) -> None:
        self._runner = ToolRunner(tools, concurrency=concurrency, timeout_seconds=timeout_seconds)

    async def __call__(self, call: ToolCall, memory: Memory) -> ToolResult:
        """Runs a call, isolated as in the executors."""
        context = ToolContext(
            session=memory.session, images=memory.images, texts=memory.texts, image_names=list(memory.images)
        )
        return await self._runner.call(call, context)

    async def release(self, memory: Memory) -> None:
        """Lets the tools forget a session that is over."""
        await self._runner.release(memory.session)

    def close(self) -> None:
        """Ends the tools' workers."""
        self._runner.close()
