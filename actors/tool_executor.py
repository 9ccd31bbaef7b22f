"""Tool executors: actors that run the tools beside the rollouts, and the pool through which a session reaches them."""

import asyncio
import itertools
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from arm_rl.core.config import ToolsConfig
from arm_rl.core.images import Image
from arm_rl.core.session import Memory, ToolResult
from arm_rl.core.types import ToolCall
from tools import load_tools
from tools.base import ToolContext

logger = logging.getLogger(__name__)


class ToolExecutor:
    """Runs calls, so many at a time, each within the time limit. Whatever happens to a call is its result."""

    def __init__(self, config: ToolsConfig) -> None:
        self._tools = load_tools(config.files)
        self._timeout = config.timeout_seconds
        self._concurrency = config.concurrency
        self._limit = asyncio.Semaphore(config.concurrency)
        self._threads = self._new_threads()

    async def call(
        self, call: ToolCall, texts: Mapping[str, str], image_names: Sequence[str], named: Sequence[str], *images: Image
    ) -> ToolResult:
        """Runs one call. `images` are those that the arguments name, in the order of `named`."""
        context = ToolContext(images=dict(zip(named, images, strict=True)), texts=texts, image_names=image_names)
        tool = self._tools[call.name]
        async with self._limit:
            running = asyncio.get_running_loop().run_in_executor(self._threads, tool.call, call.arguments, context)
            try:
                return await asyncio.wait_for(running, self._timeout)
            except TimeoutError:
                self._threads.shutdown(wait=False)  # its other calls end in it; the hanging one must not take a later call's place
                self._threads = self._new_threads()
                return ToolResult(status="timeout", text=f"Error: {call.name} took longer than {self._timeout:g} seconds")
            except Exception as error:  # the tool call's catch point: an observation for the policy, a traceback for us
                logger.exception("%s failed", call.name)
                return ToolResult(status="failed", text=f"Error: {call.name} failed: {type(error).__name__}")

    def _new_threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._concurrency, thread_name_prefix="tool")

    def ready(self) -> bool:
        """True once the tools are loaded."""
        return True


class ToolPool:
    """The `tools` callable of sessions: sends each call to the next executor, and an image to the object store once."""

    def __init__(self, executors: Sequence[ActorHandle]) -> None:
        self._executors = itertools.cycle(executors)
        self._stored: dict[str, ray.ObjectRef] = {}  # by content key, for as long as a session uses it

    async def __call__(self, call: ToolCall, memory: Memory) -> ToolResult:
        """Runs a call in an executor; one that died is a failed call."""
        named = [value for value in _strings(call.arguments) if value in memory.images]
        images = [self._store(memory.images[name]) for name in named]
        try:
            return await next(self._executors).call.remote(call, memory.texts, list(memory.images), named, *images)
        except RayError as error:
            logger.warning("%s: the executor was lost: %s", call.name, error)
            return ToolResult(status="failed", text=f"Error: {call.name} crashed")

    def release(self, memory_keys: Sequence[str]) -> None:
        """Forgets the images of sessions that are over."""
        for key in memory_keys:
            self._stored.pop(key, None)

    def _store(self, image: Image) -> ray.ObjectRef:
        if image.key not in self._stored:
            self._stored[image.key] = ray.put(image)
        return self._stored[image.key]


def _strings(arguments: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(value for value in arguments.values() if isinstance(value, str)))
