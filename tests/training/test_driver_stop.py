"""A run that is asked to stop: where it is left, what its checkpoint holds, and that it goes on as if nothing had been."""

import asyncio
import math
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from arm_rl.core.compute_config import PlacementConfig
from arm_rl.core.config import CheckpointConfig, DataConfig, EvaluationConfig, ModelConfig, RunConfig
from arm_rl.core.stage_config import AlgorithmConfig, TrainConfig
from arm_rl.data.samples import Cursor
from arm_rl.run import checkpoint
from arm_rl.training import driver, weight_sync
from arm_rl.training.driver import Driver
from arm_rl.training.graceful_stop import StoppedOnRequest, StopRequest
from arm_rl.training.group import Group, RunStopped, number_of
from tests.support.trajectories import make_sample, make_scored, make_turn

SAMPLES = [make_sample(id=f"s{number}") for number in range(12)]


@dataclass
class Side:
    """Engines and learners that do nothing, and say when they are at something."""

    # the so-manieth thing of this kind begins, and waits until it is cancelled, or for `go`
    holds: tuple[str, int] = ("", 0)
    held: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    version: int = 0
    seen: list[str] = field(default_factory=list)
    kept: dict[int, Group] = field(default_factory=dict)
    flat_from: float = math.inf  # number of the first group with equal rewards

    def __post_init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.rollouts = SimpleNamespace(node_ids=(), serve=self._nothing, sample_weights=self._no_weights)

    async def _nothing(self, *_) -> None:
        pass

    async def come_to(self, name: str) -> None:
        before = sum(one.split()[0] == name.split()[0] for one in self.seen)
        self.seen.append(name)
        if (name.split()[0], before) == self.holds:
            self.held.set()
            await self.go.wait()

    async def run_group(self, sample, group_id, *, size, temperature) -> Group:
        await self.come_to(f"group {group_id}")
        members = enumerate((0.0, 1.0 if number_of(group_id) < self.flat_from else 0.0))
        scored = tuple(
            make_scored(
                make_turn("x", policy_version=self.version),
                sample_id=sample.id,
                group_id=group_id,
                index=at,
                reward=reward,
            )
            for at, reward in members
        )
        return Group(sample=sample, scored=scored, images=None)

    def train(self, batch, images, objective) -> dict[str, float]:
        asyncio.run_coroutine_threadsafe(self.come_to("train"), self.loop).result()
        return {"learner/loss": 0.0}

    def save(self, folder) -> None:
        (folder / "weights").write_text("w")

    def load(self, folder) -> None:
        assert (folder / "weights").read_text() == "w"

    async def save_groups(self, path, groups, step) -> None:
        self.kept = {int(group.scored[0].trajectory.group_id.split("/")[0]): group for group in groups}

    async def load_groups(self, path, samples) -> dict[int, Group]:
        return self.kept

    def publish(self, folder, version, node_ids) -> None:
        self.version = version

    def sample_weights(self) -> dict:
        return {}

    async def _no_weights(self, names) -> dict:
        return {}

    def record(self, *_) -> None:
        pass

    async def written(self) -> None:
        pass

    def recovery(self) -> dict[str, float]:
        return {}

    def stop_if_broken(self, *_) -> None:
        pass


def make(folder, side: Side, stop: StopRequest) -> tuple[Driver, list]:
    config = TrainConfig(
        run=RunConfig(name="x", root=str(folder)),
        model=ModelConfig(path="m"),
        data=DataConfig(train=("x",)),
        algorithm=AlgorithmConfig(samples_per_step=2, group_size=2),
        placement=PlacementConfig(use_gpu=False),
        checkpoint=CheckpointConfig(every=0),
        evaluation=EvaluationConfig(every=2),
    )
    logged: list = []
    runner = SimpleNamespace(
        **{
            name: getattr(side, name)
            for name in (
                "run_group",
                "save_groups",
                "load_groups",
                "record",
                "recovery",
                "stop_if_broken",
                "rollouts",
                "written",
            )
        }
    )
    log = SimpleNamespace(
        log=lambda step, metrics: logged.append((step, sorted(metrics)[0].split("/")[0])),
        log_trajectories=lambda path: None,
        log_artifact=lambda kind, folder: None,
    )
    made = Driver(
        config,
        runner=runner,
        learners=side,
        cursor=Cursor(SAMPLES, seed=0),
        held_out=SAMPLES,
        image_pad_id=999,
        num_steps=4,
        log=log,
        stop=stop,
    )
    return made, logged


