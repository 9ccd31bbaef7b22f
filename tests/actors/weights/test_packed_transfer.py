"""vLLM's packed transfer of models whose largest weight does not fit its buffer by default, without a GPU.

The names, shapes and types of a 7B model pass through vLLM's IPC producer and consumer on the meta device, with a handle that only
this process can open; two ZeRO-3 ranks send a tiny model's weights to another process, with gloo in place of NCCL.
"""

# ruff: noqa: F811 (fixtures of another file)

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import load_file
from torch.multiprocessing import reductions
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForImageTextToText, PreTrainedModel

from actors.learner import ranks
from actors.learner.ranks import LearnerRanks
from actors.learner.settings import LearnerSpec
from actors.rollout.engine_settings import engine_environment
from actors.weights import comparison
from arm_rl.core.compute_config import LearnerConfig
from arm_rl.core.config import ModelConfig
from arm_rl.core.errors import EngineDied
from arm_rl.plan.shapes import KNOWN
from tests.actors.rollout.test_engine import environment  # noqa: F401
from tests.support import tiny
from tests.support.packed_transfer import GlooLearner, GlooReceiver, Received
from tests.support.random_samples import VIEW

GIB = 1 << 30


@pytest.fixture(scope="module")
def model_7b() -> PreTrainedModel:
    """A 7B model without its values."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(KNOWN["Qwen2.5-VL-7B"](), dtype=torch.bfloat16)


class MetaForCuda(TorchFunctionMode):
    """Creates what belongs on a GPU on the meta device."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return function(*args, **(kwargs | {"device": "meta"} if kwargs.get("device") == "cuda" else kwargs))


