"""Section 2: which kernels attention takes: over a prompt, over branches of a shared prompt, in the vision tower."""

import random
from collections.abc import Callable
from dataclasses import replace

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoImageProcessor

from actors.learner.image_inputs import ImagePreparer
from actors.learner.policy_model import PolicyModel
from arm_rl.core.micro_batch import collate
from arm_rl.core.types import TrainingSample
from arm_rl.gpu_proof.frame import Report
from arm_rl.gpu_proof.samples import TokenIds, noise, prompt, training_sample
from arm_rl.gpu_proof.scale import Proof

BRANCHES = 4
PREFIX = "aten::_scaled_dot_product_"
# Where attention is claimed to take flash kernels.
CLAIMED = ("prompt", "branches", "vision")


def run(proof: Proof) -> Report:
    """Pass where attention takes flash kernels in all that is claimed to."""
    model, ids = proof.model, TokenIds.of(proof.model_folder)
    config = replace(proof.learner_config(), zero_stage=0, gradient_checkpointing=False)
    policy = PolicyModel.load(model).make_trainable(config).to(proof.device)
    preparer = ImagePreparer(AutoImageProcessor.from_pretrained(model.path), proof.view)
    source = random.Random(2)
    image = noise(source, proof.scale.image_side)
    patches = preparer.prepare([image.key], {image.key: image})
    length = proof.scale.prompt_tokens

    def group(number: int) -> list[TrainingSample]:
        before = prompt(source, ids, proof.view, [], length)
        return [
            training_sample(
                source,
                ids,
                proof.view,
                [],
                prompt_ids=before,
                sampled_ids=[source.randrange(ids.num_text) for _ in range(proof.scale.sampled_tokens)],
            )
            for _ in range(number)
        ]

    def read(samples: list[TrainingSample]) -> None:
        logprobs, _ = policy(collate(samples))
        logprobs.sum().backward()

    def encode() -> None:
        features = policy.hf.get_image_features(patches.patches.to(proof.device), patches.grids.to(proof.device))
        torch.cat(list(features.pooler_output)).float().sum().backward()

    found = {
        "prompt": _attention(proof, lambda: read(group(1))),
        "branches": _attention(proof, lambda: read(group(BRANCHES))),
        "vision": _attention(proof, encode),
    }
    problems = [
        f"{name} takes no flash kernel but {_names(found[name])}" for name in CLAIMED if not _is_flash(found[name])
    ]
    kernels = "; ".join(f"{name}: {_names(one)}" for name, one in found.items())
    return Report(line=kernels, numbers={"kernels": found}, problems=problems)


def _attention(proof: Proof, work: Callable[[], None]) -> dict[str, int]:
    """Return the forward implementations of attention that `work` calls, each with the number of calls."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if proof.on_gpu else [])]
    work()  # warm-up
    with profile(activities=activities) as recorded:
        work()
        if proof.on_gpu:
            torch.cuda.synchronize()
    return {
        event.key.removeprefix(PREFIX): int(event.count)
        for event in recorded.key_averages()
        if event.key.startswith(PREFIX) and "backward" not in event.key
    }


def _is_flash(found: dict[str, int]) -> bool:
    # cuDNN's is a flash kernel as well.
    return bool(found) and all("flash" in name or "cudnn" in name for name in found)


def _names(found: dict[str, int]) -> str:
    return ", ".join(f"{number} x {name}" for name, number in sorted(found.items())) or "none"
