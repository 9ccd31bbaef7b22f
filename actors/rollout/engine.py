"""The vLLM adapter: token ids and images in, sampled token ids and their log-probabilities out. No session logic, no Ray.

expanded prompt ids -> one pad an image -> vLLM expands them again -> the two are compared -> sampling -> Completion
"""

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from transformers import AutoConfig

from actors.rollout.engine_images import EngineImages
from actors.rollout.engine_settings import engine_arguments
from actors.rollout.vllm_process import VllmProcess
from arm_rl.core.compute_config import RolloutConfig, Transfer
from arm_rl.core.config import ModelConfig
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

VIEW_BYTES = 512 * 2**20  # resized images that an engine keeps


class EngineMismatch(RuntimeError):
    """The engine's tokens are not the session's: its log-probabilities would belong to another context."""


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
        """Prepare; `start` loads the model.

        Args:
            model: Folder and precision of the model.
            rollout: Sizes and limits of the engine.
            view: Size at which the model sees an image.
            seed: Seed of the engine; each request has a seed of its own.
            use_gpu: Whether vLLM runs on GPUs.
            can_sleep: Whether `sleep` will be used; only on GPUs.
            transfer: Way in which new weights come.
        """
        self._can_sleep = can_sleep and use_gpu
        arguments = engine_arguments(
            model, rollout, view, seed=seed, use_gpu=use_gpu, can_sleep=can_sleep, transfer=transfer
        )
        self.vllm = VllmProcess(arguments, use_gpu=use_gpu)
        # Running requests are kept, but those of tensor parallel workers, which lack cached images (`vllm_worker`).
        self._pause_mode: PauseMode = "keep" if rollout.tensor_parallel_size == 1 else "wait"
        config = AutoConfig.from_pretrained(model.path)
        self._image_pad_id: int = config.image_token_id
        self._vision_ids = {
            config.image_token_id,
            config.video_token_id,
            config.vision_start_token_id,
            config.vision_end_token_id,
        }
        self._images = EngineImages(view, num_threads=rollout.image_threads or 1, max_bytes=VIEW_BYTES)
        self._request_numbers = itertools.count()
        self._running: set[str] = set()  # ids of requests
        # vLLM's front end and its engine process keep twin caches of images, which agree only while requests reach both
        # in the same order, complete, and not around a weight update: so one request is submitted at a time.
        self._submission = asyncio.Lock()
        self._updating = False  # an update holds the lock
        self._is_asleep = False  # the GPU's memory is free, or has room for weights alone
        self._version = 0

    @property
    def version(self) -> int:
        """Version of the weights that the engine samples with."""
        return self._version

    @property
    def num_running(self) -> int:
        """Number of requests that wait or are sampled."""
        return len(self._running)

    def check(self) -> None:
        """Raise `EngineDied` if vLLM's engine process is gone."""
        self.vllm.check()

    async def pulse(self) -> None:
        """Wait until vLLM's process has answered a question, as it does between two of its steps; forever where it hangs.

        Raises:
            EngineDied: If vLLM's engine process is gone.
        """
        await self.vllm.answer(self.vllm.llm.get_weight_version())

    async def start(self, version: int = 0) -> None:
        """Load the model; its weights count as `version`.

        Raises:
            EngineDied: If vLLM's process ended before it served.
        """
        llm = self.vllm.start()
        self._images.attach(llm.renderer)
        self._tokenizer = llm.get_tokenizer()
        self._version = version
        await self.vllm.answer(llm.update_weight_version(str(version)))

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
        """Sample one turn. Cancelling the awaiting task aborts the request.

        Args:
            prompt_ids: The context, one pad id for each image token.
            images: In the order of their pads.
            max_tokens: Largest number of tokens to sample.
            temperature: Sampling temperature; 0 is greedy.
            seed: Equal seeds, contexts and weights give equal tokens.
            stop_text: The turn ends when this text has been sampled, or at an end token.
            forbidden_ids: Never sampled, like the vision tokens.

        Returns:
            Ids with the end token; log-probabilities under the distribution sampled from, with temperature and
            forbidden tokens in it; the oldest version of the weights that sampled any of them.

        Raises:
            EngineMismatch: If pads and images do not fit each other, or vLLM expanded the images in another way.
        """
        collapsed, num_runs = _collapse(prompt_ids, self._image_pad_id)
        if num_runs != len(images):
            raise EngineMismatch(f"{len(images)} images for {num_runs} runs of image pads")
        params = self.sampling_params(max_tokens, temperature, seed, stop_text, forbidden_ids)
        request_id = str(next(self._request_numbers))
        self._running.add(request_id)
        try:
            return self._completion(await self._sample(request_id, collapsed, images, prompt_ids, params))
        finally:
            self._running.discard(request_id)

    def sampling_params(
        self, max_tokens: int, temperature: float, seed: int, stop_text: str, forbidden_ids: Sequence[int]
    ) -> "SamplingParams":
        """Return vLLM's parameters for one turn; the arguments are those of `generate`."""
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

    @recorded("update", track="weights")
    async def load_weights(self, path: Path, version: int, *, is_adapter: bool = False) -> None:
        """Replace all weights by those of a safetensors file, or merge the adapters of the file into the model's own.

        Requests that run continue under the new weights, their context computed again: the caches of keys and values,
        of images and of their encodings are emptied together.

        Raises:
            FileNotFoundError: If there is no such file; the engine keeps the weights it has.
            EngineDied: If vLLM's process is gone.
            Exception: Whatever vLLM raised; the weights may be mixed, so the engine is closed.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(path)
        await self.begin_update()
        await self.receive_weights({"path": str(path), "is_adapter": is_adapter})
        await self.end_update(version)

    async def connect_weights(self, info: dict[str, Any]) -> None:
        """Leave the former transfer group, if any, and join the learners' new one. Raises as `load_weights`."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self.vllm.answer(self.vllm.llm.shutdown_weight_transfer_engine())
        await self.vllm.answer(self.vllm.llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=info)))

    async def begin_update(self) -> None:
        """Pause running requests: the first part of an update. Each part raises as `load_weights`."""
        await self._submission.acquire()
        if not self.vllm.is_open:
            self._submission.release()
        llm = self.vllm.llm
        self._updating = True
        async with self._closing_on_failure():
            with span("pause"):
                await self.vllm.answer(llm.pause_generation(mode=self._pause_mode, clear_cache=True))
            await self.vllm.answer(llm.start_weight_update())

    async def receive_weights(self, info: dict[str, Any]) -> None:
        """Receive weights from where `info` says, in the terms of the transfer: the second part, once or more."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        async with self._closing_on_failure() as llm:
            with span("load"):
                await self.vllm.answer(llm.update_weights(WeightTransferUpdateRequest(update_info=info)))

    async def end_update(self, version: int) -> None:
        """Resume requests under the new weights: the last part."""
        async with self._closing_on_failure() as llm:
            with span("load"):
                await self.vllm.answer(llm.finish_weight_update(weight_version=str(version)))
            self._version = version
            if self._is_asleep:
                await self.vllm.answer(llm.wake_up(tags=["kv_cache"]))
                self._is_asleep = False
            with span("resume"):
                await self.vllm.answer(llm.resume_generation())
        self._release_submission()

    async def sample_weights(self, names: Sequence[str]) -> dict[str, tuple[list[int], bytes]]:
        """Return blocks of the named weights, as the first of the engine's workers uses them (`weights.comparison`).

        Raises:
            EngineDied: If vLLM's process is gone.
        """
        workers = await self.vllm.answer(self.vllm.llm.collective_rpc("sample_weights", args=(list(names),)))
        return {name: (shape, data) for name, (shape, data) in workers[0].items()}

    @asynccontextmanager
    async def _closing_on_failure(self) -> AsyncIterator["AsyncLLM"]:
        """Close the engine if a part of an update fails: the weights may be mixed."""
        llm = self.vllm.llm
        try:
            yield llm
        except BaseException as error:
            try:
                self.check()
                await self._shut_down(failure=error)
            finally:
                self._release_submission()
            raise

    def _release_submission(self) -> None:
        self._updating = False
        self._submission.release()

    @recorded("sleep", track="weights")
    async def sleep(self) -> None:
        """Free the GPU's memory; wait for running requests first. No-op on CPU.

        The weights are dropped: the learners send new ones before the engine samples again.
        """
        if self._can_sleep:
            await self.vllm.answer(self.vllm.llm.sleep(level=2, mode="wait"))
            self._is_asleep = True

    @recorded("wake", track="weights")
    async def wake(self) -> None:
        """Take memory for the weights back; the end of the next update takes the rest. No-op on CPU.

        A transfer thus has the room of the key-value cache for its buffers.
        """
        if self._is_asleep:
            await self.vllm.answer(self.vllm.llm.wake_up(tags=["weights"]))

    async def close(self) -> None:
        """End vLLM's process; running requests come back as aborted, and an unfinished update is not waited for."""
        if self._updating:
            await self._shut_down()
            return
        async with self._submission:
            await self._shut_down()

    async def _shut_down(self, failure: BaseException | None = None) -> None:
        await self.vllm.shut_down(self._running, at_once=self._updating, failure=failure)

    async def _sample(
        self,
        request_id: str,
        collapsed_ids: list[int],
        images: Sequence[Image],
        prompt_ids: Sequence[int],
        params: "SamplingParams",
    ) -> "RequestOutput":
        """Submit a request and wait for its end."""
        submission = asyncio.ensure_future(self._submit(request_id, collapsed_ids, images, params))
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
        self, request_id: str, collapsed_ids: list[int], images: Sequence[Image], params: "SamplingParams"
    ) -> tuple["AsyncLLM", "RequestOutputCollector", list[int]]:
        """Submit a request to vLLM; return the prompt's ids as vLLM has expanded them."""
        _ = self.vllm.llm  # raises at once where the engine is closed
        prompt: dict[str, Any] = {"prompt_token_ids": collapsed_ids}
        prepared = await asyncio.gather(*(self._images.prepare(image) for image in images))
        if images:
            prompt["multi_modal_data"] = {"image": [image.view for image in prepared]}
            prompt["multi_modal_uuids"] = {"image": [image.key for image in images]}
        async with self._submission:
            llm = self.vllm.llm
            (rendered,) = await llm.renderer.render_cmpl_async([prompt])
            queue = await llm.add_request(request_id, rendered, params)
            return llm, queue, list(rendered["prompt_token_ids"])

    def _completion(self, output: "RequestOutput") -> Completion:
        """Read a turn from vLLM's output."""
        sampled = output.outputs[0]
        ids = tuple(sampled.token_ids)
        logprobs = tuple(sampled.logprobs.logprobs) if ids else ()
        if len(logprobs) != len(ids):
            raise EngineMismatch(f"{len(logprobs)} log-probabilities for {len(ids)} sampled ids")
        if sampled.finish_reason not in get_args(FinishReason):
            raise RuntimeError(f"vLLM ended a request with {sampled.finish_reason!r}")
        # By an end token, which is no part of the text, or by the stop text.
        by_end_token = sampled.finish_reason == "stop" and not isinstance(sampled.stop_reason, str)
        return Completion(
            token_ids=ids,
            logprobs=logprobs,
            text=self._tokenizer.decode(ids[:-1] if by_end_token else ids, skip_special_tokens=False),
            finish_reason=sampled.finish_reason,
            policy_version=min((int(span.version) for span in sampled.weight_versions or ()), default=self._version),
        )


def _collapse(ids: Sequence[int], pad_id: int) -> tuple[list[int], int]:
    """Return the ids with one pad for each run of pads, and the number of runs."""
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
    index = next((index for index, equal in enumerate(same) if not equal), min(len(seen), len(expected)))
    return (
        f"the engine reads {len(seen)} prompt ids, the session has {len(expected)}; from place {index} on they differ"
    )
