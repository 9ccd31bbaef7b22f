"""Tool executors: actors that run the tools beside the rollouts, and the pool through which a session reaches them."""

import asyncio
import itertools
import logging
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ObjectStoreFullError, OutOfDiskError, RayError

from actors.supervision import RETRIES, SupervisedActor, call_with_retries, describe_error
from arm_rl.core import tracing
from arm_rl.core.config import ToolsConfig
from arm_rl.core.images import Image
from arm_rl.core.session import Memory, ToolResult
from arm_rl.core.tracing import SpanBatch, span
from arm_rl.core.types import ToolCall, ToolStatus
from tools import load_tools
from tools.base import ToolContext
from tools.execution.runner import ToolRunner

logger = logging.getLogger(__name__)


# Inline calls and their results travel as plain tuples, which pickle twenty times as fast as the dataclasses: most of their cost.
# name, arguments, session, texts, names of images
InlineCall = tuple[str, dict[str, Any], str, dict[str, str], list[str]]
InlineResult = tuple[ToolStatus, str]
MAX_BATCH = 32  # inline calls in one remote call: while some are run, others are handed out


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolTraits:
    """What a pool must know of the tools, by their names."""

    inline: frozenset[str]  # their calls travel in batches
    stateful: frozenset[str]  # the executor is told when a session that called them is over
    seeing_all: frozenset[str]  # all of the session's images travel with their calls


class ToolExecutor(SupervisedActor):
    """The tools of one actor. Whatever happens to a call is its result."""

    def __init__(self, config: ToolsConfig) -> None:
        self._tools = load_tools(config.files)
        self._runner = ToolRunner(self._tools, concurrency=config.concurrency, timeout_seconds=config.timeout_seconds)
        self._instance_id = uuid.uuid4().hex

    async def instance_id(self) -> str:
        """Return an id of this process: an executor that Ray restarted has another one and no session state."""
        return self._instance_id

    async def call(self, call: ToolCall, context: ToolContext, named: Sequence[str], *images: Image) -> ToolResult:
        """Runs one call. `images` are those that the arguments name, in the order of `named`; the context comes without them."""
        return await self._call(call, context.with_images(dict(zip(named, images, strict=True))))

    async def call_inline(self, calls: Sequence[InlineCall]) -> list[InlineResult]:
        """Runs calls of inline tools, one after the other."""
        results = []
        for name, arguments, session, texts, image_names in calls:
            context = ToolContext(session=session, images={}, texts=texts, image_names=image_names)
            result = await self._call(ToolCall(name=name, arguments=arguments), context)
            results.append((result.status, result.text))
        return results

    async def _call(self, call: ToolCall, context: ToolContext) -> ToolResult:
        with span("call", name=call.name, track="call"):
            return await self._runner.call(call, context)

    async def spans(self) -> SpanBatch:
        """What this actor did since the last call, for the timeline."""
        return tracing.take()

    async def release(self, session: str) -> None:
        """Forgets a session that is over."""
        await self._runner.release(session)

    def traits(self) -> ToolTraits:
        """What a pool must know of the tools; answered once they are loaded."""
        return ToolTraits(
            inline=frozenset(name for name, tool in self._tools.items() if tool.execution.isolation == "inline"),
            stateful=frozenset(name for name, tool in self._tools.items() if tool.stateful),
            seeing_all=frozenset(name for name, tool in self._tools.items() if tool.sees_all_images),
        )


@dataclass(slots=True)
class _StoredImage:
    """An image in the object store, and the sessions that have used it."""

    reference: ray.ObjectRef
    sessions: set[str]


