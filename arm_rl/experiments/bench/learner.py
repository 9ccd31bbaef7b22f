"""How fast the learners are: one rank against a bare torch loop, and two ranks against one.

The bare loop takes the batch's micro-batches as tensors that are ready, runs Hugging Face's model over each trajectory's prompt, images
and turns, and takes the clipped surrogate and a step of AdamW. It has no metrics, no forbidden tokens and no other actor to speak to.
"""

import contextlib
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import ray
import torch
from ray import ObjectRef
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForImageTextToText

from actors.learner.image_inputs import ImagePreparer
from actors.learner.ranks import LearnerRanks
from actors.learner.settings import LearnerSpec, learner_environment
from arm_rl.core.batching import collate, make_batch
from arm_rl.core.compute_config import LearnerConfig
from arm_rl.core.config import ModelConfig
from arm_rl.core.images import Image
from arm_rl.core.loss import GrpoObjective
from arm_rl.core.types import Batch, TrainingSample
from arm_rl.experiments.bench import models
from arm_rl.experiments.bench.models import ModelSize, Work
from arm_rl.experiments.bench.result import Result

OBJECTIVE = GrpoObjective()
CPU_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One comparison with the bare loop."""

    key: str
    goal: float
    work: Work
    what: str
    size: ModelSize = ModelSize()
    micro_batch_tokens: int = 4096
    num_threads: int = 1
    steps: int = 2  # of one measurement
    repeats: int = 5

    def quick(self) -> "Settings":
        """To try it."""
        return replace(self, work=replace(self.work, num_groups=min(self.work.num_groups, 4)), steps=1, repeats=2)


CASES = (
    Settings(
        key="learner_efficiency",
        goal=1.0,
        work=Work(num_groups=64, group_size=1),
        what="loss tokens a second of one learner rank over a bare torch loop; nothing is shared",
    ),
    Settings(
        key="learner_efficiency_groups_of_8",
        goal=1.0,
        work=Work(num_groups=16, group_size=8),
        what="the same, 8 trajectories of the demo's size a prompt",
    ),
    Settings(
        key="learner_efficiency_groups_of_16",
        goal=1.5,
        work=Work(num_groups=8, group_size=16),
        what="the same, 16 trajectories of the demo's size a prompt",
    ),
    Settings(
        key="learner_efficiency_images",
        goal=1.5,
        work=Work(num_groups=1, group_size=16, prompt_pixels=512),
        what="the same, 16 trajectories that share a prompt with an image of 1,024 tokens",
        steps=1,
    ),
)


@dataclass(frozen=True, kw_only=True)
class RankSettings:
    """Two ranks over one."""

    zero_stage: Literal[0, 2] = 0
    size: ModelSize = ModelSize(hidden=256, layers=6, intermediate=768)
    work: Work = Work(num_groups=8, group_size=8)
    micro_batch_tokens: int = 1024
    steps: int = 1  # of one measurement
    repeats: int = 5

    def quick(self) -> "RankSettings":
        """To try it."""
        return replace(self, work=replace(self.work, num_groups=4), repeats=2)


RANK_CASES = (RankSettings(), RankSettings(zero_stage=2))


def measure(settings: Settings) -> Result:
    """One rank against the bare loop. Wants a Ray cluster."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_parameters = models.build(folder, settings.size)
        samples, images = settings.work.make(folder)
        batch = make_batch(samples, num_ranks=1, micro_batch_tokens=settings.micro_batch_tokens)
        spec = _spec(
            folder, settings.work, num_threads=settings.num_threads, micro_batch_tokens=settings.micro_batch_tokens
        )
        where = _stored(images)
        with _group(spec) as group, _bare_loop(spec, batch, images) as bare:
            ours, other, phases = [], [], []
            for repeat in range(settings.repeats + 1):
                _spans(group)
                rates = (
                    _rate(batch, settings.steps, lambda: group.train(batch, where, OBJECTIVE)),
                    _rate(batch, settings.steps, lambda: ray.get(bare.step.remote())),
                )
                if repeat:  # the first ones warm up
                    ours.append(rates[0])
                    other.append(rates[1])
                    phases.append(_spans(group))
            preparing = ray.get(bare.seconds_to_prepare.remote())
    return Result.of(
        key=settings.key,
        what=settings.what,
        goal=settings.goal,
        unit="loss tokens/s",
        ours=ours,
        other=other,
        notes=[
            f"{num_parameters:,} parameters, float32, {settings.num_threads} thread(s) each, all weights trained, learning rate 0",
            f"{len(samples)} trajectories of {len(samples[0].token_ids)} tokens, {samples[0].num_loss_tokens} of them with loss, in "
            f"{len(batch.micro_batches[0])} micro-batches",
            "the bare loop encodes the images and the prompt of each trajectory by itself, as TRL does; its micro-batches are tensors that "
            "are ready, ours come through Ray as samples; images are cut into patches beforehand on both sides",
        ],
        details={
            # of a step
            "seconds": {
                kind: statistics.median(one.get(kind, 0.0) for one in phases) / settings.steps for kind in phases[0]
            },
            "seconds_to_prepare_an_image": preparing / len(images),
        },
    )


