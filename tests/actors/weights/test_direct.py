"""Weights from learners straight to engines by vLLM's transfer, with gloo in place of NCCL; and what is done when one of them is lost.

NCCL itself, IPC's handles and a GPU's streams need GPUs: they were not run.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
import ray
import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoTokenizer

from actors.learner.policy_model import PolicyModel
from actors.learner.ranks import LearnerRanks
from actors.rollout import engine_settings
from actors.rollout.engine import Engine
from actors.supervision import StageLost
from actors.weights import comparison, gather
from arm_rl.core.compute_config import LearnerConfig, PlacementConfig
from arm_rl.core.config import ConfigError, DataConfig, ModelConfig
from arm_rl.core.errors import EngineDied
from arm_rl.core.stage_config import TrainConfig
from tests.actors.rollout.test_engine import ROLLOUT, VIEW, Judge, check_three_turns, environment  # noqa: F401
from tests.support import tiny, tiny_qwen3
from tests.support.dying_actors import TransferringRank

DATA = DataConfig(train=("a.parquet",))
GLOO_REPLACES = [(torch.cuda, "stream"), (torch.accelerator, "current_device_index")]


@pytest.fixture(scope="module")
def direct(environment: None) -> Any:  # noqa: F811
    """The module, which imports vLLM: not before its environment is set."""
    from actors.weights import direct

    return direct


@pytest.mark.parametrize("family", [tiny, tiny_qwen3])
def test_what_is_declared_is_what_is_sent_and_what_files_hold(family, direct, tmp_path, monkeypatch):
    monkeypatch.setattr(gather, "_GATHERED_ELEMENTS", 50_000)  # many buckets
    folder = family.build(tmp_path, seed=1)
    policy = PolicyModel.load(ModelConfig(path=str(folder), dtype="float32"))
    source = direct.PolicySource(policy.hf, 2, wanted=True)
    sent = list(source)
    assert [(one.name, one.dtype, one.shape) for one in source.metadata()] == [
        (name, one.dtype, tuple(one.shape)) for name, one in sent
    ]
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert {name for name, _ in sent} == set(file.keys())
        assert all(torch.equal(file.get_tensor(name), weight) for name, weight in sent)
    assert [len(list(one)) for one in (source, source)] == [len(sent)] * 2, "each round is a new one"


def test_a_rank_that_only_gathers_has_nothing(direct, tmp_path):
    policy = PolicyModel.load(ModelConfig(path=str(tiny.build(tmp_path, seed=1)), dtype="float32"))
    assert list(direct.PolicySource(policy.hf, 2, wanted=False)) == []


class Noted:
    """An engine that notes what it is called with."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __getattr__(self, method: str) -> Any:
        class Method:
            remote = staticmethod(lambda *arguments: self.calls.append((method, *arguments)))

        return Method


def test_workers_of_several_engines_have_ranks_of_their_own(direct):
    noted = [Noted(), Noted()]
    engines = direct.EngineClients(noted, 4, get=list)
    engines.init_weight_transfer_engine({"rank_offset": 1, "world_size": 9})
    engines.version = 3
    engines.start_weight_update(), engines.update_weights({"names": []}), engines.finish_weight_update()
    assert [one.calls[0] for one in noted] == [
        ("connect_weights", {"rank_offset": rank, "world_size": 9}) for rank in (1, 5)
    ]
    assert [one.calls[1:] for one in noted] == [
        [("begin_update",), ("receive_weights", {"names": []}), ("end_update", 3)]
    ] * 2


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> Judge:
    folder = tiny.build(tmp_path_factory.mktemp("tiny"), seed=0)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return Judge(model, AutoTokenizer.from_pretrained(folder), folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(judge: Judge, environment: None) -> AsyncIterator[Engine]:  # noqa: F811
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_settings, "WORKER_EXTENSION", "tests.support.gloo_transfer.WorkerExtension")
        for module, name in GLOO_REPLACES:  # taken back after these tests
            patch.setattr(module, name, getattr(module, name))
        engine = Engine(
            ModelConfig(path=str(judge.folder), dtype="float32"), ROLLOUT, VIEW, seed=0, use_gpu=False, transfer="nccl"
        )
        await engine.start()
        yield engine
        await engine.close()


class Handle:
    """An engine of this process, called as an actor is."""

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        self._engine, self._loop = engine, loop

    def __getattr__(self, method: str) -> Any:
        class Method:
            remote = staticmethod(
                lambda *args: asyncio.run_coroutine_threadsafe(getattr(self._engine, method)(*args), self._loop)
            )

        return Method


@pytest.mark.asyncio(loop_scope="module")
async def test_the_engine_is_the_learners_model_after_each_transfer(engine: Engine, judge: Judge, direct: Any) -> None:
    from tests.support import gloo_transfer  # noqa: F401 (puts gloo in NCCL's place here; the worker has done so)

    policy = PolicyModel.load(ModelConfig(path=str(judge.folder), dtype="float32"))
    engines = direct.EngineClients(
        [Handle(engine, asyncio.get_running_loop())], 1, get=lambda calls: [call.result() for call in calls]
    )
    source = direct.PolicySource(policy.hf, 0, wanted=True)
    transfer = await asyncio.to_thread(
        direct.DirectTransfer, "nccl", source, engines, rank=0, address="127.0.0.1", num_workers=1
    )
    endless = judge.all_but("a", "b")
    for version in (1, 2):
        tiny.spread(judge.model, seed=40 + version)
        policy.hf.load_state_dict(judge.model.state_dict())
        running = asyncio.create_task(
            engine.generate(judge.ids("Go"), [], max_tokens=300, temperature=1.0, seed=version, forbidden_ids=endless)
        )
        await engine.generate(judge.ids("Go"), [], max_tokens=3, temperature=1.0, seed=1, forbidden_ids=endless)
        await asyncio.to_thread(transfer.send, version)
        expected = comparison.learner_samples(policy.hf, 0, None, wanted=True)
        assert comparison.difference(expected, await engine.sample_weights(list(expected))) is None
        assert len((await running).token_ids) == 300, "it was paused, and went on"
        await check_three_turns(engine, judge, version)


