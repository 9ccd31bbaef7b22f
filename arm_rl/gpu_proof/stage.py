"""Learner and engine of a run on the same device, started as a run starts them, and what sections look at in them."""

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.cluster.reservation import reserve
from actors.learner.ranks import LearnerRanks
from actors.rollout.actor import RolloutActor
from arm_rl.core.batching import make_batch
from arm_rl.core.compute_config import PlacementConfig, RolloutConfig, Transfer
from arm_rl.core.config import (
    DataConfig,
    MetricsConfig,
    RunConfig,
    SessionConfig,
    TemplateConfig,
    ToolsConfig,
)
from arm_rl.core.loss import GrpoObjective
from arm_rl.core.stage_config import AlgorithmConfig, TrainConfig
from arm_rl.core.template import Template
from arm_rl.core.training_sample import training_sample
from arm_rl.core.types import Sample, TrainingSample
from arm_rl.data.samples import read_samples
from arm_rl.demo import dataset
from arm_rl.gpu_proof.scale import Proof
from arm_rl.machine.gpu import GpuDevice, query_devices
from arm_rl.plan import memory
from arm_rl.plan.hardware import GIB
from arm_rl.plan.shapes import ModelShape
from arm_rl.training.inputs import read_template
from arm_rl.training.startup import RolloutService, learner_ranks, rollout_service
from arm_rl.training.weight_sync import WeightSync

GROUP = 4  # sessions of one sample
MARGIN = 0.08  # of the GPU's memory, which neither learner nor engine takes by the plan
TEMPERATURE = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineFacts:
    """What an engine has decided at its start."""

    kv_tokens: int  # that its cache of keys and values holds
    config_hash: str  # of vLLM's settings, the key of its compile cache


class ProofRollout(RolloutActor):
    """A rollout actor that also reports what its engine has decided."""

    async def facts(self) -> EngineFacts:
        """Return the size of the key-value cache and the hash of the settings."""
        settings = self._engine.vllm.llm.vllm_config
        cache = settings.cache_config
        return EngineFacts(kv_tokens=cache.num_gpu_blocks * cache.block_size, config_hash=settings.compute_hash())


def stage_config(
    proof: Proof, name: str, *, transfer: Transfer = "file", lora_rank: int = 0, enforce_eager: bool = True
) -> TrainConfig:
    """Return the configuration of one learner and one engine that share the device."""
    scale = proof.scale
    data = proof.folder / "train.parquet"
    if not data.exists():
        dataset.write(data, seed=0, split="train", num_samples=8)
    learner = proof.learner_config(lora_rank=lora_rank)
    sampled = scale.sampled_tokens
    return TrainConfig(
        num_steps=1,
        run=RunConfig(name=name, root=str(proof.folder)),
        model=proof.model,
        template=TemplateConfig(
            system_prompt="configs/prompts/digits.txt", question="configs/prompts/digits_question.jinja"
        ),
        data=DataConfig(train=(str(data),)),
        tools=ToolsConfig(files=("configs/tools/digits.yaml",)),
        session=SessionConfig(
            max_turns=1, max_prompt_tokens=scale.max_model_len - sampled, max_response_tokens=sampled
        ),
        algorithm=AlgorithmConfig(samples_per_step=2, group_size=GROUP, drop_flat_groups=False),
        rollout=RolloutConfig(
            max_model_len=scale.max_model_len,
            max_num_seqs=16,
            max_images=2,
            gpu_memory_utilization=engine_share(proof, proof.model_folder) if proof.on_gpu else 0.85,
            enforce_eager=enforce_eager,
        ),
        learner=learner,
        placement=PlacementConfig(
            kind="shared", use_gpu=proof.on_gpu, gpus_per_node=1, weight_transfer=transfer if proof.on_gpu else "file"
        ),
        metrics=MetricsConfig(wandb="disabled"),
    )


def engine_share(proof: Proof, folder: Path) -> float:
    """Return the share of the GPU's memory that the learner leaves to an engine, as the plan counts it."""
    total = _device()[0].total_mib * 2**20
    kept = memory.idle_learner(memory.learner(ModelShape.of(str(folder)), proof.learner_config()))
    share = 1 - kept / total - MARGIN
    if share < 0.1:
        raise ValueError(f"the learner keeps {kept / GIB:.0f} of {total / GIB:.0f} GiB: no room for an engine")
    return round(share, 3)


def used_bytes() -> int | None:
    """Return the GPU's memory that all processes together use; None without a GPU."""
    devices = _device()
    return devices[0].used_mib * 2**20 if devices else None


