"""Tools run in this process, one call after the other: for the teacher and for a judge without executors."""

from collections.abc import Mapping

from arm_rl.core.session import Memory, ToolResult
from arm_rl.core.types import ToolCall
from tools.base import Tool, ToolContext


class LocalTools:
    """The `tools` callable of sessions."""

    def __init__(self, tools: Mapping[str, Tool]) -> None:
        self._tools = tools

    async def __call__(self, call: ToolCall, memory: Memory) -> ToolResult:
        """Runs a call."""
        context = ToolContext(images=memory.images, texts=memory.texts, image_names=list(memory.images))
        return self._tools[call.name].call(call.arguments, context)