@pytest.mark.asyncio(loop_scope="module")
async def test_an_update_that_nobody_ends_does_not_hold_up_the_end(engine: Engine) -> None:
    """The last test of this engine."""
    await engine.begin_update()
    await engine.close()


def test_no_engine_is_called_after_one_has_failed(direct) -> None:
    noted = [Noted(), Noted()]
    engines = direct.EngineClients(noted, 1, get=lambda calls: next(iter(calls)).missing)
    closed = []
    engines.on_failure = lambda: closed.append(True)
    engines.start_weight_update(), engines.update_weights({}), engines.finish_weight_update()
    assert [one.calls for one in noted] == [[("begin_update",)]] * 2
    assert isinstance(engines.failure, AttributeError)
    assert closed == [True]


class Fails:
    """A trainer of vLLM whose engine fails, or which fails by itself, after some weights."""

    def __init__(self, engines: Any, source: Any, failure: Exception | None) -> None:
        self._engines, self._source, self._failure = engines, source, failure
        self.is_shut_down = False

    def send_weights(self) -> None:
        weights = iter(self._source)
        next(weights)
        if self._failure is not None:
            self._engines.failure = self._failure
            self._engines.failed.set()
        raise RuntimeError("[gloo] Connection closed by peer")

    def shutdown(self) -> None:
        self.is_shut_down = True


@pytest.mark.parametrize(
    ("failure", "error", "message"),
    [
        (
            EngineDied("vLLM's process ended"),
            EngineDied,
            "an engine was lost while weights were sent: EngineDied: vLLM's",
        ),
        (
            RuntimeError("[gloo] Read error"),
            EngineDied,
            "an engine was lost while weights were sent: RuntimeError: .gloo",
        ),
        (ValueError("no weights for lm_head"), ValueError, "no weights for lm_head"),
        (None, RuntimeError, "Connection closed by peer"),  # of another rank: the engines are well
    ],
)
def test_a_transfer_that_fails_is_gathered_to_its_end(direct, tmp_path, monkeypatch, failure, error, message) -> None:
    monkeypatch.setattr(gather, "_GATHERED_ELEMENTS", 50_000)  # many buckets
    monkeypatch.setattr(direct, "_SECONDS_TO_NOTICE", 0.1)
    policy = PolicyModel.load(ModelConfig(path=str(tiny.build(tmp_path, seed=1)), dtype="float32"))
    source = direct.PolicySource(policy.hf, 0, wanted=True)
    engines = direct.EngineClients(["one engine"], 1)
    transfer = direct.DirectTransfer("nccl", source, engines, rank=0, address="127.0.0.1", num_workers=1)
    trainer = transfer._trainer = Fails(engines, source, failure)
    assert transfer.reaches(["one engine"])
    with pytest.raises(error, match=message):
        transfer.send(1)
    assert next(source._pieces, None) is None, "the other ranks wait for each bucket"
    assert transfer.reaches(["one engine"]) is (failure is None)
    assert not transfer.reaches(["another engine"])
    transfer.close()
    assert trainer.is_shut_down


def test_a_transfer_that_fails_or_hangs_ends_the_stage(local_ray) -> None:
    group = object.__new__(LearnerRanks)
    group._ranks = [ray.remote(TransferringRank).options(num_cpus=0).remote() for _ in range(2)]
    group._limit = 600.0
    with pytest.raises(StageLost, match="the weights did not reach the engines: ConnectionError: an engine hung up"):
        group.send("nccl", 1, [], 1)
    with pytest.raises(ValueError, match="the tensor exceeds the buffer"):  # it would be raised again after a restart
        group.send("ipc", 1, [], 1)
    with pytest.raises(EngineDied, match="an engine was lost while weights were sent"):  # the ranks are well
        group.send("nccl", 0, [group._ranks[0]], 1)
    group._limit = 0.5
    with pytest.raises(StageLost, match="no answer within 0.5 seconds"):
        group.send("nccl", 0, [], 1)
    group.close()


@pytest.mark.parametrize(
    ("placement", "learner", "chosen"),
    [
        ({"use_gpu": False}, {}, "file"),
        ({"kind": "apart"}, {}, "nccl"),
        ({"kind": "shared"}, {}, "ipc"),
        ({"kind": "apart"}, {"lora_rank": 8}, "file"),
        ({"kind": "apart", "weight_transfer": "file"}, {}, "file"),
    ],
)
def test_the_way_follows_from_where_they_are(placement, learner, chosen):
    assert (
        TrainConfig(
            data=DataConfig(train=("a.parquet",)),
            placement=PlacementConfig(**placement),
            learner=LearnerConfig(**learner),
        ).transfer
        == chosen
    )


@pytest.mark.parametrize("placement", [{"use_gpu": False}, {"kind": "shared"}])
def test_a_way_that_is_not_there_is_said_at_the_door(placement):
    with pytest.raises(ConfigError, match="placement.weight_transfer: file, or nccl on GPUs apart"):
        PlacementConfig(**placement, weight_transfer="nccl")


def test_adapters_go_by_file():
    with pytest.raises(ConfigError, match="placement.weight_transfer: file with learner.lora_rank"):
        TrainConfig(
            data=DataConfig(train=("a.parquet",)),
            placement=PlacementConfig(weight_transfer="nccl"),
            learner=LearnerConfig(lora_rank=8),
        )
