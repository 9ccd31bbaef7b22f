"""Tools run in this process, one call after the other: for the teacher and for a judge without executors."""

import logging
from collections.abc import Mapping

from arm_rl.core.session import Memory, ToolResult
from arm_rl.core.types import ToolCall
from tools.base import Tool, ToolContext

logger = logging.getLogger(__name__)


class LocalTools:
    """The `tools` callable of sessions."""

    def __init__(self, tools: Mapping[str, Tool]) -> None:
        self._tools = tools

    async def __call__(self, call: ToolCall, memory: Memory) -> ToolResult:
        """Runs a call; a tool that raises is a failed call."""
        context = ToolContext(images=memory.images, texts=memory.texts, image_names=list(memory.images))
        try:
            return self._tools[call.name].call(call.arguments, context)
        except Exception as error:  # the tool call's catch point, as in the executors
            logger.exception("%s failed", call.name)
            return ToolResult(status="failed", text=f"Error: {call.name} failed: {type(error).__name__}")
