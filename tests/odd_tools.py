"""Tools that misbehave, and one that counts: for the tests of tool files and executors, which find them by their dotted paths."""

import os
import threading
import time
from typing import Any

from arm_rl.core.images import Image
from arm_rl.core.session import ToolResult
from tools.base import Tool, ToolContext, function_schema


class CountTool(Tool):
    """Counts its calls, and how many run at the same time."""

    name = "count"
    schema = function_schema(name, "Counts.", {"seconds": {"type": "number"}}, required=[])

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.running = self.most_running = self.num_calls = 0

    def run(self, arguments: dict[str, Any], context: ToolContext) -> ToolResult:
        """The number of calls so far, and the most that ran together."""
        with self._lock:
            self.num_calls += 1
            self.running += 1
            self.most_running = max(self.running, self.most_running)
        time.sleep(arguments.get("seconds", 0))
        with self._lock:
            self.running -= 1
            return ToolResult(status="ok", text=f"{self.num_calls} {self.most_running}")


class SlowTool(Tool):
    """Takes its time."""

    name = "slow"
    schema = function_schema(name, "Waits.", {"seconds": {"type": "number"}}, required=["seconds"])

    def run(self, arguments: dict[str, Any], context: ToolContext) -> ToolResult:
        """Waits, then says so."""
        time.sleep(arguments["seconds"])
        return ToolResult(status="ok", text="awake")


class RaisingTool(Tool):
    """Raises."""

    name = "raising"
    schema = function_schema(name, "Raises.", {}, required=[])

    def run(self, arguments: dict[str, Any], context: ToolContext) -> ToolResult:
        """Never returns."""
        raise ZeroDivisionError("a secret of the machine's")


class CrashingTool(Tool):
    """Takes its process down."""

    name = "crashing"
    schema = function_schema(name, "Crashes.", {}, required=[])

    def run(self, arguments: dict[str, Any], context: ToolContext) -> ToolResult:
        """Never returns."""
        os._exit(1)


class MirrorTool(Tool):
    """Shows what it was given: images and texts of the session."""

    name = "mirror"
    schema = function_schema(name, "Mirrors.", {"image": {"type": "string"}}, required=["image"])

    def run(self, arguments: dict[str, Any], context: ToolContext) -> ToolResult:
        """The image as it is."""
        image: Image = context.image(arguments["image"])
        said = f"{sorted(context.images)} {sorted(context.texts.values())} {list(context.image_names)} {os.getpid()}"
        return ToolResult(status="ok", text=said, images=(image,))
