"""What a weight synchronisation checks: a real engine on CPU against the learners' model, after right, wrong and skipped updates."""

# ruff: noqa: F811 (fixtures of another file)

import asyncio
import dataclasses
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from torch import Tensor, nn

from actors.learner.policy_model import PolicyModel
from actors.rollout.engine import Engine
from actors.supervision import ActorsLost
from actors.weights import comparison, gather, lora
from actors.weights.comparison import WeightSample
from actors.weights.files import PublishedWeights, write_weights
from arm_rl.core.compute_config import LearnerConfig, PlacementConfig
from arm_rl.core.config import DataConfig, ModelConfig, RunConfig
from arm_rl.core.errors import EngineDied
from arm_rl.core.stage_config import TrainConfig
from arm_rl.training.group import RunStopped
from arm_rl.training.weight_sync import WeightSync
from tests.actors.rollout.test_engine import ROLLOUT, VIEW, environment  # noqa: F401
from tests.support import tiny

pytestmark = pytest.mark.asyncio(loop_scope="module")
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Learners:
    """One learner's model, published by file."""

    def __init__(self, folder: Path, config: LearnerConfig | None = None) -> None:
        self.config = config or LearnerConfig()
        model = ModelConfig(path=str(folder), dtype="float32")
        self.policy = PolicyModel.load(model)
        if self.config.lora_rank:
            self.policy.make_trainable(self.config)
        self.scaling = lora.scaling_of(self.config) if self.config.lora_rank else None
        self.edit: Callable[[dict[str, Tensor]], None] = lambda weights: None  # of what is published

    def publish(self, folder: Path, version: int, node_ids: Any) -> PublishedWeights:
        if self.scaling is None:
            weights = gather.in_files_order(self.policy.hf, gather.whole(self.policy.hf, 0, None, wanted=True))
        else:
            weights = lora.publishable(gather.adapters(self.policy.hf, 0, wanted=True), self.scaling)
        weights = {name: weight.clone() for name, weight in weights.items()}
        self.edit(weights)
        file = write_weights(weights, folder, version, is_adapter=self.scaling is not None)
        return PublishedWeights(file=file, node_id="", data=None)

    def sample_weights(self) -> dict[str, WeightSample]:
        return comparison.learner_samples(self.policy.hf, 0, self.scaling, wanted=True)


class Rollouts:
    """One engine in place of a pool."""

    node_ids = ()

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.skips = False

    async def serve(self, published: PublishedWeights) -> None:
        file = published.file
        if not self.skips:
            await self._engine.load_weights(file.path, file.version, is_adapter=file.is_adapter)

    async def sample_weights(self, names: Any) -> dict[int, Any]:
        return {0: await self._engine.sample_weights(names)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("tiny"), seed=0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rollouts(folder: Path, environment: None) -> AsyncIterator[Rollouts]:
    engine = Engine(ModelConfig(path=str(folder), dtype="float32"), ROLLOUT, VIEW, seed=0, use_gpu=False)
    await engine.start()
    yield Rollouts(engine)
    await engine.close()


@pytest.fixture
def sync(rollouts: Rollouts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Learners], WeightSync]:
    monkeypatch.setattr("arm_rl.training.weight_sync.weights_folder", lambda name: tmp_path)
    rollouts.skips = False
    config = TrainConfig(
        run=RunConfig(name="x", root=str(tmp_path)),
        data=DataConfig(train=("x",)),
        placement=PlacementConfig(use_gpu=False),
    )
    return lambda learners: WeightSync(learners, rollouts, config)