class ToolPool:
    """The `tools` of the sessions of one rollout actor: a session's calls go to one executor, and an image to the object store once."""

    def __init__(self, executors: Sequence[ActorHandle], traits: ToolTraits) -> None:
        self._next_executors = itertools.cycle(executors)
        self._traits = traits
        self._executors: dict[str, ActorHandle] = {}  # session -> executor
        self._stored: dict[str, _StoredImage] = {}  # by content key, for as long as a session uses it
        # sessions that have called a tool that keeps state -> the executor's life that keeps it
        self._instances: dict[str, str] = {}
        # inline calls, sent together
        self._waiting: dict[tuple[ActorHandle, int], list[tuple[InlineCall, asyncio.Future]]] = {}
        self._sending: set[asyncio.Task] = set()

    async def __call__(self, call: ToolCall, memory: Memory) -> ToolResult:
        """Runs a call in the session's executor.

        Where that one dies, the call is run again by its successor; but the state that a tool kept for the session is lost, which is said
        once. A call under which executor after executor dies has failed.
        """
        executor = self._executors.setdefault(memory.session, next(self._next_executors))
        stateful = call.name in self._traits.stateful
        try:
            with span("tool", name=call.name):
                if stateful and await self._has_lost_state(executor, memory.session):
                    return _lost_state_result(call)
                return await self._run(executor, call, memory, retries=0 if stateful else RETRIES)
        except (ObjectStoreFullError, OutOfDiskError):  # no fault of the tool's
            raise
        except RayError as error:
            logger.warning("%s: the executor was lost: %s", call.name, describe_error(error))
            if stateful:
                self._instances.pop(memory.session, None)
                return _lost_state_result(call)
            return ToolResult(status="failed", text=f"Error: {call.name} crashed")

    async def _has_lost_state(self, executor: ActorHandle, session: str) -> bool:
        """Whether the executor is another one than at the session's last call that kept state; from now on this one keeps it."""
        instance = await call_with_retries(executor, executor.instance_id.remote)
        before = self._instances.get(session)
        self._instances[session] = instance
        return before not in (None, instance)

    async def _run(self, executor: ActorHandle, call: ToolCall, memory: Memory, retries: int) -> ToolResult:
        if call.name in self._traits.inline:
            inline = (call.name, call.arguments, memory.session, memory.texts, list(memory.images))
            status, text = await self._call_in_batch(executor, inline, retries)
            return ToolResult(status=status, text=text)
        context = ToolContext(session=memory.session, images={}, texts=memory.texts, image_names=list(memory.images))
        wanted = memory.images if call.name in self._traits.seeing_all else dict.fromkeys(_strings(call.arguments))
        named = [name for name in wanted if name in memory.images]
        images = [self._store(memory.images[name], memory.session) for name in named]
        return await call_with_retries(executor, lambda: executor.call.remote(call, context, named, *images), retries)

    async def release(self, memory: Memory) -> None:
        """Forgets a session that is over, here and, where a tool keeps state, in its executor."""
        executor = self._executors.pop(memory.session, None)
        if self._instances.pop(memory.session, None) is not None and executor is not None:
            executor.release.remote(memory.session)  # nobody has to wait for it; an executor that died has forgotten
        for image in memory.images.values():
            stored = self._stored.get(image.key)
            if stored is not None:
                stored.sessions.discard(memory.session)
                if not stored.sessions:
                    del self._stored[image.key]

    def _store(self, image: Image, session: str) -> ray.ObjectRef:
        stored = self._stored.get(image.key)
        if stored is None:
            stored = self._stored[image.key] = _StoredImage(ray.put(image), set())
        stored.sessions.add(session)
        return stored.reference

    async def _call_in_batch(self, executor: ActorHandle, call: InlineCall, retries: int) -> InlineResult:
        """Send a call together with all calls that come before the event loop turns: one remote call for many."""
        waiting = self._waiting.setdefault((executor, retries), [])
        if not waiting:
            sending = asyncio.create_task(self._send(executor, retries))
            self._sending.add(sending)
            sending.add_done_callback(self._sending.discard)
        result: asyncio.Future = asyncio.get_running_loop().create_future()
        waiting.append((call, result))
        return await result

    async def _send(self, executor: ActorHandle, retries: int) -> None:
        await asyncio.sleep(0)
        waiting = self._waiting.pop((executor, retries))
        starts = range(0, len(waiting), MAX_BATCH)
        await asyncio.gather(
            *(self._send_batch(executor, waiting[start : start + MAX_BATCH], retries) for start in starts)
        )

    async def _send_batch(
        self, executor: ActorHandle, batch: Sequence[tuple[InlineCall, asyncio.Future]], retries: int
    ) -> None:
        calls = [call for call, _ in batch]
        try:
            results = await call_with_retries(executor, lambda: executor.call_inline.remote(calls), retries)
        except Exception as error:
            for _, result in batch:
                if not result.done():
                    result.set_exception(error)
            return
        for (_, result), value in zip(batch, results, strict=True):
            if not result.done():  # its session was cancelled
                result.set_result(value)


def _lost_state_result(call: ToolCall) -> ToolResult:
    return ToolResult(
        status="failed", text=f"Error: {call.name} was started anew and has forgotten this session's earlier calls"
    )


def _strings(value: Any) -> Iterator[str]:
    """All texts in a call's arguments: any of them may name an image."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            yield from _strings(child)
