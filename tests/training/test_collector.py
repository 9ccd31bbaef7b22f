"""What a step gets: strictly in turns, ahead of the learners, refilled, too old; with groups that end when the test says so."""

import asyncio
import json
from dataclasses import dataclass, field

import pytest

from arm_rl.core.config import DataConfig
from arm_rl.core.stage_config import AlgorithmConfig, TrainConfig
from arm_rl.data.parquet_rows import DataError
from arm_rl.data.samples import Cursor
from arm_rl.training.collector import Collector
from arm_rl.training.group import Group, RunStopped
from arm_rl.training.ledger import LedgerError
from tests.support.trajectories import make_sample, make_scored, make_turn

SAMPLES = [make_sample(id=f"s{number}") for number in range(40)]


@dataclass
class Puppets:
    """Groups that wait for a word: their rewards, and the version of the weights that samples them."""

    version: int = 0
    started: list[str] = field(default_factory=list)
    words: dict[str, asyncio.Future] = field(default_factory=dict)

    async def run_group(self, sample, group_id, *, size, temperature) -> Group:
        assert (size, temperature) == (2, 0.5)
        self.started.append(group_id)
        version = self.version
        self.words[group_id] = asyncio.get_running_loop().create_future()
        rewards = await self.words[group_id]
        turn = make_turn("<answer>", num_tokens=3, policy_version=version)
        scored = tuple(
            make_scored(turn, reward=reward, group_id=group_id, index=index) for index, reward in enumerate(rewards)
        )
        return Group(sample=sample, scored=scored, images=None)

    def end(self, *numbers: int, flat: bool = False) -> None:
        for number in numbers:
            (name,) = (name for name in self.words if name.startswith(f"{number}/"))
            self.words[name].set_result((1.0, 1.0) if flat else (0.0, 1.0))

    def word(self, number: int) -> asyncio.Future:
        return self.words[self.started[self.numbers().index(number)]]

    def numbers(self) -> list[int]:
        return [int(name.split("/")[0]) for name in self.started]


def make(puppets, **algorithm):
    settings = {"samples_per_step": 4, "group_size": 2, "max_empty_steps": 2, **algorithm}
    config = TrainConfig(data=DataConfig(train=("x",)), algorithm=AlgorithmConfig(**settings))
    object.__setattr__(config.rollout, "temperature", 0.5)
    return Collector(config, puppets, Cursor(SAMPLES, seed=1))


async def breathe():
    for _ in range(20):
        await asyncio.sleep(0)


def numbers(collected):
    return [int(one.group.scored[0].trajectory.group_id.split("/")[0]) for one in collected.selections]


async def test_on_policy_a_step_waits_for_all_its_groups_and_starts_no_other():
    puppets = Puppets()
    collector = make(puppets)
    step = asyncio.create_task(collector.collect(0))
    await breathe()
    assert puppets.numbers() == [0, 1, 2, 3]
    puppets.end(3, 1, 2)
    await breathe()
    assert not step.done()
    assert len(puppets.started) == 4
    puppets.end(0)
    collected = await step
    assert numbers(collected) == [0, 1, 2, 3], "in the order in which they were started"
    assert collected.trained == collected.selections
    assert collected.metrics(0)["rollout/staleness_max"] == 0
    step = asyncio.create_task(collector.collect(1))
    await breathe()
    assert puppets.numbers()[4:] == [4, 5, 6, 7]
    step.cancel()
    await collector.close()


async def test_ahead_of_the_learners_a_step_takes_the_first_that_are_done():
    puppets = Puppets()
    collector = make(puppets, max_staleness=1)
    step = asyncio.create_task(collector.collect(0))
    await breathe()
    assert puppets.numbers() == list(range(8)), "a step's groups, and one step more"
    puppets.end(7, 2, 5, 4)
    assert numbers(await step) == [2, 4, 5, 7]
    puppets.version = 1  # the learners have trained meanwhile
    step = asyncio.create_task(collector.collect(1))
    await breathe()
    assert puppets.numbers()[8:] == [8, 9, 10, 11]
    puppets.end(8, 0, 1, 9)
    collected = await step
    assert numbers(collected) == [0, 1, 8, 9]
    metrics = collected.metrics(1)
    assert (metrics["rollout/staleness"], metrics["rollout/staleness_max"], metrics["rollout/stale_token_share"]) == (
        0.5,
        1,
        0.5,
    )
    await collector.close()


