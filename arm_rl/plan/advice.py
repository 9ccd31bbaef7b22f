"""What to change where a configuration does not fit. Every piece of advice was planned itself, and fits."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from arm_rl.core.config import ConfigError
from arm_rl.core.stage_config import SftConfig, TrainConfig
from arm_rl.plan.fit import gpus_of, memory_of
from arm_rl.plan.modelled import Setting

_MOST_CHANGES = 4  # keys or pairs of keys that are changed together
_MOST_ADVICE = 3
_PROMPT_STEP = 256  # tokens
_MOST_PROMPT_TOKENS = 1 << 18

Changes = Mapping[str, Any]  # values by key, such as learner.zero_stage


def changed(setting: Setting, changes: Changes) -> Setting:
    """Return a setting with other values of some keys.

    Raises:
        ConfigError: If the values cannot work together.
    """
    config = setting.config
    parts: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        part, _, name = key.partition(".")
        parts.setdefault(part, {})[name] = value
    sections = {part: replace(getattr(config, part), **values) for part, values in parts.items()}
    return replace(setting, config=replace(config, **sections))


def written(changes: Changes) -> tuple[str, ...]:
    """Return changes as the command line takes them: `key=value`."""
    texts = {key: str(value).lower() if isinstance(value, bool) else value for key, value in changes.items()}
    return tuple(f"{key}={value}" for key, value in texts.items())


def advise(setting: Setting) -> list[tuple[str, ...]]:
    """Return up to three sets of changes under which everything fits, as `key=value`.

    The fewest changes come first, and the mildest of equally many. Empty where nothing is known that fits.
    """
    start = _on_the_gpus_there_are(setting)
    found: list[tuple[str, ...]] = []
    for size in range(_MOST_CHANGES + 1):
        for chosen in itertools.combinations(_ways(setting), size):
            if len({key for way in chosen for key in way}) < sum(map(len, chosen)):
                continue  # one key, two values
            changes = start | {key: value for way in chosen for key, value in way.items()}
            try:
                fits = memory_of(changed(setting, changes)).fits
            except ConfigError:
                continue
            if fits:
                found.append(written(changes))
            if len(found) == _MOST_ADVICE:
                return found
        if found:
            return found
    return found


def _on_the_gpus_there_are(setting: Setting) -> dict[str, Any]:
    """Return the changes that use no more GPUs than there are."""
    config, gpus, a_node = setting.config, setting.cluster.gpus, setting.cluster.gpus_per_node
    node = {} if config.placement.gpus_per_node == a_node else {"placement.gpus_per_node": a_node}
    if gpus_of(config) <= gpus:
        return {}
    if isinstance(config, SftConfig):
        return node | {"learner.num_ranks": gpus}
    if config.placement.kind == "shared" or gpus == 1:
        shared = {} if config.placement.kind == "shared" else {"placement.kind": "shared"}
        ahead = {"algorithm.max_staleness": 0} if config.algorithm.max_staleness else {}
        return node | shared | ahead | {"learner.num_ranks": gpus, "rollout.num_actors": gpus}
    engines = max(1, gpus // 2 // config.rollout.tensor_parallel_size)
    ranks = gpus - engines * config.rollout.tensor_parallel_size
    return node | {"learner.num_ranks": ranks, "rollout.num_actors": engines}


def _ways(setting: Setting) -> list[Changes]:
    """Return changes that take less memory, those that cost least first."""
    config = setting.config
    learner = config.learner
    ways: list[Changes] = []
    if not learner.gradient_checkpointing:
        ways.append({"learner.gradient_checkpointing": True})
    if isinstance(config, TrainConfig):
        ways += _engine_ways(config)
    tokens = learner.micro_batch_tokens // 2
    while tokens >= 1024:
        ways.append({"learner.micro_batch_tokens": tokens})
        tokens //= 2
    ways += [{"learner.zero_stage": stage} for stage in (2, 3) if stage > learner.zero_stage]
    if not learner.offload_optimizer:
        ways.append({"learner.offload_optimizer": True, "learner.zero_stage": max(learner.zero_stage, 2)})
    if isinstance(config, TrainConfig):
        most, response = config.session.max_prompt_tokens, config.session.max_response_tokens
        ways += [
            {"session.max_prompt_tokens": tokens, "rollout.max_model_len": tokens + response}
            for tokens in (most // 2, most // 4, most // 8)
            if tokens >= 1024
        ]
        ways += _apart(setting)
    return ways


def _apart(setting: Setting) -> Iterator[Changes]:
    """Yield the changes that give engines GPUs of their own, each engine cut over several of them."""
    gpus = setting.cluster.gpus
    if not setting.takes_turns:
        return
    for size in (1, 2, 4, 8):
        if gpus // 2 >= size and setting.cluster.gpus_per_node % size == 0:
            engines = gpus // 2 // size
            yield {
                "placement.kind": "apart",
                "rollout.tensor_parallel_size": size,
                "rollout.num_actors": engines,
                "learner.num_ranks": gpus - engines * size,
            }


def _engine_ways(config: TrainConfig) -> Iterator[Changes]:
    rollout, session = config.rollout, config.session
    for percent in range(95, 15, -5):
        share = percent / 100
        if share != rollout.gpu_memory_utilization:
            yield {"rollout.gpu_memory_utilization": share}
    needed = session.max_prompt_tokens + session.max_response_tokens
    if needed < rollout.max_model_len:
        yield {"rollout.max_model_len": needed}
    if config.placement.kind == "apart":
        for size in (2, 4, 8):
            if size > rollout.tensor_parallel_size and rollout.num_actors * rollout.tensor_parallel_size % size == 0:
                actors = rollout.num_actors * rollout.tensor_parallel_size // size
                yield {"rollout.tensor_parallel_size": size, "rollout.num_actors": actors}


def most_prompt_tokens(setting: Setting) -> int:
    """Return the largest `session.max_prompt_tokens` that fits, in steps of 256; 0 where none does.

    `rollout.max_model_len` grows and shrinks with it, and nothing else changes.
    """

    def fits(tokens: int) -> bool:
        session = setting.train.session
        changes = {
            "session.max_prompt_tokens": tokens,
            "rollout.max_model_len": tokens + session.max_response_tokens,
        }
        return memory_of(changed(setting, changes)).fits

    low, high = 0, _MOST_PROMPT_TOKENS // _PROMPT_STEP
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle * _PROMPT_STEP):
            low = middle
        else:
            high = middle - 1
    return low * _PROMPT_STEP
