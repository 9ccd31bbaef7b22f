"""vLLM's front end and its engine process: start, calls that notice the process's death, and the end.

vLLM is imported when an engine starts, so that this module costs nothing to import.
"""

import asyncio
import gc
import multiprocessing
import os
from collections.abc import Collection, Coroutine, Iterable, Mapping
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, TypeVar

from actors.rollout.engine_settings import OWNER_PID
from arm_rl.core.errors import EngineDied

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

SECONDS_TO_END = 20.0  # given to vLLM's processes after vLLM has told them to end

T = TypeVar("T")


class EngineClosed(RuntimeError):
    """The engine was closed, or a weight update failed half-way."""


class VllmProcess:
    """An `AsyncLLM` and the processes behind it, in the event loop that starts them."""

    def __init__(self, arguments: Mapping[str, Any], *, use_gpu: bool) -> None:
        """Prepare; `start` loads the model.

        Args:
            arguments: Of vLLM's `AsyncEngineArgs`.
            use_gpu: Whether vLLM runs on GPUs.
        """
        self._arguments, self._use_gpu = arguments, use_gpu
        self._llm: AsyncLLM | None = None
        self._failure: BaseException | None = None
        self._processes: set[BaseProcess] = set()

    @property
    def is_open(self) -> bool:
        """Whether vLLM was started and not shut down."""
        return self._llm is not None

    @property
    def llm(self) -> "AsyncLLM":
        """The front end.

        Raises:
            EngineClosed: If vLLM was not started, or was shut down.
        """
        if self._llm is None:
            raise EngineClosed("the engine is not running") from self._failure
        return self._llm

    def start(self) -> "AsyncLLM":
        """Start vLLM's processes and load the model.

        Raises:
            EngineDied: If a process ended before it served.
        """
        from vllm.engine.arg_utils import AsyncEngineArgs

        os.environ[OWNER_PID] = str(os.getpid())  # not in vLLM's settings, whose hash is the key of its compile cache
        others = set(multiprocessing.active_children())
        arguments, cls = AsyncEngineArgs(**self._arguments), _import_async_llm()
        try:
            self._llm = cls.from_engine_args(arguments)
        except RuntimeError as error:
            raise EngineDied(
                f"vLLM's engine did not start ({error}): out of memory (rollout.gpu_memory_utilization, "
                f"rollout.cpu_kv_cache_gib, rollout.max_model_len), or what its own log says: {_log_file()}"
            ) from error
        self._processes = set(multiprocessing.active_children()) - others
        self._ended = _end_of_any(self._processes)
        return self._llm

    def check(self) -> None:
        """Raise if a process of vLLM has ended.

        Raises:
            EngineDied: If vLLM's engine process is gone.
        """
        if self._llm is not None and (self._llm.errored or self._ended.done()):
            raise EngineDied(
                f"vLLM's engine process ended (out of memory, or a fault in a kernel?); its own log: {_log_file()}"
            )

    async def answer(self, call: Coroutine[Any, Any, T]) -> T:
        """Await a call of vLLM, or the end of its process: vLLM 0.32 would wait for ever for a process that has ended.

        Raises:
            EngineDied: If vLLM's engine process is gone.
        """
        answer = asyncio.ensure_future(call)
        either: tuple[asyncio.Future[Any], ...] = (answer, self._ended)
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not answer.done():
                answer.cancel()
        self.check()
        return answer.result()

    async def shut_down(
        self, request_ids: Collection[str], *, at_once: bool, failure: BaseException | None = None
    ) -> None:
        """End vLLM's processes.

        Args:
            request_ids: Running requests, which come back as aborted.
            at_once: Whether the GPU's memory is not released in an orderly way first.
            failure: Becomes the cause of later `EngineClosed` errors.
        """
        llm, self._llm = self._llm, None
        if llm is None:
            return
        self._failure = failure
        await llm.abort(list(request_ids))
        if llm.output_handler is not None:
            llm.output_handler.cancel()  # or it reports the end of the process as an error
        # On CPU no device is to be released, and vLLM would collect garbage for seconds before it exits: kill its process.
        await asyncio.to_thread(llm.shutdown, 0.0 if at_once or not self._use_gpu else None)
        for process in self._processes:
            await asyncio.to_thread(process.join, SECONDS_TO_END)
            process.kill()
            await asyncio.to_thread(process.join)


def _import_async_llm() -> type["AsyncLLM"]:
    """Import vLLM with the garbage collector off, which would take a fifth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        from vllm.v1.engine.async_llm import AsyncLLM
    finally:
        if was_enabled:
            gc.enable()
    return AsyncLLM


def _end_of_any(processes: Iterable[BaseProcess]) -> asyncio.Future[None]:
    """Return a future that is done as soon as one of the processes has ended."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def end(sentinel: int) -> None:
        loop.remove_reader(sentinel)
        if not ended.done():
            ended.set_result(None)

    for process in processes:
        loop.add_reader(process.sentinel, end, process.sentinel)
    return ended


def _log_file() -> str:
    """Return the path to which this process and the processes that it starts write their errors."""
    return os.path.realpath("/proc/self/fd/2")
