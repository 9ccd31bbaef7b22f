"""Runs calls of tools where each tool says they belong: so many at a time, each within its time. Whatever happens to one is its result."""

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

from arm_rl.core.session import ToolResult
from arm_rl.core.types import ToolCall
from tools.base import Tool, ToolContext
from tools.execution.worker import CallLost, ToolWorker

logger = logging.getLogger(__name__)

NUM_WORKERS = 4  # processes of a tool where it does not say how many


class ToolRunner:
    """The tools of one process. Used on one event loop."""

    def __init__(self, tools: Mapping[str, Tool], *, concurrency: int, timeout_seconds: float) -> None:
        """Prepares; workers start with the first calls.

        Args:
            concurrency: calls of one tool at a time in threads, where the tool does not say.
            timeout_seconds: for one call, where its tool does not say.
        """
        self._tools = dict(tools)
        self._lanes = {name: _make_lane(tool, concurrency, timeout_seconds) for name, tool in tools.items()}

    async def call(self, call: ToolCall, context: ToolContext) -> ToolResult:
        """Runs one call, which may wait for others first."""
        try:
            return await self._lanes[call.name].run(call.arguments, context)
        except CallLost as error:
            logger.warning("%s %s", call.name, error)
            return ToolResult(status=error.status, text=f"Error: {call.name} {error}")

    async def release(self, session: str) -> None:
        """Lets the tools forget a session that is over."""
        for name, tool in self._tools.items():
            if tool.stateful:
                try:
                    await self._lanes[name].release(session)
                except Exception:  # the session is over: nobody is there to be told
                    logger.exception("%s could not release a session", name)

    def close(self) -> None:
        """Ends the workers, and what the tools hold."""
        for name, tool in self._tools.items():
            self._lanes[name].close()
            tool.close()


class _Lane(Protocol):
    """Where the calls of one tool run."""

    async def run(self, arguments: dict[str, Any], context: ToolContext) -> ToolResult: ...

    async def release(self, session: str) -> None: ...

    def close(self) -> None: ...


def _make_lane(tool: Tool, concurrency: int, timeout_seconds: float) -> _Lane:
    limits = tool.execution
    timeout = limits.timeout_seconds or timeout_seconds
    if limits.isolation == "inline":
        return _Inline(tool)
    if limits.isolation == "thread":
        return _Threads(tool, limits.concurrency or concurrency, timeout)
    return _Processes(tool, limits.concurrency or NUM_WORKERS, timeout)


class _Inline:
    """In the event loop itself."""

    def __init__(self, tool: Tool) -> None:
        self._tool = tool

    async def run(self, arguments: dict[str, Any], context: ToolContext) -> ToolResult:
        return self._tool.call(arguments, context)

    async def release(self, session: str) -> None:
        self._tool.release(session)

    def close(self) -> None:
        pass


class _Threads:
    """In threads of this process. One that takes too long is left to itself, and its place is free again."""

    def __init__(self, tool: Tool, concurrency: int, timeout: float) -> None:
        self._tool, self._timeout = tool, timeout
        self._limit = asyncio.Semaphore(concurrency)

    async def run(self, arguments: dict[str, Any], context: ToolContext) -> ToolResult:
        async with self._limit:
            return await self._run_with_timeout(lambda: self._tool.call(arguments, context))

    async def release(self, session: str) -> None:
        await self._run_with_timeout(lambda: self._tool.release(session))

    async def _run_with_timeout(self, function: Callable[[], Any]) -> Any:
        running = _run_in_thread(function)
        if not (await asyncio.wait([running], timeout=self._timeout))[0]:
            raise CallLost.after_timeout(self._timeout)
        return running.result()

    def close(self) -> None:
        pass


class _Processes:
    """In worker processes, each with one call at a time. The calls of a session whose tool keeps state go to one and the same.

    A call under which the process died is run once more: the fault may have been another's, or the machine's. State is not made anew.
    """

    def __init__(self, tool: Tool, num_workers: int, timeout: float) -> None:
        self._tool, self._timeout = tool, timeout
        self._workers: list[ToolWorker | None] = [None] * num_workers
        self._busy = [asyncio.Lock() for _ in range(num_workers)]
        self._limit = asyncio.Semaphore(num_workers)
        self._worker_numbers: dict[str, int] = {}  # session -> worker, of tools that keep state
        self._state_workers: dict[str, ToolWorker] = {}  # session -> the process that has its state

    async def run(self, arguments: dict[str, Any], context: ToolContext) -> ToolResult:
        if self._tool.stateful:
            number = self._worker_numbers.setdefault(context.session, self._least_used_worker())
            async with self._busy[number]:
                self._require_state(context.session, number)
                return await self._call(number, arguments, context)
        async with self._limit:
            number = next(number for number, busy in enumerate(self._busy) if not busy.locked())
            async with self._busy[number]:
                try:
                    return await self._call(number, arguments, context)
                except CallLost as error:
                    if error.status != "failed":
                        raise
                    return await self._call(number, arguments, context)

    async def release(self, session: str) -> None:
        number = self._worker_numbers.pop(session, None)
        self._state_workers.pop(session, None)
        if number is None:
            return
        async with self._busy[number]:
            worker = self._workers[number]
            if worker is not None and worker.is_alive:
                await _run_in_thread(lambda: worker.release(session, self._timeout))

    def close(self) -> None:
        for worker in self._workers:
            if worker is not None:
                worker.kill()

    def _require_state(self, session: str, number: int) -> None:
        """Says once that the process with the session's state is gone; the next one begins anew."""
        worker = self._running_worker(number)
        if self._state_workers.setdefault(session, worker) is not worker:
            self._state_workers[session] = worker
            raise CallLost("failed", "was started anew and has forgotten this session's earlier calls")

    def _running_worker(self, number: int) -> ToolWorker:
        worker = self._workers[number]
        if worker is None or not worker.is_alive:
            worker = self._workers[number] = ToolWorker(self._tool)  # in the loop's thread, which stays
        return worker

    async def _call(self, number: int, arguments: dict[str, Any], context: ToolContext) -> ToolResult:
        worker = self._running_worker(number)
        try:
            return await _run_in_thread(lambda: worker.call(arguments, context, self._timeout))
        except asyncio.CancelledError:
            worker.kill()  # nobody waits for the answer any more
            raise

    def _least_used_worker(self) -> int:
        sessions = Counter(self._worker_numbers.values())
        return min(range(len(self._workers)), key=lambda number: sessions[number])


def _run_in_thread(function: Callable[[], Any]) -> asyncio.Future:
    """Run a function in a daemon thread: unlike a pool's thread, a hanging one does not delay the process's end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def work() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as raised:  # whatever it is, it belongs to the one who waits
            error = raised
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, daemon=True, name="tool").start()
    return future
