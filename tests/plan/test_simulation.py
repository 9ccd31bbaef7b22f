"""The simulated clock, and the real driver on it: steps take what their parts take."""

import asyncio
import time
from dataclasses import dataclass
from statistics import mean

import pytest

from arm_rl.core.compute_config import PlacementConfig, RolloutConfig
from arm_rl.core.config import DataConfig, MetricsConfig, RunConfig
from arm_rl.core.stage_config import AlgorithmConfig, TrainConfig
from arm_rl.plan import clock
from arm_rl.plan.simulation import simulate, spread_rewards, trajectory, turn
from arm_rl.training.group import number_of


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


class EveryOtherFlat(Constant):
    """Groups with odd numbers have equal rewards."""

    def rewards(self, group_id, size):
        return [1.0] * size if number_of(group_id) % 2 else spread_rewards(size)


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


@pytest.mark.parametrize(("refill", "rounds"), [(False, 1), (True, 3)])
def test_groups_in_place_of_flat_ones_take_their_time(refill, rounds):
    """Of groups 0 to 3 two are flat; of 4 and 5, which replace them, one; 6 is the last."""
    rollouts = EveryOtherFlat()
    (step,) = simulate(config(refill_flat=refill), rollouts, rollouts, steps=1)
    assert step.phases["rollout"] == pytest.approx(rounds * 10)