@torch.no_grad()
def spread_adapters(learners: Learners, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for adapter in lora.adapters_of(learners.policy.hf).values():
        adapter.up.copy_(0.2 * torch.randn(adapter.up.shape, generator=generator))


async def test_a_right_sync_passes_and_compares_every_kind_of_weight(folder, rollouts, sync) -> None:
    learners = Learners(folder)
    tiny.spread(learners.policy.hf, seed=1)
    await sync(learners).sync(1)
    expected = learners.sample_weights()
    (found,) = (await rollouts.sample_weights(list(expected))).values()
    assert found.keys() == expected.keys(), "vLLM has each of them, merged or packed"
    assert all(any(f".{kind}.weight" in name for name in expected) for kind in KINDS)
    assert {"embed_tokens.weight"} < expected.keys()
    assert any(name.endswith("q_proj.bias") for name in expected)
    assert any(name.startswith("visual.merger.") for name in expected)
    layers = {match[1] for name in expected if (match := re.match(r"layers\.(\d+)\.", name))}
    assert len(layers) == 3, "kinds are spread over the layers"


@pytest.mark.parametrize("kind", [*KINDS, "input_layernorm", "embed_tokens"])
async def test_a_file_with_one_other_value_ends_the_run_with_the_tensors_name(kind, folder, sync) -> None:
    learners = Learners(folder)
    (name,) = (name for name in learners.sample_weights() if name.endswith(f"{kind}.weight"))

    def edit(weights: dict[str, Tensor]) -> None:
        (found,) = (key for key in weights if comparison.common_name(key) == name)
        weights[found].view(-1)[3] += 0.001

    learners.edit = edit
    with pytest.raises(
        RunStopped, match=rf"engine 0 .* sent version 2 .*: {re.escape(name)} differs .* in 1 of \d+ values"
    ):
        await sync(learners).sync(2)


async def test_an_update_that_was_skipped_ends_the_run(folder, rollouts, sync) -> None:
    learners = Learners(folder)
    await sync(learners).sync(3)
    tiny.spread(learners.policy.hf, seed=4)
    rollouts.skips = True
    with pytest.raises(RunStopped, match="engine 0 does not serve the learners' weights .* differs from the learners'"):
        await sync(learners).sync(4)


async def test_merged_adapters_pass_and_an_unchanged_base_model_ends_the_run(folder, rollouts, sync) -> None:
    learners = Learners(folder, LearnerConfig(lora_rank=4, lora_alpha=8))
    spread_adapters(learners, 1)
    await sync(learners).sync(5)
    spread_adapters(learners, 2)
    rollouts.skips = True
    with pytest.raises(RunStopped, match=r"layers\.\d+\.\S+_proj\.weight differs"):
        await sync(learners).sync(6)


async def test_half_of_a_small_adapter_is_more_than_rounding() -> None:
    """The weights of a bfloat16 matrix, which the first steps of an adapter move by far less than one unit in the last place."""
    generator = torch.Generator().manual_seed(0)
    base = (0.02 * torch.randn(64, 64, generator=generator)).bfloat16()
    update = 2e-6 * torch.randn(64, 64, generator=generator)
    merged = (base.float() + update).bfloat16()
    sample = {"layers.0.mlp.up_proj.weight": WeightSample(values=merged.float().numpy(), is_merged=True)}

    def compare(weight: Tensor) -> str | None:
        values = weight.float().numpy()
        return comparison.difference(sample, {next(iter(sample)): (list(values.shape), values.tobytes())})

    other_order = (base.float() + update * (1 + 2**-20)).bfloat16()
    assert compare(other_order) is None
    assert compare(base) is not None


async def test_nothing_compared_is_an_error() -> None:
    expected = {"layers.0.mlp.up_proj.weight": WeightSample(values=np.zeros((2, 2), np.float32), is_merged=False)}
    assert comparison.difference(expected, {}) == "none of its matrices could be compared with the learners'"


async def test_the_first_tensor_parallel_worker_compares_what_it_has() -> None:
    """Two workers: the merged matrix has half the rows of each part, the last one half its columns."""
    query, key, value, out = (torch.randn(size, 6) for size in (8, 4, 4, 6))
    qkv = nn.Linear(6, 8, bias=False)
    qkv.weight.data, qkv.output_partition_sizes = torch.cat([query[:4], key[:2], value[:2]]), [4, 2, 2]
    row_parallel = nn.Linear(3, 6, bias=False)
    row_parallel.weight.data = out[:, :3]
    layer = nn.ModuleDict({"self_attn": nn.ModuleDict({"qkv_proj": qkv, "o_proj": row_parallel})})
    model = nn.ModuleDict({"layers": nn.ModuleList([layer])})
    model.packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
    parts = {"q_proj": query, "k_proj": key, "v_proj": value, "o_proj": out}
    expected = {
        f"layers.0.self_attn.{name}.weight": WeightSample(values=part.numpy(), is_merged=False)
        for name, part in parts.items()
    }
    found = comparison.engine_blocks(model, list(expected))
    assert [found[name][0] for name in expected] == [[4, 6], [2, 6], [2, 6], [6, 3]]
    assert comparison.difference(expected, found) is None
    wrong = expected["layers.0.self_attn.v_proj.weight"]
    changed = expected | {"layers.0.self_attn.v_proj.weight": dataclasses.replace(wrong, values=wrong.values + 1)}
    assert comparison.difference(changed, found) == (
        "layers.0.self_attn.v_proj.weight differs from the learners' in 12 of 12 values compared"
    )


class Sends:
    """Learners that send directly; for each number in `losses` an engine is lost in a synchronisation."""

    def __init__(self, losses: int) -> None:
        self.losses = losses
        self.sent: list[tuple[int, list[str]]] = []

    def send(self, kind: str, version: int, engines: list[str], workers_per_engine: int) -> None:
        self.sent.append((version, engines))
        if self.losses:
            self.losses -= 1
            raise EngineDied("an engine was lost")

    def sample_weights(self) -> dict[str, WeightSample]:
        return {}


class Engines:
    """A pool whose engines are named by their starts."""

    def __init__(self) -> None:
        self.number_of_starts = 1
        self.wanted = asyncio.Event()
        self.serving: list[str] = []

    async def actors(self) -> list[str]:
        return [f"engine {self.number_of_starts}"]

    def restart(self, engines: list[str], error: Exception) -> None:
        assert engines == [f"engine {self.number_of_starts}"]
        self.number_of_starts += 1

    def accept(self, engines: list[str]) -> None:
        self.serving = engines
        self.wanted.clear()

    async def weights_wanted(self) -> None:
        await self.wanted.wait()

    async def sample_weights(self, names: list[str]) -> dict[int, Any]:
        return {}


def direct_sync(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, learners: Sends, engines: Engines) -> WeightSync:
    monkeypatch.setattr(TrainConfig, "transfer", "nccl")
    config = TrainConfig(run=RunConfig(name="x", root=str(tmp_path)), data=DataConfig(train=("x",)))
    return WeightSync(learners, engines, config)


async def test_weights_are_sent_again_where_an_engine_is_lost_meanwhile(monkeypatch, tmp_path) -> None:
    learners, engines = Sends(losses=2), Engines()
    await direct_sync(monkeypatch, tmp_path, learners, engines).sync(7)
    assert learners.sent == [(7, [f"engine {number}"]) for number in (1, 2, 3)]
    assert engines.serving == ["engine 3"]


async def test_rollouts_that_wait_for_a_new_engine_get_the_weights_of_the_step(monkeypatch, tmp_path) -> None:
    learners, engines = Sends(losses=0), Engines()
    sync = direct_sync(monkeypatch, tmp_path, learners, engines)

    async def rollouts() -> str:
        for _ in range(2):
            engines.wanted.set()
            while not engines.serving:
                await asyncio.sleep(0.01)
            engines.serving = []
        return "groups"

    assert await sync.sync_while(4, rollouts()) == "groups"
    assert [version for version, _ in learners.sent] == [4, 4]

    async def fail() -> None:
        raise RunStopped("nothing can be learned")

    with pytest.raises(RunStopped, match="nothing can be learned"):
        await sync.sync_while(4, fail())
    assert len(learners.sent) == 2


async def test_rollouts_end_with_what_keeps_their_weights_away(monkeypatch, tmp_path) -> None:
    engines, cancelled = Engines(), []

    async def lost() -> list[str]:
        raise ActorsLost("engine after engine died")

    async def rollouts() -> None:
        engines.wanted.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    monkeypatch.setattr(engines, "actors", lost)
    with pytest.raises(ActorsLost, match="engine after engine died"):
        await direct_sync(monkeypatch, tmp_path, Sends(losses=0), engines).sync_while(4, rollouts())
    assert cancelled == [True]
