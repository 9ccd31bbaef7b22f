"""The order in which learners and engines start."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from arm_rl.core.compute_config import PlacementConfig
from arm_rl.core.config import DataConfig, RunConfig
from arm_rl.core.stage_config import TrainConfig
from arm_rl.training import startup

RESERVATION = SimpleNamespace(learner_options=lambda rank: {})
TEMPLATE = SimpleNamespace(view=None, never_sampled_ids=(), call_token_id=None)


class Ranks:
    """Ranks that start when they may."""

    may_start = threading.Event()

    def __init__(self, spec, options) -> None:
        assert self.may_start.wait(60)
        self.calls = ["started"]

    def free_cache(self) -> None:
        self.calls.append("free_cache")

    def remove_published(self, folder) -> None:
        self.calls.append("remove_published")

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture(autouse=True)
def ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "LearnerRanks", Ranks)
    monkeypatch.setattr(Ranks, "may_start", threading.Event())


def start(tmp_path, **placement):
    config = TrainConfig(
        run=RunConfig(name="x", root=str(tmp_path)),
        data=DataConfig(train=("x",)),
        placement=PlacementConfig(**placement),
    )
    return startup.learner_ranks(config, TEMPLATE, RESERVATION, num_steps=1)


async def test_engines_on_the_learners_gpus_wait_until_the_learners_have_started_and_freed_memory(tmp_path) -> None:
    asyncio.get_running_loop().call_later(0.2, Ranks.may_start.set)
    async with start(tmp_path, kind="shared") as starting:
        assert starting.done()
        learners = await starting
        assert learners.calls == ["started", "free_cache"]
    assert learners.calls[2:] == ["remove_published", "close"]


@pytest.mark.parametrize("placement", [{"kind": "apart"}, {"kind": "shared", "use_gpu": False}])
async def test_others_start_together(tmp_path, placement) -> None:
    async with start(tmp_path, **placement) as starting:
        assert not starting.done()
        Ranks.may_start.set()
        assert (await starting).calls == ["started"]


async def test_learners_that_do_not_start_end_the_stage(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Ranks):
        def __init__(self, *_) -> None:
            raise ValueError("another number of heads")

    monkeypatch.setattr(startup, "LearnerRanks", Broken)
    with pytest.raises(ValueError, match="another number of heads"):
        async with start(tmp_path, kind="shared"):
            pytest.fail("engines would start")


async def test_ranks_that_were_still_starting_when_the_run_was_stopped_are_closed(tmp_path) -> None:
    started: list[Ranks] = []

    async def enter() -> None:
        async with start(tmp_path, kind="shared"):
            pytest.fail("engines would start")

    class Recorded(Ranks):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            started.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(startup, "LearnerRanks", Recorded)
        entering = asyncio.create_task(enter())
        await asyncio.sleep(0.1)
        entering.cancel()
        Ranks.may_start.set()
        with pytest.raises(asyncio.CancelledError):
            await entering
    assert [ranks.calls[-1] for ranks in started] == ["close"]
