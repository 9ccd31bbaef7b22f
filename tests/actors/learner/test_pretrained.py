"""Loading of pretrained weights: the shards that the index names, and with ZeRO-3 no more of a model than a rank keeps.

Two ranks with gloo stand for many with NCCL.
"""

# ruff: noqa: F811 (fixtures of another file)

import dataclasses
import json
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from actors.learner import ranks
from actors.learner.policy_model import PolicyModel
from actors.learner.ranks import LearnerRanks
from actors.learner.settings import LearnerSpec
from actors.weights import lora
from arm_rl.core.batching import make_batch
from arm_rl.core.compute_config import LearnerConfig
from arm_rl.core.config import ModelConfig
from arm_rl.core.loss import SftObjective
from tests.actors.learner.test_learner import Setup, Task, assert_equal, spec_of, task  # noqa: F401
from tests.support import tiny
from tests.support.observed_learner import ObservedLearner

ADAPTERS = {"lora_rank": 4, "freeze_vision": True, "freeze_projector": True}


@pytest.fixture(scope="module")
def in_shards(task: Task, tmp_path_factory) -> Path:
    """The task's model in shards, with another model's single file that was left in the folder."""
    folder = tmp_path_factory.mktemp("shards")
    tiny.build(folder, seed=6)
    AutoModelForImageTextToText.from_pretrained(task.folder).save_pretrained(
        folder / "new", max_shard_size="100KB", safe_serialization=True
    )
    for path in (folder / "new").glob("model*.safetensors*"):
        path.rename(folder / path.name)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    assert (folder / "model.safetensors").is_file()
    return folder


def spec(task: Task, folder: Path, setup: Setup, dtype: str, **changes) -> LearnerSpec:
    made = spec_of(task, setup)
    return dataclasses.replace(
        made,
        model=ModelConfig(path=str(folder), dtype=dtype),
        config=dataclasses.replace(made.config, **changes),
    )


def weights(folder: Path, dtype: str) -> dict[str, torch.Tensor]:
    """The weights as transformers loads them."""
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=getattr(torch, dtype)).state_dict()


@pytest.mark.parametrize(
    ("setup", "dtype", "changes"),
    [
        (Setup(2, 3, 120), "float32", {}),
        (Setup(2, 3, 120), "bfloat16", ADAPTERS),
        pytest.param(Setup(2, 3, 120), "bfloat16", {"freeze_vision": True}, marks=pytest.mark.slow),
        (Setup(2, 2, 120), "bfloat16", {}),
        pytest.param(Setup(2, 1, 120), "bfloat16", {}, marks=pytest.mark.slow),
    ],
    ids=["float32", "bfloat16-lora", "bfloat16-frozen", "bfloat16-zero-2", "bfloat16-zero-1"],
)
def test_a_rank_loads_and_resumes_no_more_than_its_share(
    setup, dtype, changes, task, in_shards, local_ray, tmp_path, monkeypatch
):
    monkeypatch.setattr(ranks, "Learner", ObservedLearner)
    group = LearnerRanks(spec(task, in_shards, setup, dtype, **changes), [{"num_cpus": 0.25}] * 2)
    try:
        if setup.zero_stage == 3:
            plain = PolicyModel.load(ModelConfig(path=str(task.folder), dtype=dtype)).hf
            for rank in group._ranks:
                loaded = ray.get(rank.loaded.remote())
                adapters = loaded.all - sum(one.numel() for one in plain.parameters())
                assert loaded.most <= loaded.largest + adapters, "one whole tensor at a time"
                assert loaded.whole <= 0.1 * loaded.all, "small weights alone are whole after loading"
                assert loaded.own <= 0.51 * loaded.all
                assert_equal(loaded.buffers, dict(plain.named_buffers()))
        group.export(tmp_path / "first")
        assert_equal(weights(tmp_path / "first", dtype), weights(task.folder, dtype))
        batch = make_batch(task.samples, num_ranks=2, micro_batch_tokens=120)
        losses = [group.train(batch, task.where(), SftObjective())["learner/loss"] for _ in range(2)]
        assert losses[1] < losses[0]
        group.export(tmp_path / "trained")
        group.save(tmp_path / "saved")
        onward = group.train(batch, task.where(), SftObjective())
        assert group.load(tmp_path / "saved") == 2
        group.export(tmp_path / "loaded")
        assert_equal(weights(tmp_path / "loaded", dtype), weights(tmp_path / "trained", dtype))
        saved = {
            name: one for file in (tmp_path / "saved").glob("*.safetensors") for name, one in load_file(file).items()
        }
        everything = sum(one.numel() for one in saved.values())
        read = ray.get([rank.count_read.remote() for rank in group._ranks])
        assert sum(read) >= everything
        assert all(number <= 0.55 * everything for number in read), "a rank reads its own part"
        assert group.train(batch, task.where(), SftObjective()) == onward
    finally:
        group.close()


def test_weights_that_the_index_does_not_name_are_left_alone(task, in_shards):
    expected = load_file(task.folder / "model.safetensors")
    policy = PolicyModel.load(ModelConfig(path=str(in_shards), dtype="float32"))
    assert_equal(policy.hf.state_dict(), weights(task.folder, "float32"))
    stray = load_file(in_shards / "model.safetensors")
    assert all(not torch.equal(stray[name], weight) for name, weight in expected.items())
    # an engine merges adapters into the same weights, and is sent each of them once
    name, adapter = next(iter(lora.adapters_of(policy.make_trainable(LearnerConfig(**ADAPTERS)).hf).items()))
    ones = torch.ones(2, adapter.down.shape[1]), torch.ones(adapter.up.shape[0], 2)
    published = lora.publishable({name: ones}, torch.tensor(0.5))
    sent = list(lora.merged_weights(str(in_shards), published, torch.float32, torch.device("cpu")))
    assert len(sent) == len(expected)
    changed = [(name, weight) for name, weight in sent if not torch.equal(weight, expected[name])]
    assert len(changed) == 1
    assert torch.equal(changed[0][1], expected[changed[0][0]] + 1.0)


def test_weights_that_are_missing_are_not_drawn_at_random(task, tmp_path):
    tiny.build(tmp_path, seed=5)
    tensors = load_file(tmp_path / "model.safetensors")
    missing = next(name for name in tensors if name.endswith("layers.1.mlp.up_proj.weight"))
    del tensors[missing]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="no weights for 1 parameters, .*layers.1.mlp.up_proj.weight among them"):
        PolicyModel.load(ModelConfig(path=str(tmp_path), dtype="float32"))


def test_tied_weights_that_differ_are_refused(task, local_ray, tmp_path):
    tiny.build(tmp_path, seed=5)
    tensors = load_file(tmp_path / "model.safetensors")
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"]
    embedding = next(name for name in tensors if name.endswith("embed_tokens.weight"))
    tensors["lm_head.weight"] = tensors[embedding] + 1.0
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ray.exceptions.RayTaskError, match="config.json ties weight to another weight"):
        LearnerRanks(spec(task, tmp_path, Setup(1, 3, 120), "float32"), [{"num_cpus": 0.25}])
