"""Whether everything fits on the GPUs: memory by part, what is left, and what does not fit."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from arm_rl.core.compute_config import LearnerConfig
from arm_rl.core.stage_config import SftConfig, TrainConfig
from arm_rl.plan import memory
from arm_rl.plan.hardware import GIB
from arm_rl.plan.modelled import Setting


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuMemory:
    """Of one GPU, in bytes, by part."""

    learner: Mapping[str, int]  # while it trains micro-batches of the configured size
    longest: int  # the learner's sum at its most: one session as long as is allowed, or the costliest shared prompts
    engine: Mapping[str, int]  # empty in a cold start
    shared: int  # an engine at work and what a learner keeps beside it; 0 where they have GPUs of their own
    peak: int  # the most that is taken of a learner's GPU at any time
    limit: int  # that the GPU has
    problems: tuple[str, ...]  # what does not fit

    @property
    def fits(self) -> bool:
        """Nothing is missing."""
        return not self.problems

    @property
    def margin(self) -> float:
        """Share of a learner's GPU that stays free at its peak (0..1)."""
        return 1 - self.peak / self.limit


def memory_of(setting: Setting) -> GpuMemory:
    """Return what lies on the GPUs, and what does not fit."""
    config, gpu = setting.config, setting.cluster.gpu
    learner, limit = config.learner, int(gpu.memory_gib * GIB)
    parts = _learner_parts(setting, learner)
    used = memory.on_gpu(parts)
    longest, shared, beside = used, 0, 0
    engine: Mapping[str, int] = {}
    problems: list[str] = []
    if isinstance(config, TrainConfig):
        tokens = config.session.max_prompt_tokens + config.session.max_response_tokens
        longest = max(used, _longest(setting, tokens))
        engine = memory.engine(setting.shape, config.rollout, gpu, element=setting.element)
        problems += _engine_problems(setting, engine)
        if setting.takes_turns:
            beside = memory.sleeping_engine()
            shared = memory.idle_learner(parts) + int(config.rollout.gpu_memory_utilization * limit)
            if shared > limit:
                problems.append(
                    f"engines and what learners keep beside them need {shared / GIB:.1f} of {gpu.memory_gib} GiB"
                )
        if used + beside <= limit < longest + beside:
            problems.append(
                f"a session of {tokens} tokens is allowed, and needs {(longest + beside) / GIB:.1f} of {gpu.memory_gib} GiB "
                "in the learner"
            )
    if used + beside > limit:
        problems.append(f"a learner needs {(used + beside) / GIB:.1f} of {gpu.memory_gib} GiB")
    gpus = gpus_of(config)
    if gpus > setting.cluster.gpus:
        problems.append(f"the configuration wants {gpus} GPUs, and there are {setting.cluster.gpus}")
    return GpuMemory(
        learner=parts,
        longest=longest,
        engine=engine,
        shared=shared,
        peak=max(longest + beside, shared),
        limit=limit,
        problems=tuple(problems),
    )


def _learner_parts(setting: Setting, learner: LearnerConfig, *, group_size: int | None = None) -> Mapping[str, int]:
    """Return the learner's bytes by part, for packed rows of groups of a size, by default the configuration's."""
    config, workload = setting.config, setting.workload
    size = group_size or (config.algorithm.group_size if isinstance(config, TrainConfig) else 1)
    return memory.learner(
        setting.shape,
        learner,
        element=setting.element,
        image_share=workload.vision_share(size),
        loss_share=workload.loss_share(size),
        copied=workload.copied(size),
        reference=isinstance(config, TrainConfig) and config.algorithm.kl_coefficient != 0,
    )


def _longest(setting: Setting, tokens: int) -> int:
    """Return the learner's bytes with one session of so many tokens."""
    learner, workload = setting.config.learner, setting.workload
    budget = max(learner.micro_batch_tokens, math.ceil(tokens * (1 + workload.vision_share(1))))
    return memory.on_gpu(_learner_parts(setting, replace(learner, micro_batch_tokens=budget), group_size=1))


def _engine_problems(setting: Setting, engine: Mapping[str, int]) -> Iterator[str]:
    rollout = setting.train.rollout
    tokens = cache_tokens(setting, engine)
    if tokens < rollout.max_model_len:
        yield (
            f"an engine has room for {max(tokens, 0)} tokens of keys and values, and one session may need "
            f"{rollout.max_model_len}"
        )


def cache_tokens(setting: Setting, engine: Mapping[str, int]) -> int:
    """Return the tokens whose keys and values an engine has room for; negative where its other parts do not fit."""
    per_token = memory.key_value_bytes(
        setting.shape, tensor_parallel=setting.train.rollout.tensor_parallel_size, element=setting.element
    )
    return engine["key-value cache"] // per_token


def gpus_of(config: TrainConfig | SftConfig) -> int:
    """Return the number of GPUs that a configuration uses."""
    if isinstance(config, SftConfig):
        return config.learner.num_ranks
    engines = config.rollout.num_actors * config.rollout.tensor_parallel_size
    if config.placement.kind == "shared":
        return max(engines, config.learner.num_ranks)
    return engines + config.learner.num_ranks