@pytest.fixture(autouse=True)
def evaluation(monkeypatch):
    async def evaluate(runner, samples, config, *, stage, step):
        await runner.run_group.__self__.come_to(f"evaluation {step}")
        return {"accuracy": 1.0}

    monkeypatch.setattr(driver, "evaluate", evaluate)
    monkeypatch.setattr(weight_sync, "published_folder", lambda run: None)


async def whole(folder) -> list[str]:
    """What a run that nobody stops does."""
    side = Side()
    running, _ = make(folder, side, StopRequest())
    await running.run()
    return side.seen


@pytest.mark.parametrize(("where", "number", "steps"), [("group", 3, 1), ("train", 1, 2), ("evaluation", 0, 2)])
async def test_it_writes_a_checkpoint_and_goes_on_from_there(tmp_path, where, number, steps):
    """Stopped in the second step's rollouts, in its training, which ends first, and in the evaluation after it."""
    expected = await whole(tmp_path / "whole")
    side, stop = Side(holds=(where, number)), StopRequest()
    running, _ = make(tmp_path, side, stop)
    task = asyncio.create_task(running.run())
    await side.held.wait()
    stop.ask()
    if where == "train":
        side.go.set()
    with pytest.raises(StoppedOnRequest):
        await task
    await running.close()
    assert checkpoint.latest(tmp_path / "x" / "checkpoints").step == steps

    again = Side(kept=side.kept)
    resumed, logged = make(tmp_path, again, StopRequest())
    await resumed.resume()
    await resumed.run()
    broken_off = [] if where == "train" else [side.seen[-1]]
    assert sorted([*side.seen, *again.seen]) == sorted([*expected, *broken_off]), (
        "everything once, but for what was broken off"
    )
    assert [step for step, part in logged if part == "evaluation"] == (
        [4] if where == "train" and "evaluation 2" in side.seen else [2, 4]
    )


async def test_a_run_that_has_done_nothing_leaves_nothing(tmp_path):
    side, stop = Side(holds=("group", 0)), StopRequest()
    running, _ = make(tmp_path, side, stop)
    task = asyncio.create_task(running.run())
    await side.held.wait()
    stop.ask()
    with pytest.raises(StoppedOnRequest):
        await task
    await running.close()
    assert not (tmp_path / "x" / "checkpoints").exists()


@pytest.mark.parametrize(("num_applied", "steps"), [(0, 1), (1, None)])
async def test_a_run_that_ends_itself_keeps_the_steps_that_are_done(tmp_path, num_applied, steps):
    """Weights between two steps are not kept: the step would be done twice."""
    side = Side()
    running, _ = make(tmp_path, side, StopRequest())

    def stop(groups, when: str) -> None:
        if when == "step 1":
            running._updates.num_applied = num_applied
            raise RunStopped("nothing can be learned")

    running.runner.stop_if_broken = stop  # type: ignore[assignment, method-assign]
    with pytest.raises(RunStopped, match="nothing can be learned"):
        await running.run()
    await running.close()
    found = checkpoint.latest(tmp_path / "x" / "checkpoints")
    assert (found and found.step) == steps
    if found is not None:
        again = Side(kept=side.kept)
        resumed, _ = make(tmp_path, again, StopRequest())
        await resumed.resume()
        await resumed.run()
        numbers = sorted(number_of(one.split()[1]) for one in again.seen if one.startswith("group"))
        assert numbers == [2, 3, 4, 5, 6, 7]  # those of the broken step run again
        assert resumed.steps_done == 4


async def test_a_run_without_anything_to_learn_keeps_its_steps_and_draws_other_samples_afterwards(tmp_path):
    running, _ = make(tmp_path, Side(flat_from=2), StopRequest())
    with pytest.raises(RunStopped, match="nothing can be learned"):
        await running.run()
    await running.close()
    assert checkpoint.latest(tmp_path / "x" / "checkpoints").step == 1
    again = Side()
    resumed, _ = make(tmp_path, again, StopRequest())
    await resumed.resume()
    await resumed.run()
    assert resumed.steps_done == 4
    numbers = [number_of(one.split()[1]) for one in again.seen if one.startswith("group")]
    assert min(numbers) > 2 * running.config.algorithm.max_empty_steps
    assert len(numbers) == 6