async def test_nothing_too_old_is_trained_on():
    puppets = Puppets()
    collector = make(puppets, max_staleness=1)
    for step in range(2):
        running = asyncio.create_task(collector.collect(step))
        await breathe()
        puppets.version = step
        puppets.end(*puppets.numbers()[-4:])
        await running
    puppets.version = 2
    running = asyncio.create_task(collector.collect(2))
    await breathe()
    left = [number for number in puppets.numbers() if not puppets.words[puppets.started[number]].done()]
    stragglers = [number for number in left if number < 4]
    assert len(stragglers) == 4, "of version 0, which is two steps old by now"
    puppets.end(*stragglers)
    await breathe()
    assert not running.done()
    fresh = [number for number in puppets.numbers() if not puppets.words[puppets.started[number]].done()]
    assert len(fresh) == 8, "what was dropped gave its place to others"
    puppets.end(*fresh)
    collected = await running
    assert collected.num_too_old == 4
    assert collected.metrics(2)["rollout/groups_too_old"] == 4
    assert set(numbers(collected)) <= set(fresh)
    await collector.close()


async def test_flat_groups_are_left_out():
    puppets = Puppets()
    collector = make(puppets)
    step = asyncio.create_task(collector.collect(0))
    await breathe()
    puppets.end(0, 2, flat=True)
    puppets.end(1, 3)
    collected = await step
    assert numbers(collected) == [0, 1, 2, 3]
    assert [one.number for one in collected.trained] == [1, 3]
    assert collected.metrics(0)["rollout/groups_kept"] == 0.5


async def test_flat_groups_are_kept_where_nothing_is_dropped():
    puppets = Puppets()
    step = asyncio.create_task(make(puppets, drop_flat_groups=False).collect(0))
    await breathe()
    puppets.end(0, 1, 2, 3, flat=True)
    assert len((await step).trained) == 4


@pytest.mark.parametrize("max_staleness", [0, 1])
async def test_flat_groups_are_refilled_until_the_step_is_full(max_staleness):
    puppets = Puppets()
    collector = make(puppets, refill_flat=True, max_staleness=max_staleness, max_empty_steps=9)
    step = asyncio.create_task(collector.collect(0))
    for _ in range(4):
        await breathe()
        open_ones = [name for name in puppets.started if not puppets.words[name].done()]
        first, *rest = (int(name.split("/")[0]) for name in open_ones)
        puppets.end(first)
        puppets.end(*rest, flat=True)
        if step.done():
            break
    while not step.done():
        await breathe()
        puppets.end(*(int(name.split("/")[0]) for name in puppets.started if not puppets.words[name].done()))
    collected = await step
    assert len(collected.trained) == 4
    assert len(collected.selections) > 4
    await collector.close()


async def test_a_step_of_flat_groups_alone_draws_anew_and_then_stops():
    puppets = Puppets()
    step = asyncio.create_task(make(puppets).collect(0))
    await breathe()
    puppets.end(0, 1, 2, 3, flat=True)
    await breathe()
    assert puppets.numbers() == list(range(8))
    puppets.end(4, 5, 6, 7, flat=True)
    with pytest.raises(RunStopped, match="step 0: 8 groups and nothing else had equal rewards"):
        await step


async def test_a_broken_group_ends_the_step():
    puppets = Puppets()
    step = asyncio.create_task(make(puppets, max_staleness=1).collect(0))
    await breathe()
    puppets.words[puppets.started[2]].set_exception(OSError("the node is gone"))
    with pytest.raises(OSError, match="the node is gone"):
        await step


def as_json(state):
    return json.loads(json.dumps(state))


@pytest.mark.parametrize("max_staleness", [0, 2])
async def test_what_ran_at_a_checkpoint_runs_again_with_its_number_and_what_was_finished_does_not(max_staleness):
    async def until_checkpoint(puppets):
        collector = make(puppets, max_staleness=max_staleness)
        step = asyncio.create_task(collector.collect(0))
        await breathe()
        puppets.end(*range(4))
        collector.settle(await step)
        puppets.end(*([5, 9] if max_staleness else []))
        await breathe()
        return collector

    reference = await until_checkpoint(twin := Puppets())
    stopped = await until_checkpoint(Puppets())
    state, finished = as_json(stopped.state()), stopped.finished()
    await stopped.close()
    assert sorted(finished) == ([5, 9] if max_staleness else [])
    restored = make(again := Puppets(), max_staleness=max_staleness)
    restored.restore(state, finished)
    again.version = twin.version = 1
    steps = [asyncio.create_task(one.collect(1)) for one in (restored, reference)]
    await breathe()
    assert again.numbers() == [number for number in twin.numbers()[4:] if number not in finished], (
        "as if it had never stopped"
    )
    for puppets in (again, twin):
        puppets.end(*[number for number in puppets.numbers() if not puppets.word(number).done()])
    first, second = [await step for step in steps]
    assert numbers(first) == numbers(second)
    for one, collected in ((restored, first), (reference, second)):
        one.settle(collected)
        one.ledger.check([running.number for running in one._running])
    assert restored.ledger.table() == reference.ledger.table()
    for one in (restored, reference):
        await one.close()


