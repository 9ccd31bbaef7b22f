"""The vLLM adapter: token ids and images in, sampled token ids and their log-probabilities out. No session logic, no Ray.

    expanded prompt ids -> one pad an image -> vLLM expands them again -> the two are compared -> sampling -> Completion

vLLM is imported when an engine starts, so that this module costs nothing to import.
"""

import asyncio
import gc
import itertools
import math
import multiprocessing
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from PIL import Image as PILImage
from transformers import AutoConfig

from actors.rollout.engine_settings import engine_arguments
from arm_rl.core.config import ModelConfig, RolloutConfig, Transfer
from arm_rl.core.errors import EngineDied
from arm_rl.core.images import Image
from arm_rl.core.resize import ViewSize
from arm_rl.core.session import Completion
from arm_rl.core.tracing import recorded, span
from arm_rl.core.types import FinishReason

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import RequestOutput
    from vllm.v1.engine import PauseMode
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.output_processor import RequestOutputCollector

VIEW_CACHE_BYTES = 512 * 2**20  # decoded views that an engine keeps
SECONDS_TO_END = 20.0  # of vLLM's processes, after vLLM has told them to

T = TypeVar("T")


class EngineMismatch(RuntimeError):
    """The engine's tokens are not the session's: its log-probabilities would belong to another context."""


class EngineClosed(RuntimeError):
    """The engine was closed, or a weight update failed half-way."""


