"""LoRA in the learner: adapters alone are trained, published and kept; merged they are the very policy that was trained."""

# ruff: noqa: F811 (fixtures of another file)

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageTextToText

from actors.learner.image_inputs import ImagePreparer
from actors.learner.policy_model import PolicyModel
from actors.learner.ranks import LearnerRanks
from actors.weights import gather, lora
from arm_rl.core.batching import make_batch
from arm_rl.core.compute_config import LearnerConfig
from arm_rl.core.config import ConfigError, ModelConfig
from arm_rl.core.loss import SftObjective
from arm_rl.core.micro_batch import collate
from tests.actors.learner.test_learner import Setup, Task, in_tiers, spec_of, task  # noqa: F401
from tests.support.random_samples import VIEW

ADAPTERS = {"lora_rank": 4, "lora_alpha": 8, "freeze_vision": True, "freeze_projector": True}
SETUPS = [Setup(2, 3, 120), Setup(2, 2, 150)]


def policy_of(task: Task, **changes) -> PolicyModel:
    torch.manual_seed(0)
    model = ModelConfig(path=str(task.folder), dtype="float32")
    policy = PolicyModel.load(model, never_sampled_ids=task.ids.never_sampled, call_token_id=task.ids.tool_call)
    return policy.make_trainable(LearnerConfig(**ADAPTERS, **changes))


def logprobs(policy: PolicyModel, task: Task) -> Tensor:
    batch = collate(task.samples)
    preparer = ImagePreparer(AutoImageProcessor.from_pretrained(task.folder), VIEW)
    return policy(batch, preparer.prepare(batch.image_keys, task.images))[0]


@torch.no_grad()
def spread(policy: PolicyModel) -> None:
    """Adapters begin as nothing: these do something."""
    for adapter in lora.adapters_of(policy.hf).values():
        adapter.up.normal_(std=0.2)


def test_gradients_reach_adapters_of_the_language_model_alone(task):
    policy = policy_of(task)
    spread(policy)
    logprobs(policy, task).sum().backward()
    found = {name for name, weight in policy.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert found == {name for name, weight in policy.named_parameters() if weight.requires_grad}
    assert len(found) == 2 * 7 * 3  # A and B of seven matrices in three layers
    assert all(".language_model." in name and (".lora_A." in name or ".lora_B." in name) for name in found)


def test_merged_weights_are_the_same_policy(task):
    policy = policy_of(task)
    with torch.no_grad():
        spread(policy)
        scored = logprobs(policy, task)
        merged = AutoModelForImageTextToText.from_pretrained(task.folder, dtype=torch.float32)
        before = dict(merged.named_parameters())
        weights = gather.whole(policy.hf, 0, lora.scaling_of(LearnerConfig(**ADAPTERS)), wanted=True)
        assert {name for name in before if not torch.equal(before[name], weights[name])} == set(
            lora.adapters_of(policy.hf)
        )
        merged.load_state_dict(weights, strict=False)
        expected = PolicyModel(
            merged, never_sampled_ids=task.ids.never_sampled, call_token_id=task.ids.tool_call
        ).train()
        torch.testing.assert_close(scored, logprobs(expected, task), atol=1e-5, rtol=0)


class Adapted:
    """A group that trains adapters, after two steps."""

    def __init__(self, task: Task, setup: Setup, folder: Path) -> None:
        self.setup, self.folder, self._task = setup, folder, task
        spec = spec_of(task, setup)
        self.group = LearnerRanks(
            dataclasses.replace(spec, config=dataclasses.replace(spec.config, **ADAPTERS)),
            [{"num_cpus": 0.25}] * setup.num_ranks,
        )
        self.first = self.published()
        self.losses = [self.train() for _ in range(2)]

    def train(self) -> float:
        batch = make_batch(
            self._task.samples, num_ranks=self.setup.num_ranks, micro_batch_tokens=self.setup.micro_batch_tokens
        )
        return self.group.train(batch, self._task.where(), SftObjective())["learner/loss"]

    def published(self) -> dict[str, Tensor]:
        file = self.group.publish(self.folder, 1).file
        assert file.is_adapter
        return load_file(file.path)


@pytest.fixture(scope="module", params=in_tiers(SETUPS, 1), ids=str)
def adapted(request, local_ray, task, tmp_path_factory) -> Iterator[Adapted]:
    made = Adapted(task, request.param, tmp_path_factory.mktemp("published"))
    yield made
    made.group.close()


def test_adapters_are_trained_published_exported_and_resumed(adapted, task, tmp_path):
    assert adapted.losses[1] < adapted.losses[0]
    published = adapted.published()
    assert published.keys() == adapted.first.keys()
    assert not any(adapted.first[name].any() for name in published if name.endswith(".lora_B"))
    assert all(published[name].any() for name in published)
    # what an engine makes of it is what is exported
    export = tmp_path / "export"
    adapted.group.export(export)
    exported = load_file(export / "model.safetensors")
    merged = dict(lora.merged_weights(str(task.folder), published, torch.float32, torch.device("cpu")))
    assert exported.keys() == merged.keys()
    assert all(torch.equal(exported[name], merged[name]) for name in merged)
    # peft makes the same of the base model and the adapter's folder
    model = AutoModelForImageTextToText.from_pretrained(task.folder, dtype=torch.float32)
    joined = PeftModel.from_pretrained(model, str(export / "adapter")).merge_and_unload()
    again = AutoModelForImageTextToText.from_pretrained(export, dtype=torch.float32)
    for name, weight in again.named_parameters():
        torch.testing.assert_close(dict(joined.named_parameters())[name], weight, atol=1e-6, rtol=0, msg=name)
    # a checkpoint holds adapters alone, and the run goes on from it bit by bit
    adapted.group.save(tmp_path / "saved")
    kept = {key for path in (tmp_path / "saved").glob("learner-*.safetensors") for key in load_file(path)}
    assert kept
    assert all(".lora_" in key for key in kept)
    onward = adapted.train(), adapted.published()
    adapted.group.load(tmp_path / "saved")
    assert all(torch.equal(adapted.published()[name], published[name]) for name in published)
    loss, weights = adapted.train(), adapted.published()
    assert loss == onward[0]
    assert all(torch.equal(weights[name], onward[1][name]) for name in weights)


def test_an_adapter_without_its_matrix_is_named(task):
    tensors = lora.publishable(
        {"model.language_model.layers.9.mlp.up_proj.weight": (torch.ones(1, 2), torch.ones(2, 1))}, torch.ones(())
    )
    with pytest.raises(
        ValueError, match=r"no weights for 1 adapters, model.language_model.layers.9.mlp.up_proj.weight among them"
    ):
        dict(lora.merged_weights(str(task.folder), tensors, torch.float32, torch.device("cpu")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_rank": -1}, "learner.lora_rank: not negative"),
        ({"lora_alpha": 0}, "learner.lora_alpha: above 0"),
        ({"lora_targets": ()}, "learner.lora_targets: at least one"),
        ({"freeze_vision": False}, "learner.lora_rank: only with learner.freeze_vision"),
    ],
)
def test_what_cannot_work_is_said_at_the_door(changes, message):
    with pytest.raises(ConfigError, match=message):
        LearnerConfig(**{**ADAPTERS, **changes})
