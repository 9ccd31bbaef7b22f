"""Section 8: image requests that run over a weight update, seeds repeated, and how far engine and learner are apart.

The update brings the weights that the engine has: contexts are computed again after the update, and one model can
score every token.
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
from arm_rl.core.compute_config import RolloutConfig
from arm_rl.core.images import Image
from arm_rl.core.micro_batch import collate
from arm_rl.core.session import Completion
from arm_rl.gpu_proof.frame import Report
from arm_rl.gpu_proof.samples import TokenIds, noise, prompt, training_sample
from arm_rl.gpu_proof.scale import NOT_ON_CPU, Proof

ALONE = 4  # requests that are repeated one at a time
LONG = 2  # requests with a prompt that the engine computes in pieces
LARGE_GAP = 0.2
SECONDS_BEFORE_UPDATE = {"cuda": 1.0, "cpu": 0.2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One request of the engine."""

    prompt_ids: tuple[int, ...]
    image: Image
    seed: int


def run(proof: Proof) -> Report:
    """Pass where all requests end, seeds repeat one at a time, and the mean gap is small."""
    requests = make_requests(proof)
    over_update, again, same_alone, spanned = asyncio.run(_sample(proof, requests))
    gaps = _gaps(proof, requests, over_update)
    repeated = [one.token_ids == other.token_ids for one, other in zip(over_update, again, strict=True)]
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
        "repeated_together": sum(repeated) / len(repeated),
        "tokens": len(gaps),
    }
    line = (
        f"{len(requests)} requests, {spanned} over the update; gap {mean:.2g} in the mean, {p99:.2g} at p99, "
        f"{large:.2%} beyond {LARGE_GAP}; ids repeat alone, and {sum(repeated)} of {len(repeated)} together"
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


async def _sample(
    proof: Proof, requests: Sequence[Request]
) -> tuple[list[Completion], list[Completion], list[bool], int]:
    """Sample all requests over an update, and again without one.

    Returns:
        Completions over the update and without one, whether each of a few requests alone gives the same ids twice, and
        the number of requests that had begun before the update and ended after it.
    """
    rollout = RolloutConfig(
        max_model_len=proof.scale.max_model_len,
        max_num_seqs=len(requests),
        max_images=1,
        gpu_memory_utilization=0.6,
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

        alone = [[await sample(request) for request in requests[:ALONE]] for _ in range(2)]
        same_alone = [one.token_ids == other.token_ids for one, other in zip(*alone, strict=True)]
        running = [asyncio.create_task(sample(request)) for request in requests]
        await asyncio.sleep(SECONDS_BEFORE_UPDATE[proof.device])
        unfinished = [not task.done() for task in running]
        (weights,) = proof.model_folder.glob("*.safetensors")
        await engine.load_weights(weights, 1)
        over_update = await asyncio.gather(*running)
        # The version of a completion is the oldest that sampled any of its tokens.
        spanned = sum(late and one.policy_version == 0 for late, one in zip(unfinished, over_update, strict=True))
        again = await asyncio.gather(*(sample(request) for request in requests))
        return list(over_update), list(again), same_alone, spanned
    finally:
        await engine.close()


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