class Engine:
    """One vLLM engine for one model, inside the event loop that starts it."""

    def __init__(
        self,
        model: ModelConfig,
        rollout: RolloutConfig,
        view: ViewSize,
        *,
        seed: int,
        use_gpu: bool,
        can_sleep: bool = False,
        transfer: Transfer = "file",
    ) -> None:
        """Prepares; `start` loads.

        Args:
            model: where the model lies, and its precision.
            rollout: sizes and limits of the engine.
            view: how the model sees an image.
            seed: of the engine; each request has its own.
            use_gpu: whether vLLM runs on GPUs.
            can_sleep: on GPUs, whether `sleep` will be used.
            transfer: how new weights come.
        """
        self._use_gpu, self._can_sleep = use_gpu, can_sleep and use_gpu
        self._arguments = engine_arguments(
            model, rollout, view, seed=seed, use_gpu=use_gpu, can_sleep=can_sleep, transfer=transfer
        )
        # Running requests are kept; those of tensor parallel workers, which lack cached images (`vllm_worker`), are waited for.
        self._pause_mode: PauseMode = "keep" if rollout.tensor_parallel_size == 1 else "wait"
        config = AutoConfig.from_pretrained(model.path)
        self._image_pad_id: int = config.image_token_id
        self._vision_ids = {
            config.image_token_id,
            config.video_token_id,
            config.vision_start_token_id,
            config.vision_end_token_id,
        }
        self._views = _Views(view, VIEW_CACHE_BYTES)
        self._request_numbers = itertools.count()
        self._running: set[str] = set()  # ids of requests
        # vLLM's front end and its engine process keep twin caches of images, which agree only while requests reach both in the same
        # order, whole, and not around an update of the weights: so one request is submitted at a time.
        self._submission = asyncio.Lock()
        self._updating = False  # an update has it
        self._llm: AsyncLLM | None = None
        self._failure: BaseException | None = None
        self._version = 0

    @property
    def version(self) -> int:
        """Version of the weights that the engine samples with."""
        return self._version

    def check(self) -> None:
        """Says so where vLLM's process is gone.

        Raises:
            EngineDied: it is.
        """
        if self._llm is not None and (self._llm.errored or self._ended.done()):
            raise EngineDied(
                f"vLLM's engine process ended (out of memory, or a fault in a kernel?); its own log: {_log_file()}"
            )

    async def pulse(self) -> None:
        """Returns once vLLM's process has answered a question, as it does between two of its steps: never, where it hangs.

        Raises:
            EngineDied: it is gone.
        """
        await self._answer(self._open().get_weight_version())

    @property
    def num_running(self) -> int:
        """Requests that wait or are sampled."""
        return len(self._running)

    async def start(self, version: int = 0) -> None:
        """Loads the model; its weights count as `version`.

        Raises:
            EngineDied: vLLM's process ended before it served.
        """
        from vllm.engine.arg_utils import AsyncEngineArgs

        others = set(multiprocessing.active_children())
        arguments, cls = AsyncEngineArgs(**self._arguments), _import_async_llm()
        try:
            self._llm = cls.from_engine_args(arguments)
        except RuntimeError as error:
            raise EngineDied(
                f"vLLM's engine did not start ({error}): out of memory (rollout.gpu_memory_utilization, rollout.cpu_kv_cache_gib, "
                f"rollout.max_model_len), or what its own log says: {_log_file()}"
            ) from error
        self._processes = set(multiprocessing.active_children()) - others
        self._ended = _end_of_any(self._processes)
        self._tokenizer = self._llm.get_tokenizer()
        self._version = version
        await self._answer(self._llm.update_weight_version(str(version)))

    async def generate(
        self,
        prompt_ids: Sequence[int],
        images: Sequence[Image],
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
        stop_text: str = "</tool_call>",
        forbidden_ids: Sequence[int] = (),
    ) -> Completion:
        """Samples one turn.

        Cancelling the awaiting task aborts the request.

        Args:
            prompt_ids: the context, one pad id for each image token.
            images: in the order of their pads.
            max_tokens: to sample at most.
            temperature: 0 is greedy.
            seed: equal seeds, contexts and weights give equal tokens.
            stop_text: the turn ends when this has been sampled, or at an end token.
            forbidden_ids: not to be sampled, beside the vision tokens, which never are.

        Returns:
            Ids with the end token; log-probabilities under the distribution sampled from, with temperature and forbidden tokens in it; the
            oldest version of the weights that sampled any of them.

        Raises:
            EngineMismatch: pads and images do not fit each other, or vLLM expanded the images in another way.
        """
        collapsed, num_runs = _collapse(prompt_ids, self._image_pad_id)
        if num_runs != len(images):
            raise EngineMismatch(f"{len(images)} images for {num_runs} runs of image pads")
        prompt: dict[str, Any] = {"prompt_token_ids": collapsed}
        if images:
            prompt["multi_modal_data"] = {"image": [await self._views.get(image) for image in images]}
            prompt["multi_modal_uuids"] = {"image": [image.key for image in images]}
        params = self._sampling(max_tokens, temperature, seed, stop_text, forbidden_ids)
        request_id = str(next(self._request_numbers))
        self._running.add(request_id)
        try:
            return self._completion(await self._sample(request_id, prompt, prompt_ids, params))
        finally:
            self._running.discard(request_id)

    @recorded("update", track="weights")
    async def update_weights(self, path: Path, version: int, *, is_adapter: bool = False) -> None:
        """Replaces all weights by those of a safetensors file with Hugging Face's names, or by the model's own with adapters in them.

        Requests that run go on under the new weights, their context computed anew: the caches of keys and values, of images and of their
        encodings are emptied together.

        Raises:
            FileNotFoundError: there is no such file; the engine goes on with the weights it has.
            EngineDied: vLLM's process is gone.
            Exception: whatever vLLM raised; the weights may be mixed, so the engine is closed.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(path)
        await self.begin_update()
        await self.receive_weights({"path": str(path), "is_adapter": is_adapter})
        await self.end_update(version)

    async def connect_weights(self, info: dict[str, Any]) -> None:
        """Joins the learners' group, where weights come from their GPUs. Raises as `update_weights`."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self._answer(self._open().init_weight_transfer_engine(WeightTransferInitRequest(init_info=info)))

    async def begin_update(self) -> None:
        """The first part of an update: running requests are paused. Raises as `update_weights`, and so do the other parts."""
        await self._submission.acquire()
        if self._llm is None:
            self._submission.release()
        self._open()
        self._updating = True
        async with self._closed_on_failure() as llm:
            with span("pause"):
                await self._answer(llm.pause_generation(mode=self._pause_mode, clear_cache=True))
            await self._answer(llm.start_weight_update())

    async def receive_weights(self, info: dict[str, Any]) -> None:
        """The second part, once or more: weights, where `info` says, in the terms of the transfer."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        async with self._closed_on_failure() as llm:
            with span("load"):
                await self._answer(llm.update_weights(WeightTransferUpdateRequest(update_info=info)))

    async def end_update(self, version: int) -> None:
        """The last part: requests go on."""
        async with self._closed_on_failure() as llm:
            with span("load"):
                await self._answer(llm.finish_weight_update(weight_version=str(version)))
            self._version = version
            with span("resume"):
                await self._answer(llm.resume_generation())
        self._end_of_update()

    @asynccontextmanager
    async def _closed_on_failure(self) -> AsyncIterator["AsyncLLM"]:
        """For parts of an update: where one fails, the weights may be mixed."""
        llm = self._open()
        try:
            yield llm
        except BaseException as error:
            try:
                self.check()
                self._failure = error
                await self._shut_down()
            finally:
                self._end_of_update()
            raise

    def _end_of_update(self) -> None:
        self._updating = False
        self._submission.release()

    @recorded("sleep", track="weights")
    async def sleep(self) -> None:
        """Gives the GPU's memory to others, weights kept in the host's memory; waits for running requests. Nothing on CPU."""
        if self._can_sleep:
            await self._answer(self._open().sleep(level=1, mode="wait"))

    @recorded("wake", track="weights")
    async def wake(self) -> None:
        """Takes the GPU's memory back. Nothing on CPU."""
        if self._can_sleep:
            await self._answer(self._open().wake_up())

    async def close(self) -> None:
        """Ends vLLM's process; requests that run come back as aborted. An update that nobody ends any more is not waited for."""
        if self._updating:
            await self._shut_down()
            return
        async with self._submission:
            await self._shut_down()

    async def _shut_down(self) -> None:
        llm, self._llm = self._llm, None
        if llm is None:
            return
        await llm.abort(list(self._running))
        if llm.output_handler is not None:
            llm.output_handler.cancel()  # or it reports the end of the process as an error
        # On CPU there is no device to release, and vLLM would collect garbage for seconds before it exits: its process is killed.
        await asyncio.to_thread(llm.shutdown, None if self._use_gpu and not self._updating else 0.0)
        for process in self._processes:
            await asyncio.to_thread(process.join, SECONDS_TO_END)
            process.kill()  # one that does not listen is not waited for
            await asyncio.to_thread(process.join)

    async def _answer(self, call: Coroutine[Any, Any, T]) -> T:
        """Of vLLM's process to a call; vLLM itself (0.32) would wait for ever for the answer of one that ends meanwhile."""
        answer = asyncio.ensure_future(call)
        either: tuple[asyncio.Future[Any], ...] = (answer, self._ended)
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not answer.done():
                answer.cancel()
        self.check()
        return answer.result()

    def _open(self) -> "AsyncLLM":
        if self._llm is None:
            raise EngineClosed("the engine is not running") from self._failure
        return self._llm

    async def _sample(
        self, request_id: str, prompt: dict[str, Any], prompt_ids: Sequence[int], params: "SamplingParams"
    ) -> "RequestOutput":
        """Submits a request and waits for its end."""
        submission = asyncio.ensure_future(self._submit(request_id, prompt, params))
        try:
            _, queue, seen_ids = await asyncio.shield(submission)
            if seen_ids != list(prompt_ids):
                raise EngineMismatch(_difference(seen_ids, prompt_ids))
            return await queue.get()
        except BaseException:
            llm, *_ = await submission  # a request is never left half submitted, not even by a cancelled caller
            await llm.abort(request_id)
            raise

    async def _submit(
        self, request_id: str, prompt: dict[str, Any], params: "SamplingParams"
    ) -> tuple["AsyncLLM", "RequestOutputCollector", list[int]]:
        """Hands a request to vLLM; gives the prompt's ids as vLLM has expanded them."""
        async with self._submission:
            llm = self._open()
            (rendered,) = await llm.renderer.render_cmpl_async([prompt])
            queue = await llm.add_request(request_id, rendered, params)
            return llm, queue, list(rendered["prompt_token_ids"])

    def _sampling(
        self, max_tokens: int, temperature: float, seed: int, stop_text: str, forbidden_ids: Sequence[int]
    ) -> "SamplingParams":
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            stop=[stop_text],
            include_stop_str_in_output=True,
            logit_bias=dict.fromkeys(self._vision_ids.union(forbidden_ids), -math.inf),
            logprobs=0,  # of the sampled token alone
            flat_logprobs=True,
            skip_special_tokens=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,  # nobody else holds it
        )

    def _completion(self, output: "RequestOutput") -> Completion:
        """What a turn needs of vLLM's output."""
        sampled = output.outputs[0]
        ids = tuple(sampled.token_ids)
        logprobs = tuple(sampled.logprobs.logprobs) if ids else ()
        if len(logprobs) != len(ids):
            raise EngineMismatch(f"{len(logprobs)} log-probabilities for {len(ids)} sampled ids")
        if sampled.finish_reason not in get_args(FinishReason):
            raise RuntimeError(f"vLLM ended a request with {sampled.finish_reason!r}")
        ended = sampled.finish_reason == "stop" and not isinstance(
            sampled.stop_reason, str
        )  # by an end token, not by the stop text
        return Completion(
            token_ids=ids,
            logprobs=logprobs,
            text=self._tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=False),
            finish_reason=sampled.finish_reason,
            policy_version=min((int(span.version) for span in sampled.weight_versions or ()), default=self._version),
        )


