"""Section 6: the engine sleeps, the learner takes a step, the engine wakes and gets the weights, three times."""

import asyncio
import math
import time
from dataclasses import dataclass, field

from actors.cluster.connection import cluster
from arm_rl.core.stage_config import TrainConfig
from arm_rl.gpu_proof.frame import Report
from arm_rl.gpu_proof.scale import NOT_ON_CPU, Proof
from arm_rl.gpu_proof.stage import Stage, engine_alongside, learner_alone, stage_config, used_bytes
from arm_rl.plan.hardware import GIB

ROUNDS = {"cuda": 3, "cpu": 2}
FREED_SHARE = 0.9  # of an engine's memory, that sleep gives back at least
GROWTH_BYTES = GIB  # of the memory in use, from the first round to the last


@dataclass(kw_only=True)
class Rounds:
    """What was measured in each round, and what should have been otherwise."""

    gaps: list[float] = field(default_factory=list)  # mean difference between engine and learner
    sleep_seconds: list[float] = field(default_factory=list)
    sync_seconds: list[float] = field(default_factory=list)
    freed: list[float] = field(default_factory=list)  # shares of the engine's memory
    used: list[int] = field(default_factory=list)  # bytes in use after the round
    problems: list[str] = field(default_factory=list)


def run(proof: Proof) -> Report:
    """Pass where the engine has the learner's log-probabilities after each round, and memory is freed each time."""
    with cluster():
        found = asyncio.run(measure(proof, stage_config(proof, "transfer", transfer="ipc"), ROUNDS[proof.device]))
    line = describe(found)
    if not proof.on_gpu:
        line += f"; IPC, sleep and GPU memory: {NOT_ON_CPU} (the weights went by file)"
    return Report(line=line, numbers=numbers(found), problems=found.problems)


def describe(found: Rounds) -> str:
    """Return the largest gap, the time of the last synchronisation and the memory freed, in words."""
    line = f"gap {max(found.gaps):.2g} at most, sync {found.sync_seconds[-1]:.2f} s"
    return line + (f", {min(found.freed):.0%} freed by sleep" if found.freed else "")


def numbers(found: Rounds) -> dict:
    """Return what was measured, with the plan's fixed time of a sleep where there is a GPU."""
    kept = {name: value for name, value in vars(found).items() if name != "problems"}
    if found.freed:
        kept["efficiency"] = {"sleep_seconds": min(found.sleep_seconds)}
    return kept


async def measure(proof: Proof, config: TrainConfig, rounds: int) -> Rounds:
    """Start learner and engine, and run the rounds."""
    found = Rounds()
    async with learner_alone(config) as (template, reservation, learners):
        before = used_bytes()
        async with engine_alongside(config, template, reservation, learners) as stage:
            awake = used_bytes()
            engine_bytes = awake - before if before is not None and awake is not None else None
            gap, samples, images = await stage.gap()
            _note_gap(proof, found, gap, "before the first update")
            for number in range(1, rounds + 1):
                old = await stage.weights()
                await stage.free_cache()  # what the learner has kept since is not the engine's
                awake, asleep = used_bytes(), await _sleep(stage, found)
                if engine_bytes is not None and awake is not None and asleep is not None:
                    found.freed.append((awake - asleep) / engine_bytes)
                metrics = await stage.train(samples, images)
                found.problems += [
                    f"round {number}: {name} is {value}" for name, value in metrics.items() if not math.isfinite(value)
                ]
                started = time.perf_counter()
                await stage.free_cache()
                await stage.rollouts.wake()
                await stage.sync()
                found.sync_seconds.append(time.perf_counter() - started)
                if await stage.weights() == old:
                    found.problems.append(f"round {number}: no weight of the engine has changed")
                gap, samples, images = await stage.gap()
                _note_gap(proof, found, gap, f"round {number}")
                await stage.free_cache()
                if (used := used_bytes()) is not None:
                    found.used.append(used)
    if found.freed and min(found.freed) < FREED_SHARE:
        found.problems.append(
            f"sleep freed {min(found.freed):.0%} of the engine's memory, {FREED_SHARE:.0%} are needed"
        )
    if found.used and found.used[-1] - found.used[0] > GROWTH_BYTES:
        found.problems.append(f"memory grew by {(found.used[-1] - found.used[0]) / GIB:.1f} GiB over the rounds")
    return found


async def _sleep(stage: Stage, found: Rounds) -> int | None:
    """Send the engine to sleep; return the GPU's memory in use then."""
    started = time.perf_counter()
    await stage.rollouts.sleep()
    found.sleep_seconds.append(time.perf_counter() - started)
    return used_bytes()


def _note_gap(proof: Proof, found: Rounds, gap: float, when: str) -> None:
    found.gaps.append(gap)
    if not gap <= proof.scale.max_gap:
        found.problems.append(
            f"{when}: engine and learner differ by {gap:.3g} in the mean, {proof.scale.max_gap} is allowed"
        )