def measure_ranks(settings: RankSettings) -> Result:
    """Two ranks against one, one thread each. Wants a Ray cluster."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_parameters = models.build(folder, settings.size)
        samples, images = settings.work.make(folder)
        batches = [
            make_batch(samples, num_ranks=ranks, micro_batch_tokens=settings.micro_batch_tokens) for ranks in (1, 2)
        ]
        spec = _spec(folder, settings.work, num_threads=1, micro_batch_tokens=settings.micro_batch_tokens)
        one, two = (
            replace(spec, config=replace(spec.config, num_ranks=ranks, zero_stage=settings.zero_stage))
            for ranks in (1, 2)
        )
        where = _stored(images)
        with _group(one) as first, _group(two) as second:
            ours, other, phases = [], [], []
            for repeat in range(settings.repeats + 1):
                _spans(second)
                rates = (
                    _rate(batches[1], settings.steps, lambda: second.train(batches[1], where, OBJECTIVE)),
                    _rate(batches[0], settings.steps, lambda: first.train(batches[0], where, OBJECTIVE)),
                )
                if repeat:
                    ours.append(rates[0])
                    other.append(rates[1])
                    phases.append(_spans(second))
    return Result.of(
        key="ranks" if not settings.zero_stage else f"ranks_zero_{settings.zero_stage}",
        what=f"loss tokens a second of 2 learner ranks over 1, ZeRO stage {settings.zero_stage}",
        goal=1.6,
        unit="loss tokens/s",
        ours=ours,
        other=other,
        notes=[
            f"{num_parameters:,} parameters, float32, one thread a rank, gloo",
            f"{len(samples)} trajectories of {len(samples[0].token_ids)} tokens in groups of {settings.work.group_size}, "
            f"{len(batches[0].micro_batches[0])} micro-batches on one rank, {len(batches[1].micro_batches[0])} on each of two",
        ],
        details={
            "seconds": {
                kind: statistics.median(part.get(kind, 0.0) for part in phases) / settings.steps for kind in phases[0]
            }
        },
    )


def _spec(folder: Path, work: Work, *, num_threads: int, micro_batch_tokens: int) -> LearnerSpec:
    return LearnerSpec(
        model=ModelConfig(path=str(folder), dtype="float32"),
        config=LearnerConfig(
            num_ranks=1,
            zero_stage=0,
            num_threads=num_threads,
            micro_batch_tokens=micro_batch_tokens,
            learning_rate=0.0,
            freeze_vision=False,
            freeze_projector=False,
        ),
        view=work.view,
        num_steps=1,
        use_gpu=False,
    )


def _stored(images: Mapping[str, Image]) -> dict[str, ObjectRef]:
    bundle = ray.put(dict(images))
    return dict.fromkeys(images, bundle)


def _rate(batch: Batch, steps: int, step: Any) -> float:
    """Loss tokens a second."""
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return steps * batch.num_loss_tokens / (time.perf_counter() - started)


def _spans(group: LearnerRanks) -> dict[str, float]:
    """Seconds of rank 0 by kind since the last call."""
    (recorded, *_) = ray.get(list(group.spans().values()))
    seconds: Counter[str] = Counter()
    for span in recorded.spans:
        seconds[span.kind] += (span.end - span.start) / 1e6
    return dict(seconds)


@contextlib.contextmanager
def _group(spec: LearnerSpec) -> Iterator[LearnerRanks]:
    group = LearnerRanks(spec, [{"num_cpus": CPU_SHARE}] * spec.config.num_ranks)
    try:
        yield group
    finally:
        group.close()


@contextlib.contextmanager
def _bare_loop(spec: LearnerSpec, batch: Batch, images: Mapping[str, Image]) -> Iterator[Any]:
    environment = {"env_vars": learner_environment(spec.config, use_gpu=False)}
    actor = (
        ray.remote(BareLoop)
        .options(num_cpus=CPU_SHARE, runtime_env=environment)
        .remote(spec, batch.micro_batches[0], images)
    )
    try:
        yield actor
    finally:
        ray.kill(actor)


@dataclass(frozen=True, kw_only=True)
class _Tensors:
    """A micro-batch of the bare loop."""

    inputs: dict[str, Any]
    loss_mask: Tensor  # bool [B, T]
    logprobs: Tensor  # float32 [B, T]
    advantages: Tensor  # float32 [B, T]


class BareLoop:
    """A training loop as one would write it down, in a process of its own with the learner's environment."""

    def __init__(
        self, spec: LearnerSpec, micro_batches: Sequence[Sequence[TrainingSample]], images: Mapping[str, Image]
    ) -> None:
        torch.set_num_threads(spec.config.num_threads)
        self._config = spec.config
        self._model = AutoModelForImageTextToText.from_pretrained(
            spec.model.path, dtype=torch.float32, attn_implementation="sdpa"
        ).train()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=0.0, betas=spec.config.betas, fused=True)
        self._preparer = ImagePreparer(AutoImageProcessor.from_pretrained(spec.model.path), spec.view)
        started = time.perf_counter()
        self._preparer.prepare(list(images), images)
        self._seconds_to_prepare = time.perf_counter() - started
        self._num_loss_tokens = sum(sample.num_loss_tokens for samples in micro_batches for sample in samples)
        self._micro_batches = [self._tensors(samples, images) for samples in micro_batches]

    def seconds_to_prepare(self) -> float:
        """For all images, each once."""
        return self._seconds_to_prepare

    def step(self) -> float:
        """One optimizer step; gives the loss."""
        total = 0.0
        for tensors in self._micro_batches:
            logits = self._model(**tensors.inputs).logits  # [B, T, V]
            # [B, T - 1]
            logprobs = logits[:, :-1].log_softmax(dim=-1).gather(-1, tensors.inputs["input_ids"][:, 1:, None])[..., 0]
            ratio = torch.exp(torch.where(tensors.loss_mask, logprobs - tensors.logprobs, 0.0))
            clipped = ratio.clamp(1 - OBJECTIVE.clip_low, 1 + OBJECTIVE.clip_high)
            surrogate = torch.minimum(ratio * tensors.advantages, clipped * tensors.advantages)
            loss = -(surrogate * tensors.loss_mask).sum() / self._num_loss_tokens
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(self._model.parameters(), self._config.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return total

    def _tensors(self, samples: Sequence[TrainingSample], images: Mapping[str, Image]) -> _Tensors:
        batch = collate(samples)
        # a copy for each place
        prepared = self._preparer.prepare([key for sample in samples for key in sample.image_keys], images)
        kinds = (batch.token_ids == self._model.config.image_token_id).int()
        inputs = {"input_ids": batch.token_ids, "mm_token_type_ids": kinds, "use_cache": False}
        if not batch.attention_mask.all():
            inputs["attention_mask"] = batch.attention_mask
        return _Tensors(
            inputs=inputs | {"pixel_values": prepared.patches, "image_grid_thw": prepared.grids},
            loss_mask=batch.loss_mask[:, 1:],
            logprobs=batch.logprobs[:, 1:],
            advantages=batch.advantages[:, 1:],
        )