async def test_every_trajectory_is_booked_under_what_became_of_it():
    """Forty samples, steps of four, one step ahead, flat groups refilled, one group that takes too long."""
    puppets = Puppets()
    collector = make(puppets, max_staleness=1, refill_flat=True, max_empty_steps=9, mask_overlong=True)
    straggler = 3
    for step in range(14):  # into the second epoch
        puppets.version = step
        running = asyncio.create_task(collector.collect(step))
        while not running.done():
            await breathe()
            open_ones = [
                number for number in puppets.numbers() if not puppets.word(number).done() and number != straggler
            ]
            if step == 3 and not puppets.word(straggler).done():
                open_ones.append(straggler)
            for number in open_ones:
                flat = number % 5 == 0
                puppets.end(number, flat=flat)
        collector.settle(await running)
        collector.state()  # it checks that nothing is lost
    table = collector.ledger.table()
    assert sorted(table) == [0, 1]
    assert table[0]["drawn"] == 2 * len(SAMPLES)
    assert table[0]["too_old"] == 2
    assert table[0]["flat"] == 2 * 8
    assert table[0]["trained"] == 2 * (40 - 8 - 1)
    for row in table.values():
        assert row["drawn"] == sum(value for name, value in row.items() if name != "drawn")
    await collector.close()


async def test_a_group_that_got_lost_is_noticed_at_the_next_checkpoint():
    puppets = Puppets()
    collector = make(puppets, max_staleness=1)
    step = asyncio.create_task(collector.collect(0))
    await breathe()
    puppets.end(*range(4))
    collected = await step
    with pytest.raises(LedgerError, match=r"groups \[0, 1, 2, 3\] got lost"):
        collector.state()  # taken, and never learned from
    collector.settle(collected)
    collector.state()
    with pytest.raises(LedgerError, match="group 0 is settled twice"):
        collector.settle(collected)
    collector._running.pop().group.cancel()
    with pytest.raises(LedgerError, match=r"groups \[7\] got lost"):
        collector.state()
    await collector.close()


async def test_what_runs_ahead_can_be_waited_for():
    puppets = Puppets()
    collector = make(puppets, max_staleness=1)
    step = asyncio.create_task(collector.collect(0))
    await breathe()
    puppets.end(0, 1, 2, 3)
    await step
    idle = asyncio.create_task(collector.idle())
    await breathe()
    assert not idle.done()
    puppets.end(4, 5, 6, 7)
    await asyncio.wait_for(idle, 20)
    await collector.close()


@pytest.mark.parametrize(
    "algorithm",
    [{}, {"max_staleness": 1}, {"refill_flat": True, "max_staleness": 1}, {"max_staleness": 1, "max_empty_steps": 3}],
)
async def test_a_collection_that_is_cancelled_keeps_what_it_had_taken(algorithm):
    def end(puppets):
        flat = "refill_flat" in algorithm
        puppets.end(0, 1, flat=flat)
        puppets.end(2)

    puppets, others = Puppets(), Puppets()
    collector, undisturbed = make(puppets, **algorithm), make(others, **algorithm)
    step, other_step = asyncio.create_task(collector.collect(0)), asyncio.create_task(undisturbed.collect(0))
    await breathe()
    end(puppets)
    end(others)
    await breathe()
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step
    state, finished = json.loads(json.dumps(collector.state())), collector.finished()
    assert sorted(finished) == [0, 1, 2]
    await collector.close()

    later = Puppets()
    restored = make(later, **algorithm)
    restored.restore(state, finished)
    again = asyncio.create_task(restored.collect(0))
    await breathe()
    rest = sorted(later.numbers())
    assert rest == sorted(set(others.numbers()) - {0, 1, 2}), "the same groups, but for those that are there"
    later.end(*rest)
    others.end(*rest)
    collected, expected = await again, await other_step
    assert numbers(collected) == numbers(expected)
    restored.settle(collected)
    undisturbed.settle(expected)
    assert restored.state()["num_started"] == undisturbed.state()["num_started"]
    await restored.close()
    await undisturbed.close()


async def test_data_that_has_changed_is_noticed():
    """Groups are drawn again by their numbers: their samples must be the ones that the checkpoint names."""
    stopped = make(Puppets(), max_staleness=1)
    step = asyncio.create_task(stopped.collect(0))
    await breathe()
    state = as_json(stopped.state())
    step.cancel()
    await stopped.close()
    same = make(Puppets(), max_staleness=1)
    assert [sample.id for sample in same.pending(state).values()] == [one["sample"] for one in state["pending"]]
    state["pending"][3]["sample"] = "another"
    with pytest.raises(
        DataError, match="the checkpoint has drawn the sample 'another', where there is 's.*' now: the data has changed"
    ):
        same.restore(state, {})
