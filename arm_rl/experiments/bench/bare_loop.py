"""A training loop in plain torch, the other side of the learner's benchmarks.

The loop runs Hugging Face's model over each trajectory's prompt, images and turns, padded to the longest trajectory of a micro-batch,
and takes the clipped surrogate and a step of AdamW. It has no metrics, no forbidden tokens and no other actor to speak to.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoImageProcessor, AutoModelForImageTextToText

from actors.learner.image_inputs import ImagePreparer
from actors.learner.settings import LearnerSpec
from arm_rl.core.images import Image
from arm_rl.core.loss import GrpoObjective
from arm_rl.core.types import TrainingSample

OBJECTIVE = GrpoObjective()


@dataclass(frozen=True, kw_only=True)
class PaddedBatch:
    """Tensors of one forward and backward pass: B trajectories, padded on the right to T tokens."""

    inputs: dict[str, Any]  # of the model
    loss_mask: Tensor  # bool [B, T - 1], True where the next token carries loss
    logprobs: Tensor  # float32 [B, T - 1]
    advantages: Tensor  # float32 [B, T - 1]


class BareLoop:
    """A training loop as one would write it down, for a process of its own with the learner's environment."""

    def __init__(self, spec: LearnerSpec, samples: Sequence[TrainingSample], images: Mapping[str, Image]) -> None:
        torch.set_num_threads(spec.config.num_threads)
        self._config = spec.config
        self.model = AutoModelForImageTextToText.from_pretrained(
            spec.model.path, dtype=torch.float32, attn_implementation="sdpa"
        ).train()
        if spec.config.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, betas=spec.config.betas, fused=True)
        self._preparer = ImagePreparer(AutoImageProcessor.from_pretrained(spec.model.path), spec.view)
        started = time.perf_counter()
        self._preparer.prepare(list(images), images)
        self._seconds_to_prepare = time.perf_counter() - started
        self._num_loss_tokens = sum(sample.num_loss_tokens for sample in samples)
        self.batches = [self._tensors(part, images) for part in by_length(samples, spec.config.micro_batch_tokens)]

    def seconds_to_prepare(self) -> float:
        """Return the seconds that it took to prepare all images, each once."""
        return self._seconds_to_prepare

    def step(self) -> float:
        """Take one optimizer step and return the loss."""
        total = 0.0
        for batch in self.batches:
            loss = self.loss(batch)
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(self.model.parameters(), self._config.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return total

    def loss(self, batch: PaddedBatch) -> Tensor:
        """Return the loss of one micro-batch, a scalar."""
        logits = self.model(**batch.inputs).logits  # [B, T, V]
        # [B, T - 1]
        logprobs = logits[:, :-1].log_softmax(dim=-1).gather(-1, batch.inputs["input_ids"][:, 1:, None])[..., 0]
        ratio = torch.exp(torch.where(batch.loss_mask, logprobs - batch.logprobs, 0.0))
        clipped = ratio.clamp(1 - OBJECTIVE.clip_low, 1 + OBJECTIVE.clip_high)
        surrogate = torch.minimum(ratio * batch.advantages, clipped * batch.advantages)
        return -(surrogate * batch.loss_mask).sum() / self._num_loss_tokens

    def _tensors(self, samples: Sequence[TrainingSample], images: Mapping[str, Image]) -> PaddedBatch:
        token_ids, mask, logprobs, advantages = (
            pad_sequence([torch.tensor(getattr(sample, name)) for sample in samples], batch_first=True)
            for name in ("token_ids", "loss_mask", "logprobs", "advantages")
        )
        lengths = torch.tensor([len(sample.token_ids) for sample in samples])
        attention_mask = torch.arange(token_ids.shape[1]) < lengths[:, None]  # [B, T]
        kinds = (token_ids == self.model.config.image_token_id).int()
        inputs = {"input_ids": token_ids, "mm_token_type_ids": kinds, "use_cache": False}
        if not attention_mask.all():
            inputs["attention_mask"] = attention_mask
        # a copy for each trajectory that shows the image
        if keys := [key for sample in samples for key in sample.image_keys]:
            prepared = self._preparer.prepare(keys, images)
            inputs |= {"pixel_values": prepared.patches, "image_grid_thw": prepared.grids}
        return PaddedBatch(inputs=inputs, loss_mask=mask[:, 1:], logprobs=logprobs[:, 1:], advantages=advantages[:, 1:])


def by_length(samples: Sequence[TrainingSample], num_tokens: int) -> list[list[TrainingSample]]:
    """Return micro-batches of trajectories of like length, each of at most `num_tokens` tokens with padding, or of one sample."""
    batches: list[list[TrainingSample]] = []
    for sample in sorted(samples, key=lambda sample: len(sample.token_ids), reverse=True):
        if batches and (len(batches[-1]) + 1) * len(batches[-1][0].token_ids) <= num_tokens:
            batches[-1].append(sample)
        else:
            batches.append([sample])
    return batches
