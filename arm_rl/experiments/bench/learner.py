"""How fast the learners are: one rank against a bare torch loop, and two ranks against one."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import ray
from ray import ObjectRef

from actors.learner.ranks import LearnerRanks
from actors.learner.settings import LearnerSpec, learner_environment
from arm_rl.core.batching import make_batch
from arm_rl.core.compute_config import LearnerConfig
from arm_rl.core.config import ModelConfig
from arm_rl.core.images import Image
from arm_rl.core.types import Batch, TrainingSample
from arm_rl.experiments.bench import models
from arm_rl.experiments.bench.bare_loop import OBJECTIVE, BareLoop
from arm_rl.experiments.bench.benchmark import Measurement, SpeedBenchmark, Workspace, medians
from arm_rl.experiments.bench.models import ModelSize, SyntheticAnswers, SyntheticTrajectories

CPU_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class LearnerSettings:
    """Model, trajectories and repeats of one comparison with the bare loop."""

    trajectories: SyntheticTrajectories | SyntheticAnswers
    size: ModelSize = ModelSize()
    micro_batch_tokens: int = 4096
    gradient_checkpointing: bool = False  # on both sides
    num_threads: int = 1
    steps: int = 2  # of one measurement
    repeats: int = 5


@dataclass(frozen=True, kw_only=True)
class RankSettings:
    """Model, trajectories and repeats of one comparison of two ranks with one."""

    zero_stage: Literal[0, 2] = 0
    size: ModelSize = ModelSize(hidden=256, layers=6, intermediate=768)
    trajectories: SyntheticTrajectories = SyntheticTrajectories(num_groups=8, group_size=8)
    micro_batch_tokens: int = 1024
    steps: int = 1  # of one measurement
    repeats: int = 5


def measure(settings: LearnerSettings, workspace: Workspace) -> Measurement:
    """Measure loss tokens a second of one rank and of the bare loop."""
    num_parameters = models.build(workspace.temporary, settings.size)
    samples, images = settings.trajectories.make(workspace.temporary)
    batch = make_batch(samples, num_ranks=1, micro_batch_tokens=settings.micro_batch_tokens)
    spec = spec_of(
        workspace.temporary,
        settings.trajectories,
        num_threads=settings.num_threads,
        micro_batch_tokens=settings.micro_batch_tokens,
        gradient_checkpointing=settings.gradient_checkpointing,
    )
    stored = _stored(images)
    with _ranks(spec) as ranks, _bare_loop(spec, samples, images) as bare:
        ours, other, seconds = _in_turn(
            ranks,
            lambda: _rate(batch, settings.steps, lambda: ranks.train(batch, stored, OBJECTIVE)),
            lambda: _rate(batch, settings.steps, lambda: ray.get(bare.step.remote())),
            settings,
        )
        preparing = ray.get(bare.seconds_to_prepare.remote())
    return Measurement(
        ours=ours,
        other=other,
        notes=[
            f"{num_parameters:,} parameters, float32, {settings.num_threads} thread(s) each, all weights trained, learning rate 0",
            f"{len(samples)} trajectories in groups of {settings.trajectories.group_size}, "
            f"{sum(len(sample.token_ids) for sample in samples):,} tokens if prompts are repeated, {batch.num_loss_tokens:,} with "
            f"loss, in {len(batch.micro_batches[0])} packed rows"
            + (", gradient checkpointing on both sides" if settings.gradient_checkpointing else ""),
            "the bare loop encodes the images and the prompt of each trajectory by itself, as TRL does, and pads trajectories of "
            "like length; its micro-batches are tensors that are ready, ours come through Ray as samples; images are cut into "
            "patches beforehand on both sides",
        ],
        details={"seconds": seconds, "seconds_to_prepare_an_image": preparing / max(len(images), 1)},
    )


def measure_ranks(settings: RankSettings, workspace: Workspace) -> Measurement:
    """Measure loss tokens a second of two ranks and of one, with one thread each."""
    num_parameters = models.build(workspace.temporary, settings.size)
    samples, images = settings.trajectories.make(workspace.temporary)
    one_share, two_shares = (
        make_batch(samples, num_ranks=number, micro_batch_tokens=settings.micro_batch_tokens) for number in (1, 2)
    )
    spec = spec_of(
        workspace.temporary, settings.trajectories, num_threads=1, micro_batch_tokens=settings.micro_batch_tokens
    )
    one, two = (
        replace(spec, config=replace(spec.config, num_ranks=number, zero_stage=settings.zero_stage))
        for number in (1, 2)
    )
    stored = _stored(images)
    with _ranks(one) as single, _ranks(two) as pair:
        ours, other, seconds = _in_turn(
            pair,
            lambda: _rate(two_shares, settings.steps, lambda: pair.train(two_shares, stored, OBJECTIVE)),
            lambda: _rate(one_share, settings.steps, lambda: single.train(one_share, stored, OBJECTIVE)),
            settings,
        )
    return Measurement(
        ours=ours,
        other=other,
        notes=[
            f"{num_parameters:,} parameters, float32, one thread a rank, gloo",
            f"{len(samples)} trajectories of {len(samples[0].token_ids)} tokens in groups of "
            f"{settings.trajectories.group_size}, {len(one_share.micro_batches[0])} micro-batches on one rank, "
            f"{len(two_shares.micro_batches[0])} on each of two",
        ],
        details={"seconds": seconds},
    )


def against_bare_loop(key: str, *, goal: float, what: str, settings: LearnerSettings) -> SpeedBenchmark:
    trajectories = settings.trajectories
    fewer = replace(trajectories, num_groups=min(trajectories.num_groups, 4))
    return SpeedBenchmark(
        key=key,
        what=what,
        unit="loss tokens/s",
        goal=goal,
        settings=settings,
        quick=replace(settings, trajectories=fewer, steps=1, repeats=2),
        measure=measure,
    )


def _two_ranks_over_one(key: str, settings: RankSettings) -> SpeedBenchmark:
    return SpeedBenchmark(
        key=key,
        what=f"loss tokens a second of 2 learner ranks over 1, ZeRO stage {settings.zero_stage}",
        unit="loss tokens/s",
        goal=1.6,
        settings=settings,
        quick=replace(settings, trajectories=replace(settings.trajectories, num_groups=4), repeats=2),
        measure=measure_ranks,
    )


AGAINST_BARE_LOOP = (
    against_bare_loop(
        "learner_efficiency",
        goal=1.0,
        what="loss tokens a second of one learner rank over a bare torch loop; nothing is shared",
        settings=LearnerSettings(trajectories=SyntheticTrajectories(num_groups=64, group_size=1)),
    ),
    against_bare_loop(
        "learner_efficiency_groups_of_8",
        goal=1.0,
        what="the same, 8 trajectories of the demo's size a prompt",
        settings=LearnerSettings(trajectories=SyntheticTrajectories(num_groups=16, group_size=8)),
    ),
    against_bare_loop(
        "learner_efficiency_groups_of_16",
        goal=1.5,
        what="the same, 16 trajectories of the demo's size a prompt",
        settings=LearnerSettings(trajectories=SyntheticTrajectories(num_groups=8, group_size=16)),
    ),
    against_bare_loop(
        "learner_efficiency_images",
        goal=1.5,
        what="the same, 16 trajectories that share a prompt with an image of 1,024 tokens",
        settings=LearnerSettings(
            trajectories=SyntheticTrajectories(num_groups=1, group_size=16, prompt_pixels=512), steps=1
        ),
    ),
)
TWO_RANKS_OVER_ONE = (
    _two_ranks_over_one("ranks", RankSettings()),
    _two_ranks_over_one("ranks_zero_2", RankSettings(zero_stage=2)),
)


def _in_turn(
    ranks: LearnerRanks,
    ours: Callable[[], float],
    other: Callable[[], float],
    settings: LearnerSettings | RankSettings,
) -> tuple[list[float], list[float], dict[str, float]]:
    """Measure both sides after one round of warm-up.

    Args:
        ranks: our side.
        ours: measures our rate.
        other: measures the other rate.
        settings: the steps of one measurement and the number of repeats.

    Returns:
        Our rates, the other rates, and the median seconds of a step of our rank 0 by kind of span.
    """
    rates, phases = [], []
    for _ in range(settings.repeats + 1):
        _spans(ranks, settings.steps)
        rates.append((ours(), other()))
        phases.append(_spans(ranks, settings.steps))
    first, second = zip(*rates[1:], strict=True)
    return list(first), list(second), medians(phases[1:])


def spec_of(
    folder: Path,
    trajectories: SyntheticTrajectories | SyntheticAnswers,
    *,
    num_threads: int,
    micro_batch_tokens: int,
    gradient_checkpointing: bool = False,
) -> LearnerSpec:
    """Return the specification of a learner on the CPU that trains all weights of the model in `folder`, at the rate 0."""
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
            gradient_checkpointing=gradient_checkpointing,
        ),
        view=trajectories.view,
        num_steps=1,
        use_gpu=False,
    )


def _stored(images: Mapping[str, Image]) -> dict[str, ObjectRef]:
    bundle = ray.put(dict(images))
    return dict.fromkeys(images, bundle)


def _rate(batch: Batch, steps: int, step: Any) -> float:
    """Return loss tokens a second of some steps."""
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return steps * batch.num_loss_tokens / (time.perf_counter() - started)


def _spans(ranks: LearnerRanks, steps: int) -> dict[str, float]:
    """Return seconds a step of rank 0 by kind of span since the last call."""
    (recorded, *_) = ray.get(list(ranks.spans().values()))
    seconds: Counter[str] = Counter()
    for span in recorded.spans:
        seconds[span.kind] += (span.end - span.start) / 1e6 / steps
    return dict(seconds)


@contextlib.contextmanager
def _ranks(spec: LearnerSpec) -> Iterator[LearnerRanks]:
    ranks = LearnerRanks(spec, [{"num_cpus": CPU_SHARE}] * spec.config.num_ranks)
    try:
        yield ranks
    finally:
        ranks.close()


@contextlib.contextmanager
def _bare_loop(spec: LearnerSpec, samples: Sequence[TrainingSample], images: Mapping[str, Image]) -> Iterator[Any]:
    environment = {"env_vars": learner_environment(spec.config, use_gpu=False)}
    actor = ray.remote(BareLoop).options(num_cpus=CPU_SHARE, runtime_env=environment).remote(spec, samples, images)
    try:
        yield actor
    finally:
        ray.kill(actor)
