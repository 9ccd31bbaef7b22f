"""Section 9: tokens that an engine reads and samples a second, and images, in the terms of the plan's `Efficiency`."""

import asyncio
import logging
import random
import time
from collections.abc import Sequence

from transformers import AutoImageProcessor

from actors.learner.image_inputs import ImagePreparer
from actors.rollout.engine import Engine
from actors.rollout.engine_settings import spare_threads
from arm_rl.core.compute_config import RolloutConfig
from arm_rl.core.images import Image
from arm_rl.gpu_proof.frame import Report
from arm_rl.gpu_proof.learner_process import planned_gpu
from arm_rl.gpu_proof.samples import TokenIds, noise, prompt
from arm_rl.gpu_proof.scale import NOT_ON_CPU, Proof
from arm_rl.plan.hardware import Cluster, Efficiency
from arm_rl.plan.shapes import ModelShape
from arm_rl.plan.step_time import EngineTimes

logger = logging.getLogger(__name__)

PREFILLS = 16  # prompts that are read without sampling
NUM_IMAGES = 8
MARGIN = 1.2  # times what one engine took, that must be left of the time box for another one


def run(proof: Proof) -> Report:
    """Pass where at least one setting was measured."""
    started = time.monotonic()
    prepared = _images_prepared(proof)
    settings: list[dict[str, float]] = []
    taken = 0.0  # seconds of the last engine
    for batched_tokens in proof.scale.engine_batched_tokens:
        begun = time.monotonic()
        if begun - started + MARGIN * taken > proof.seconds:
            logger.info("no time for an engine with %d batched tokens", batched_tokens)
            break
        settings += asyncio.run(_measure(proof, batched_tokens))
        taken = time.monotonic() - begun
    wanted = len(proof.scale.engine_batched_tokens) * len(proof.scale.engine_sequences)
    best = max(settings, key=lambda one: one["decode_tokens_per_second"])
    numbers: dict = {"settings": settings, "images_prepared_per_second": prepared}
    line = (
        f"{best['prefill_tokens_per_second']:,.0f} tokens/s read, {best['decode_tokens_per_second']:,.0f} sampled with "
        f"{best['max_num_seqs']:g} sequences; {prepared:.2g} images/s of {proof.scale.large_side} px prepared, "
        f"{best['images_per_second']:.2g} read; {len(settings)} of {wanted} settings"
    )
    if not proof.on_gpu:
        return Report(line=f"{line}; the plan's table: {NOT_ON_CPU}", numbers=numbers)
    gpu = planned_gpu()
    if gpu is None:
        return Report(line=f"{line}; the plan does not know this GPU", numbers=numbers)
    shape = ModelShape.of(str(proof.model_folder))
    ideal = EngineTimes(
        shape=shape,
        cluster=Cluster(gpu=gpu, nodes=1, gpus_per_node=1),
        efficiency=Efficiency(prefill=1.0, decode=1.0, engine_step_seconds=0.0),
    )
    numbers["efficiency"] = efficiency(proof, ideal, settings)
    return Report(line=line, numbers=numbers)


def efficiency(proof: Proof, ideal: EngineTimes, settings: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the measured values of the plan's `Efficiency`, the best of all settings.

    The time between two passes is not told apart from decoding: the plan's own value is taken for it.
    """
    between = Efficiency().engine_step_seconds
    prefill = max(
        PREFILLS * ideal.prefill(proof.scale.prompt_tokens, 0, 0) / one["prefill_seconds"] for one in settings
    )
    decode = [
        ideal.decode(one["max_num_seqs"], one["context_tokens"]).seconds / (one["decode_step_seconds"] - between)
        for one in settings
        if one["decode_step_seconds"] > between
    ]
    return {"prefill": prefill} | ({"decode": max(decode)} if decode else {})


async def _measure(proof: Proof, batched_tokens: int) -> list[dict[str, float]]:
    """Start an engine that computes so many tokens in one pass, and measure it with each number of sequences."""
    scale = proof.scale
    rollout = RolloutConfig(
        max_model_len=scale.max_model_len,
        max_num_seqs=max(scale.engine_sequences),
        max_num_batched_tokens=batched_tokens,
        max_images=1,
        image_threads=spare_threads(1.0),
        gpu_memory_utilization=0.8,
    )
    engine = Engine(proof.model, rollout, proof.view, seed=0, use_gpu=proof.on_gpu)
    await engine.start()
    source, ids = random.Random(9), TokenIds.of(proof.model_folder)
    try:

        async def sample(images: Sequence[Image], tokens: int, max_tokens: int) -> int:
            prompt_ids = prompt(source, ids, proof.view, images, tokens)
            seed = source.randrange(2**31)
            done = await engine.generate(prompt_ids, images, max_tokens=max_tokens, temperature=1.0, seed=seed)
            return len(done.token_ids)

        async def together(number: int, tokens: int, max_tokens: int) -> tuple[float, int]:
            started = time.perf_counter()
            sampled = await asyncio.gather(*(sample([], tokens, max_tokens) for _ in range(number)))
            return time.perf_counter() - started, sum(sampled)

        await together(2, 16, 4)  # warm-up
        prefill_seconds, _ = await together(PREFILLS, scale.prompt_tokens, 1)
        images = [noise(source, scale.large_side) for _ in range(NUM_IMAGES)]
        started = time.perf_counter()
        await asyncio.gather(*(sample([image], 0, 1) for image in images))
        common = {
            "max_num_batched_tokens": batched_tokens,
            "prefill_seconds": prefill_seconds,
            "prefill_tokens_per_second": PREFILLS * scale.prompt_tokens / prefill_seconds,
            "images_per_second": len(images) / (time.perf_counter() - started),
        }
        settings = []
        short = scale.sampled_tokens // 4
        for number in scale.engine_sequences:
            first_seconds, first_tokens = await together(number, 16, short)
            all_seconds, all_tokens = await together(number, 16, scale.sampled_tokens)
            decode_seconds = max(all_seconds - first_seconds, 1e-9)
            decoding = {
                "max_num_seqs": number,
                "decode_step_seconds": decode_seconds / (scale.sampled_tokens - short),
                "decode_tokens_per_second": (all_tokens - first_tokens) / decode_seconds,
                "context_tokens": number * (16 + (short + scale.sampled_tokens) / 2),
            }
            settings.append(common | decoding)
        return settings
    finally:
        await engine.close()


def _images_prepared(proof: Proof) -> float:
    """Return how many large images one thread decodes and cuts into patches a second."""
    preparer = ImagePreparer(AutoImageProcessor.from_pretrained(proof.model_folder), proof.view)
    source = random.Random(0)
    images = [noise(source, proof.scale.large_side) for _ in range(NUM_IMAGES)]
    started = time.perf_counter()
    for image in images:
        preparer.prepare([image.key], {image.key: image})
    return len(images) / (time.perf_counter() - started)