class _Views:
    """The views of images by content key, least recently used ones dropped."""

    def __init__(self, view: ViewSize, max_bytes: int) -> None:
        self._view, self._max_bytes, self._num_bytes = view, max_bytes, 0
        self._views: OrderedDict[str, PILImage.Image] = OrderedDict()

    async def get(self, image: Image) -> PILImage.Image:
        """Decodes and shrinks in a thread, so that a large image does not hold up the event loop."""
        if image.key not in self._views:
            view = await asyncio.to_thread(self._view.resize, image)
            if image.key not in self._views:
                self._views[image.key] = view
                self._num_bytes += _num_bytes(view)
        self._views.move_to_end(image.key)
        view = self._views[image.key]
        while self._num_bytes > self._max_bytes and len(self._views) > 1:
            self._num_bytes -= _num_bytes(self._views.popitem(last=False)[1])
        return view


def _import_async_llm() -> type["AsyncLLM"]:
    """Imports vLLM with the garbage collector off, which would take a fifth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        from vllm.v1.engine.async_llm import AsyncLLM
    finally:
        if was_enabled:
            gc.enable()
    return AsyncLLM


def _end_of_any(processes: Iterable[BaseProcess]) -> asyncio.Future[None]:
    """Done as soon as one of them has ended."""
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
    """Where this process's errors go, and with them those of the processes that it starts."""
    return os.path.realpath("/proc/self/fd/2")


def _num_bytes(view: PILImage.Image) -> int:
    return view.width * view.height * 3


def _collapse(ids: Sequence[int], pad_id: int) -> tuple[list[int], int]:
    """One pad for each run of pads, and the number of runs."""
    collapsed: list[int] = []
    num_runs = 0
    for id_, run in itertools.groupby(ids):
        if id_ == pad_id:
            collapsed.append(id_)
            num_runs += 1
        else:
            collapsed.extend(run)
    return collapsed, num_runs


def _difference(seen: Sequence[int], expected: Sequence[int]) -> str:
    same = (a == b for a, b in zip(seen, expected, strict=False))
    place = next((index for index, equal in enumerate(same) if not equal), min(len(seen), len(expected)))
    return (
        f"the engine reads {len(seen)} prompt ids, the session has {len(expected)}; from place {place} on they differ"
    )
