"""The best of nearby settings."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from arm_rl.core.config import ConfigError
from arm_rl.core.stage_config import SftConfig
from arm_rl.plan.advice import changed, written
from arm_rl.plan.fit import memory_of
from arm_rl.plan.modelled import Setting
from arm_rl.plan.steps import StepPlan, fraction_of, step_of

_ROUNDS = 2  # of the search: changes that are tried together
_ADOPTED = 0.98  # of the seconds before: what a change must come below, for others to be tried on top of it


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A nearby setting."""

    changes: tuple[str, ...]  # key=value
    problems: tuple[str, ...]
    step: StepPlan | None  # None where it does not fit


def nearby(setting: Setting) -> Iterator[tuple[tuple[str, ...], Setting]]:
    """Settings that differ in one thing: the keys that change, and the setting. What contradicts itself is left out."""
    for changes in _changes(setting):
        try:
            yield written(changes), changed(setting, changes)
        except ConfigError:
            continue


def _changes(setting: Setting) -> Iterator[dict[str, Any]]:
    config, gpus = setting.config, setting.cluster.gpus
    learner = config.learner
    for factor in (0.5, 2):
        yield {"learner.micro_batch_tokens": int(learner.micro_batch_tokens * factor)}
    yield {"learner.gradient_checkpointing": not learner.gradient_checkpointing}
    for tokens in (learner.micro_batch_tokens // 2, learner.micro_batch_tokens // 4):
        yield {
            "learner.gradient_checkpointing": not learner.gradient_checkpointing,
            "learner.micro_batch_tokens": tokens,
        }
    for stage in {2, 3} - {learner.zero_stage}:
        yield {"learner.zero_stage": stage}
    if isinstance(config, SftConfig):
        return
    rollout = config.rollout
    for factor in (0.5, 2):
        yield {"rollout.max_num_seqs": int(rollout.max_num_seqs * factor)}
    yield {
        "rollout.max_num_seqs": 2 * rollout.max_num_seqs,
        "rollout.max_concurrent_sessions": 2 * rollout.max_concurrent_sessions,
    }
    if setting.takes_turns:
        for ranks in {gpus // 2, 3 * gpus // 4}:
            yield {
                "placement.kind": "apart",
                "learner.num_ranks": ranks,
                "rollout.num_actors": gpus - ranks,
                "algorithm.max_staleness": 1,
            }
        return
    size = rollout.tensor_parallel_size
    for engines in {1, 2, gpus // 8, gpus // 4, 3 * gpus // 8, gpus // 2} - {0, rollout.num_actors}:
        yield {"learner.num_ranks": gpus - engines * size, "rollout.num_actors": engines}
    for other in {1, 2, 4} - {size}:
        if rollout.num_actors * size % other == 0:
            yield {"rollout.tensor_parallel_size": other, "rollout.num_actors": rollout.num_actors * size // other}
    if config.algorithm.max_staleness:
        yield {
            "placement.kind": "shared",
            "learner.num_ranks": gpus,
            "rollout.num_actors": gpus,
            "algorithm.max_staleness": 0,
        }


def search(setting: Setting, told: Callable[[str], None] = lambda name: None) -> list[Candidate]:
    """Tries nearby settings, then those near the best of them; the fastest first. The first of all is the setting itself, where it fits.

    Args:
        told: is called with each setting's changes before it is simulated.
    """
    tried: dict[tuple[str, ...], Candidate] = {}

    def attempt(changes: tuple[str, ...], one: Setting) -> None:
        key = tuple(sorted(changes))
        if key in tried:
            return
        told(", ".join(changes) or "as configured")
        problems = memory_of(one).problems
        tried[key] = Candidate(
            changes=changes,
            problems=problems,
            step=None if problems else step_of(one, fraction=fraction_of(one.config)),
        )

    attempt((), setting)
    base = setting
    before: tuple[str, ...] = ()
    for _ in range(_ROUNDS):
        settings = {}
        for changes, one in nearby(base):
            merged = _merged(before, changes)
            settings[tuple(sorted(merged))] = one
            attempt(merged, one)
        best, current = _ranked(tried.values())[0], tried[tuple(sorted(before))]
        key = tuple(sorted(best.changes))
        if (
            best.step is None
            or key not in settings
            or (current.step is not None and best.step.seconds > _ADOPTED * current.step.seconds)
        ):
            break
        base, before = settings[key], best.changes
    return _ranked(tried.values())


def _merged(first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
    """Changes after changes: the later value of a key counts."""
    return tuple(
        f"{key}={value}"
        for key, value in {**dict(c.split("=") for c in first), **dict(c.split("=") for c in second)}.items()
    )


def _ranked(tried: Iterable[Candidate]) -> list[Candidate]:
    """The fastest first; a change that brings less than a percent is none."""
    return sorted(tried, key=lambda one: one.step.seconds * (1 + 0.01 * len(one.changes)) if one.step else math.inf)
