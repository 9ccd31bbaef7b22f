"""Engines that phases share: started once, and given the weights of each phase's model."""

from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from arm_rl.demo import engines
from arm_rl.demo.engines import SharedEngines


class Pool:
    """Notes what it is told to serve."""

    node_ids = ("here",)

    def __init__(self) -> None:
        self.served: list = []

    async def serve(self, published) -> None:
        self.served.append(published)


@pytest.fixture
def log(monkeypatch) -> list[str]:
    """What was started and ended, in order."""
    events: list[str] = []

    @asynccontextmanager
    async def reserve(name, placement, num_ranks, rollout):
        events.append("reserve")
        yield "place"
        events.append("release")

    @asynccontextmanager
    async def rollout_service(config, template, reservation):
        events.append(f"start {Path(config.model.path).name}")
        yield SimpleNamespace(rollouts=Pool())
        events.append("end")

    monkeypatch.setattr(engines, "reserve", reserve)
    monkeypatch.setattr(engines, "rollout_service", rollout_service)
    monkeypatch.setattr(engines, "read_inputs", lambda config: SimpleNamespace(template=None))
    return events


def config(path: Path) -> SimpleNamespace:
    return SimpleNamespace(model=SimpleNamespace(path=str(path)), placement=None, rollout=None)


def test_engines_start_with_the_first_model_and_load_the_next_one_s_file(log, tmp_path):
    shared = SharedEngines()
    first = shared.serve(config(tmp_path / "base"))
    assert log == ["reserve", "start base"]
    pool = cast(Any, first.rollouts)
    assert pool.served == []
    assert shared.get(config(tmp_path / "ignored")) is first
    assert shared.serve(config(tmp_path / "sft")) is first
    (published,) = pool.served
    assert published.file.path == (tmp_path / "sft" / "model.safetensors").resolve()
    assert (published.node_id, published.data) == ("here", None)
    shared.close()
    assert log == ["reserve", "start base", "end", "release"]


def test_closing_without_a_start_ends_nothing(log):
    SharedEngines().close()
    assert log == []
