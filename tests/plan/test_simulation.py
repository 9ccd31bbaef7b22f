"""The simulated clock, the real driver on it, and the demo's runs: their parts put together take as long as the runs did."""

import asyncio
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import pytest

from arm_rl.core.compute_config import PlacementConfig, RolloutConfig
from arm_rl.core.config import DataConfig, MetricsConfig, RunConfig
from arm_rl.core.stage_config import AlgorithmConfig, TrainConfig
from arm_rl.core.tracing import Recorder, span, take
from arm_rl.plan import clock
from arm_rl.plan.measured import MeasuredLearning, MeasuredRollouts, Parts, _groups
from arm_rl.plan.simulation import simulate, spread_rewards, trajectory, turn
from arm_rl.run.timeline import Timeline, read


def test_hours_pass_at_once():
    async def main():
        order = []

        async def wait(seconds):
            await asyncio.sleep(seconds)
            order.append((seconds, clock.loop().time()))

        await asyncio.gather(wait(7200), wait(1), wait(3600))
        return order

    started = time.monotonic()
    assert clock.run(main()) == [(1, pytest.approx(1)), (3600, pytest.approx(3600)), (7200, pytest.approx(7200))]
    assert time.monotonic() - started < 3600


def test_what_runs_in_a_thread_takes_what_it_spends():
    async def main():
        def work():
            clock.loop().spend(5.0)
            return "done"

        started = clock.loop().time()
        done = await asyncio.gather(asyncio.to_thread(work), asyncio.to_thread(work))
        return done, clock.loop().time() - started

    assert clock.run(main()) == (["done", "done"], pytest.approx(5.0))


def test_a_simulation_that_waits_for_nothing_ends():
    async def main():
        await asyncio.Event().wait()

    with pytest.raises(clock.SimulationDeadlock):
        clock.run(main())


@dataclass
class Constant:
    """Sessions and learners of equal length."""

    session: float = 10.0
    learn: float = 4.0
    version_seconds: tuple[float, float] = (1.0, 2.0)  # to publish, to update
    nap: float = 0.5

    async def group(self, engine, sample, group_id, size, version):
        started = version.number
        await asyncio.sleep(self.session)
        return [trajectory(sample, group_id, index, (0,), [turn(1, (), started)]) for index in range(size)]

    def rewards(self, group_id, size):
        return spread_rewards(size)

    def score_seconds(self):
        return 0.0

    async def update(self, engine):
        await asyncio.sleep(self.version_seconds[1])

    async def sleep(self, engine):
        await asyncio.sleep(self.nap)

    def train(self, batch):
        return self.learn

    def score(self, batch):
        return 1.0

    def publish(self):
        return self.version_seconds[0]


def config(kind: str = "apart", **algorithm) -> TrainConfig:
    return TrainConfig(
        run=RunConfig(name="simulated"),
        data=DataConfig(train=("x",)),
        rollout=RolloutConfig(num_actors=1),
        algorithm=AlgorithmConfig(**{"samples_per_step": 4, "group_size": 2, **algorithm}),
        placement=PlacementConfig(kind=kind),
        metrics=MetricsConfig(wandb="disabled"),
    )


def test_in_turns_a_step_is_the_sum_of_its_parts():
    constant = Constant()
    steps = simulate(config(), constant, constant, steps=3)
    assert [one.seconds for one in steps] == pytest.approx([10 + 4 + 1 + 2] * 3)
    assert dict(steps[0].phases) == pytest.approx({"rollout": 10, "learner": 4, "sync": 3})


def test_on_shared_gpus_engines_sleep_and_wake():
    constant = Constant()
    (step,) = simulate(config("shared"), constant, constant, steps=1)
    assert step.phases["learner"] == pytest.approx(4 + 2 * 0.5)


def test_two_updates_and_their_scores_take_their_time():
    constant = Constant()
    (step,) = simulate(config(mini_batch_samples=2, proximal="recomputed"), constant, constant, steps=1)
    assert step.phases["learner"] == pytest.approx(1 + 2 * 4)


@pytest.mark.parametrize(("session", "expected"), [(5.0, 4 + 3), (30.0, (30 + 4 + 3) / 2)])
def test_ahead_of_the_learners_the_slower_side_decides(session, expected):
    """Two steps' groups are on their way, and new ones start when a step does: two steps take 30 seconds and one step's learning."""
    constant = Constant(session=session)
    steps = simulate(config(max_staleness=1), constant, constant, steps=12)
    assert mean(one.seconds for one in steps[4:]) == pytest.approx(expected, rel=0.01)
    assert steps[-1].metrics["rollout/staleness"] <= 1


def measured(name: str) -> Parts:
    return Parts(**json.loads(Path(__file__).with_name(f"measured_{name}.json").read_text()))


@pytest.mark.parametrize(("name", "max_staleness"), [("sync", 0), ("async", 2)])
def test_the_demos_steps_take_as_long_as_they_did(name, max_staleness):
    """Sixteen steps of the demo's second stage, from turns, calls, batches and updates alone: within 15 %."""
    parts = measured(name)
    demo = config(
        samples_per_step=16,
        group_size=8,
        max_staleness=max_staleness,
        proximal="recomputed" if max_staleness else "behaviour",
    )
    simulated = []
    for seed in range(3):
        one = replace(demo, run=replace(demo.run, seed=seed), placement=PlacementConfig(use_gpu=False))
        simulated += simulate(one, MeasuredRollouts(parts, one), MeasuredLearning(parts), steps=len(parts.steps))
    assert mean(step.seconds for step in simulated) == pytest.approx(mean(parts.steps), rel=0.15)


def test_sessions_are_found_in_a_timeline(tmp_path):
    now = [0]
    recorder = Recorder(clock=lambda: now[0])

    def passes(seconds, kind, **details):
        with recorder.span(kind, track="session", **details):
            now[0] += int(seconds * 1e9)

    take()
    for group in ("0/a", "0/a", "test/b"):
        with recorder.span("session", track="session", group=group, index=0):
            passes(1, "turn")
            passes(0.5, "tool")
            passes(2, "turn")
    timeline = Timeline(tmp_path)
    with span("step"):
        pass
    timeline.write("rollout 0", recorder.take())
    assert _groups(read(tmp_path)) == (((1.0, 0.5, 2.0), (1.0, 0.5, 2.0)),)
