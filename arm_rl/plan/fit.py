"""Whether everything fits on the GPUs, and what to change where it does not."""

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
    longest: int  # the learner's sum where one session as long as the configuration allows is a micro-batch of its own
    engine: Mapping[str, int]  # empty in a cold start
    limit: int  # that the GPU has
    problems: tuple[str, ...]  # what does not fit, and what to change

    @property
    def fits(self) -> bool:
        """Nothing is missing."""
        return not self.problems


def memory_of(setting: Setting) -> GpuMemory:
    """Whether everything fits on the GPUs."""
    config, workload, gpu = setting.config, setting.workload, setting.cluster.gpu
    learner = config.learner
    limit = int(gpu.memory_gib * GIB)

    def needed(one: LearnerConfig, group_size: int) -> Mapping[str, int]:
        return memory.learner(
            setting.shape,
            one,
            element=setting.element,
            image_share=workload.vision_share(group_size),
            loss_share=workload.loss_share(group_size),
            copied=workload.copied(group_size),
            reference=isinstance(config, TrainConfig) and config.algorithm.kl_coefficient != 0,
        )

    parts = needed(learner, config.algorithm.group_size if isinstance(config, TrainConfig) else 1)
    used = memory.on_gpu(parts)
    longest = used
    engine: Mapping[str, int] = {}
    problems: list[str] = []
    if isinstance(config, TrainConfig):
        tokens = config.session.max_prompt_tokens + config.session.max_response_tokens
        budget = max(learner.micro_batch_tokens, math.ceil(tokens * (1 + workload.vision_share(1))))
        at_most = replace(learner, micro_batch_tokens=budget)
        longest = memory.on_gpu(needed(at_most, 1))
        engine = memory.engine(setting.shape, config.rollout, gpu, element=setting.element)
        beside = memory.sleeping_engine() if setting.takes_turns else 0
        problems += _engine_problems(setting, engine)
        if setting.takes_turns:
            kept = memory.idle_learner(parts)
            room = int(config.rollout.gpu_memory_utilization * limit)
            if kept + room > limit:
                share = math.floor(100 * (limit - kept) / limit) / 100
                problems.append(
                    f"engines and what learners keep beside them need {(kept + room) / GIB:.1f} of {gpu.memory_gib} GiB: "
                    + (
                        f"rollout.gpu_memory_utilization={share}"
                        if share > 0
                        else "placement.kind=apart, or a higher learner.zero_stage"
                    )
                )
        if used + beside <= limit < longest + beside:
            problems.append(
                f"a session of {tokens} tokens is allowed, and needs {(longest + beside) / GIB:.1f} of {gpu.memory_gib} GiB "
                f"in the learner: {_for_learner(setting)}, or a smaller session.max_prompt_tokens"
            )
        used += beside
    if used > limit:
        problems.append(f"a learner needs {used / GIB:.1f} of {gpu.memory_gib} GiB: {_for_learner(setting)}")
    gpus = _gpus(config)
    if gpus > setting.cluster.gpus:
        problems.append(
            f"the configuration wants {gpus} GPUs, and there are {setting.cluster.gpus}: fewer learner.num_ranks or rollout.num_actors"
        )
    return GpuMemory(learner=parts, longest=longest, engine=engine, limit=limit, problems=tuple(problems))


def _engine_problems(setting: Setting, engine: Mapping[str, int]) -> Iterator[str]:
    rollout = setting.train.rollout
    per_token = memory.key_value_bytes(
        setting.shape, tensor_parallel=rollout.tensor_parallel_size, element=setting.element
    )
    tokens = engine["key-value cache"] // per_token
    if tokens < rollout.max_model_len:
        yield (
            f"an engine has room for {max(tokens, 0)} tokens of keys and values, and one session may need {rollout.max_model_len}: a "
            "larger rollout.gpu_memory_utilization or rollout.tensor_parallel_size"
        )


def _for_learner(setting: Setting) -> str:
    """What makes a learner smaller, the cheapest first."""
    learner = setting.config.learner
    ways = []
    if not learner.gradient_checkpointing:
        ways.append("learner.gradient_checkpointing=true")
    if learner.zero_stage < 3 and learner.num_ranks > 1:
        ways.append("learner.zero_stage=3")
    ways.append(f"learner.micro_batch_tokens={learner.micro_batch_tokens // 2}")
    if not learner.offload_optimizer:
        ways.append("learner.offload_optimizer=true")
    return " or ".join(ways)


def _gpus(config: TrainConfig | SftConfig) -> int:
    if isinstance(config, SftConfig):
        return config.learner.num_ranks
    engines = config.rollout.num_actors * config.rollout.tensor_parallel_size
    return (
        max(engines, config.learner.num_ranks)
        if config.placement.kind == "shared"
        else engines + config.learner.num_ranks
    )
