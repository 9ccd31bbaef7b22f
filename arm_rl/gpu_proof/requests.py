"""Section 8: image requests that run over a weight update, seeds repeated, and how far engine and learner are apart.

A few requests, long prompts among them, are sampled one at a time, twice, with empty caches before each. Then all run
together over an update. The update brings the weights that the engine has: contexts are computed again after it, and one
model can score every token.
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import AutoImageProcessor

from actors.learner.image_inputs import ImagePreparer
from actors.learner.policy_model import PolicyModel
from actors.rollout.engine import Engine
from actors.rollout.engine_settings import spare_threads
from arm_rl.core.compute_config import RolloutConfig
from arm_rl.core.images import Image
from arm_rl.core.micro_batch import collate
from arm_rl.core.session import Completion
from arm_rl.gpu_proof.frame import Report
from arm_rl.gpu_proof.samples import TokenIds, noise, prompt, training_sample
from arm_rl.gpu_proof.scale import NOT_ON_CPU, Proof

ALONE = 4  # requests that are repeated one at a time
LONG = 2  # requests with a prompt that the engine computes in pieces; the first ones
LARGE_GAP = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One request of the engine."""

    prompt_ids: tuple[int, ...]
    image: Image
    seed: int


def run(proof: Proof) -> Report:
    """Pass where all requests end, seeds repeat one at a time, and the mean gap is small."""
    requests = make_requests(proof)
    over_update, same_alone, spanned = asyncio.run(_sample(proof, requests))
    gaps = _gaps(proof, requests, over_update)
    mean, p99, large = float(gaps.mean()), float(np.quantile(gaps, 0.99)), float((gaps > LARGE_GAP).mean())
    problems = []
    if not all(same_alone):
        problems.append(f"{same_alone.count(False)} of {len(same_alone)} requests alone gave other ids when repeated")
    if proof.on_gpu and not spanned:  # on a busy CPU none may have begun
        problems.append("no request had begun before the update and ended after it")
    if not mean <= proof.scale.max_gap:
        problems.append(f"engine and learner differ by {mean:.3g} in the mean, {proof.scale.max_gap} is allowed")
    numbers = {
        "mean_gap": mean,
        "p99_gap": p99,
        "share_beyond_0.2": large,
        "over_the_update": spanned,
        "tokens": len(gaps),
    }
    line = (
        f"{len(requests)} requests, {spanned} over the update; gap {mean:.2g} in the mean, {p99:.2g} at p99, "
        f"{large:.2%} beyond {LARGE_GAP}; {sum(same_alone)} of {len(same_alone)} repeat their ids"
    )
    if not proof.on_gpu:
        line += f"; prompts in pieces: {NOT_ON_CPU}"
    return Report(line=line, numbers=numbers, problems=problems)


def make_requests(proof: Proof) -> list[Request]:
    """Return requests with an image each; the first few prompts are long."""
    source, ids = random.Random(8), TokenIds.of(proof.model_folder)
    made = []
    for number in range(proof.scale.num_requests):
        image = noise(source, proof.scale.image_side)
        length = proof.scale.long_prompt if number < LONG else proof.scale.prompt_tokens
        made.append(Request(prompt_ids=prompt(source, ids, proof.view, [image], length), image=image, seed=number))
    return made


async def _sample(proof: Proof, requests: Sequence[Request]) -> tuple[list[Completion], list[bool], int]:
    """Sample a few requests one at a time, twice, and then all of them over an update.

    Returns:
        Completions over the update, whether each request alone gives the same ids twice, and the number of requests
        that had begun before the update and ended after it.
    """
    rollout = RolloutConfig(
        max_model_len=proof.scale.max_model_len,
        max_num_seqs=len(requests),
        max_images=1,
        gpu_memory_utilization=0.6,
        image_threads=spare_threads(1.0),
        enforce_eager=True,
    )
    engine = Engine(proof.model, rollout, proof.view, seed=0, use_gpu=proof.on_gpu)
    await engine.start()
    try:

        async def sample(request: Request) -> Completion:
            return await engine.generate(
                request.prompt_ids,
                [request.image],
                max_tokens=proof.scale.sampled_tokens,
                temperature=1.0,
                seed=request.seed,
            )

        alone = []
        for _ in range(2):
            await _empty_caches(engine)
            alone.append([await sample(request) for request in requests[:ALONE]])
        same_alone = [one.token_ids == other.token_ids for one, other in zip(*alone, strict=True)]
        running = [asyncio.create_task(sample(request)) for request in requests]
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)  # others have begun as well
        (weights,) = proof.model_folder.glob("*.safetensors")
        await engine.load_weights(weights, 1)
        completions = await asyncio.gather(*running)
        # The version of a completion is the oldest that sampled any of its tokens.
        spanned = sum(
            task not in done and one.policy_version == 0 for task, one in zip(running, completions, strict=True)
        )
        return list(completions), same_alone, spanned
    finally:
        await engine.close()


async def _empty_caches(engine: Engine) -> None:
    """Empty the caches of prefixes and images, so that the engine computes every prompt again."""
    await engine.vllm.answer(engine.vllm.llm.pause_generation(mode="keep", clear_cache=True))
    await engine.vllm.answer(engine.vllm.llm.resume_generation())


def _gaps(proof: Proof, requests: Sequence[Request], completions: Sequence[Completion]) -> np.ndarray:
    """Return the differences of the engine's and the learner's log-probabilities of all sampled tokens."""
    ids = TokenIds.of(proof.model_folder)
    policy = PolicyModel.load(proof.model, never_sampled_ids=ids.never_sampled).to(proof.device).eval()
    preparer = ImagePreparer(AutoImageProcessor.from_pretrained(proof.model_folder), proof.view)
    source = random.Random(0)
    gaps = []
    for request, completion in zip(requests, completions, strict=True):
        image = request.image
        sample = training_sample(
            source,
            ids,
            proof.view,
            [image],
            prompt_ids=request.prompt_ids,
            sampled_ids=completion.token_ids,
            logprobs=completion.logprobs,
        )
        batch = collate([sample])
        with torch.no_grad():
            logprobs, _ = policy(batch, preparer.prepare([image.key], {image.key: image}))
        gaps.append((logprobs.cpu() - batch.logprobs).abs().numpy())
    return np.concatenate(gaps)