def _device() -> tuple[GpuDevice, ...]:
    """Return the GPU that the proof runs on; none without a GPU."""
    return query_devices(os.environ.get("CUDA_VISIBLE_DEVICES", "0"))[2]


class Stage:
    """A learner and an engine that serve."""

    def __init__(
        self, config: TrainConfig, template: Template, learners: LearnerRanks, service: RolloutService
    ) -> None:
        self.rollouts, self._config, self._template, self._learners = service.rollouts, config, template, learners
        self._sync = WeightSync(learners, service.rollouts, config)
        self._samples = read_samples(config.data.train, list(template.schemas))[: config.algorithm.samples_per_step]
        self._rounds = 0

    async def sync(self) -> int:
        """Bring the learner's weights to the engine, which are compared afterwards; return the version."""
        self._rounds += 1
        await self._sync.sync(self._rounds)
        return self._rounds

    async def facts(self) -> EngineFacts:
        """Return what the engine has decided at its start."""
        (actor,) = await self.rollouts.actors()
        return await actor.facts.remote()

    async def weights(self) -> dict[str, bytes]:
        """Return blocks of the engine's weights by name."""
        names = await asyncio.to_thread(self._learners.sample_weights)
        blocks = (await self.rollouts.sample_weights(list(names)))[0]
        return {name: data for name, (_, data) in blocks.items()}

    async def rollout(self) -> tuple[list[TrainingSample], dict[str, Any]]:
        """Run a group of each sample; return the sessions as training samples, and their images' references by key."""
        groups = await asyncio.gather(*(self._run_group(number, one) for number, one in enumerate(self._samples)))
        samples = [sample for found, _ in groups for sample in found]
        return samples, {key: reference for found, reference in groups for one in found for key in one.image_keys}

    async def _run_group(self, number: int, sample: Sample) -> tuple[list[TrainingSample], Any]:
        result = await self.rollouts.run_group(
            sample, group_id=f"{self._rounds}-{number}", size=GROUP, temperature=TEMPERATURE, seed=number
        )
        broken = [one.error for one in result.trajectories if one.error is not None]
        if broken:
            raise RuntimeError(f"{len(broken)} of {GROUP} sessions broke: {broken[0]}")
        make = functools.partial(training_sample, image_pad_id=self._template.image_pad_id)
        samples = [make(one, (-1.0) ** place) for place, one in enumerate(result.trajectories)]
        return samples, result.images

    async def gap(self) -> tuple[float, list[TrainingSample], dict[str, Any]]:
        """Sample sessions and score them; return the mean difference of log-probabilities, and `rollout`'s result."""
        samples, images = await self.rollout()
        scored = await asyncio.to_thread(self._learners.score, self._batch(samples), images, TEMPERATURE)
        gaps = [
            abs(ours - theirs)
            for sample in samples
            for ours, theirs, on in zip(scored[sample.key], sample.logprobs, sample.loss_mask, strict=True)
            if on
        ]
        return sum(gaps) / len(gaps), samples, images

    async def train(self, samples: Sequence[TrainingSample], images: dict[str, Any]) -> dict[str, float]:
        """Take one optimizer step."""
        batch = self._batch(samples)
        return await asyncio.to_thread(self._learners.train, batch, images, GrpoObjective(temperature=TEMPERATURE))

    async def free_cache(self) -> None:
        """Free the GPU memory that the learner holds and does not use."""
        await asyncio.to_thread(self._learners.free_cache)

    def _batch(self, samples: Sequence[TrainingSample]) -> Any:
        return make_batch(samples, num_ranks=1, micro_batch_tokens=self._config.learner.micro_batch_tokens)


@asynccontextmanager
async def learner_alone(config: TrainConfig) -> AsyncIterator[tuple[Template, Any, LearnerRanks]]:
    """Reserve the device and start the learner; yields the template, the reservation and the learner."""
    template = read_template(config)
    async with (
        reserve(config.run.name, config.placement, 1, config.rollout) as reservation,
        learner_ranks(config, template, reservation, num_steps=10) as starting,
    ):
        yield template, reservation, await starting


@asynccontextmanager
async def engine_alongside(
    config: TrainConfig, template: Template, reservation: Any, learners: LearnerRanks
) -> AsyncIterator[Stage]:
    """Start an engine alongside a learner, and end the engine."""
    async with rollout_service(config, template, reservation, ProofRollout, transfer=config.transfer) as service:
        yield Stage(config, template, learners, service)