@pytest.fixture
def one_gpu(environment: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stand-ins for a GPU, its stream, and handles of its memory."""
    from vllm.distributed.weight_transfer import ipc_engine, packed_tensor

    exported: dict[int, torch.Tensor] = {}

    def export(tensor: torch.Tensor) -> tuple[None, tuple]:
        exported[len(exported)] = tensor
        return None, (len(exported) - 1, *range(1, 8))

    monkeypatch.setattr(packed_tensor, "reduce_tensor", export)
    monkeypatch.setattr(ipc_engine, "reduce_tensor", export)
    monkeypatch.setattr(reductions, "rebuild_cuda_tensor", lambda number, *_: exported[number])
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="GPU-0"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(synchronize=lambda: None))
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: None)
    with MetaForCuda():
        yield


class IpcEngine:
    """An engine that receives by vLLM's IPC engine, called as an actor is."""

    def __init__(self) -> None:
        from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
        from vllm.distributed.weight_transfer.packed_tensor import PackedBufferImporter

        self._engine = object.__new__(IPCWeightTransferEngine)
        self._engine.device, self._engine._packed_importer = SimpleNamespace(index=0), PackedBufferImporter()
        self._engine.model = self.model = Received()
        self.num_updates = 0
        self.connect_weights = SimpleNamespace(remote=self._connect)
        self.receive_weights = SimpleNamespace(remote=self._receive)
        self.begin_update = self.end_update = SimpleNamespace(remote=lambda *_: None)

    def _connect(self, info: dict[str, Any]) -> None:
        self._engine.init_transfer_engine(self._engine.init_info_cls(**info))

    def _receive(self, info: dict[str, Any]) -> None:
        self.num_updates += 1
        self._engine.receive_weights(self._engine.update_info_cls(**info))


def test_a_7b_models_weights_pass_through_vllms_ipc_transfer(model_7b: PreTrainedModel, one_gpu: None) -> None:
    from actors.weights import direct

    engine = IpcEngine()
    source = direct.PolicySource(model_7b, 2, wanted=True)
    sizes = {one.name: math.prod(one.shape) * one.dtype.itemsize for one in source.metadata()}
    assert {name for name, size in sizes.items() if size > GIB} == {"model.embed_tokens.weight", "lm_head.weight"}
    transfer = direct.DirectTransfer(
        "ipc", source, direct.EngineClients([engine], 1, get=list), rank=0, address="", num_workers=1
    )
    transfer.send(1)
    received = {name: (weight.dtype, tuple(weight.shape)) for name, weight in engine.model.weights.items()}
    assert received == {one.name: (one.dtype, one.shape) for one in source.metadata()}
    assert len(received) == 729
    assert sum(sizes.values()) / 1.02 / GIB <= engine.num_updates <= 2 * sum(sizes.values()) / GIB


def test_a_small_models_buffer_is_vllms_own(environment: None) -> None:
    from actors.weights import direct

    assert direct.packed_buffer_bytes([direct.ParamMeta("a", torch.bfloat16, (3, 5))]) == GIB
    assert direct.packed_buffer_bytes([direct.ParamMeta("a", torch.bfloat16, (GIB, 3))]) == 6 * GIB


def test_two_sharded_ranks_send_packed_weights_to_another_process(
    local_ray: None, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "Learner", GlooLearner)
    model = ModelConfig(path=str(tiny.build(tmp_path / "model", seed=3)), dtype="bfloat16")
    spec = LearnerSpec(
        model=model, config=LearnerConfig(num_ranks=2, zero_stage=3), view=VIEW, num_steps=1, use_gpu=False
    )
    variables = {"runtime_env": {"env_vars": engine_environment(use_gpu=False)}}
    receiver = ray.remote(GlooReceiver).options(num_cpus=0, **variables).remote()
    learners = LearnerRanks(spec, [{"num_cpus": 0}] * 2)
    try:
        written = load_file(learners.publish(tmp_path / "weights", 1).file.path)
        assert max(weight.nbytes for weight in written.values()) > 10_000
        named = {comparison.common_name(name): weight for name, weight in written.items()}
        sampled = learners.sample_weights()
        assert len(sampled) > 12
        for name, sample in sampled.items():
            assert torch.equal(torch.from_numpy(sample.values), comparison.block(named[name]).float()), name
        for version in (1, 2):
            learners.send("nccl", version, [receiver], 1)
            received = ray.get(receiver.received.remote())
            assert received.keys() == written.keys()
            assert all(torch.equal(received[name], written[name]) for name in written)
            assert all(weight.dtype == torch.bfloat16 for weight in received.values())
    finally:
        learners.close()
        ray.kill(receiver)


def test_sharded_ranks_send_to_other_engines_after_one_was_lost(
    local_ray: None, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "Learner", GlooLearner)
    monkeypatch.setattr(ranks, "_SECONDS_TO_DIE", 0.0)
    model = ModelConfig(path=str(tiny.build(tmp_path / "model", seed=3)), dtype="bfloat16")
    spec = LearnerSpec(
        model=model, config=LearnerConfig(num_ranks=2, zero_stage=3), view=VIEW, num_steps=1, use_gpu=False
    )
    variables = {"runtime_env": {"env_vars": engine_environment(use_gpu=False)}}
    make = ray.remote(GlooReceiver).options(num_cpus=0, **variables)
    receivers = [make.remote(), make.remote()]
    learners = LearnerRanks(spec, [{"num_cpus": 0}] * 2)
    try:
        written = load_file(learners.publish(tmp_path / "weights", 1).file.path)
        learners.send("nccl", 1, receivers, 1)
        ray.get(receivers[1].die_at_next_update.remote())
        with pytest.raises(EngineDied, match="an engine was lost while weights were sent"):
            learners.send("nccl", 2, receivers, 1)
        ray.kill(receivers[0])  # its weights are mixed
        receivers = [make.remote(), make.remote()]
        for version in (2, 3):
            learners.send("nccl", version, receivers, 1)
            for received in ray.get([one.received.remote() for one in receivers]):
                assert received.keys() == written.keys()
                assert all(torch.equal(received[name], written[name]) for name in written)
    finally:
        learners.close()
        for one in receivers:
            ray.kill(one)
