"""Learner ranks on a real Ray with DeepSpeed, against a plain training loop: any number of ranks, any ZeRO stage, any cut."""

import dataclasses
import math
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import ray
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from actors.learner import state as learner_state
from actors.learner.hf_folder import write_folder
from actors.learner.image_inputs import ImagePreparer
from actors.learner.policy_model import PolicyModel
from actors.learner.ranks import LearnerLost, LearnerRanks
from actors.learner.settings import LearnerSpec, deepspeed_config, learner_environment
from actors.learner.state import LearnerStateError
from arm_rl.core.batching import make_batch
from arm_rl.core.compute_config import LearnerConfig
from arm_rl.core.config import ModelConfig
from arm_rl.core.errors import MismatchError, NonFiniteError
from arm_rl.core.images import Image
from arm_rl.core.loss import GrpoObjective, SftObjective
from arm_rl.core.types import TrainingSample
from tests.support import random_samples, tiny
from tests.support.random_samples import VIEW, Ids

OBJECTIVE = GrpoObjective(clip_low=0.2, clip_high=0.3, entropy_coefficient=0.01)
NUM_STEPS = 3
# the loss is about -2e37; its gradient is more than float32 holds
OVERFLOWING = GrpoObjective(entropy_coefficient=1e38, temperature=0.03)
RATE, BETAS, DECAY, CLIP = 1e-3, (0.9, 0.95), 0.01, 0.5


@dataclass(frozen=True)
class Setup:
    """A way to spread the same work."""

    num_ranks: int
    zero_stage: int
    micro_batch_tokens: int
    with_reference: bool = False

    def __str__(self) -> str:
        return f"{self.num_ranks}-ranks-zero-{self.zero_stage}-within-{self.micro_batch_tokens}"


SETUPS = [Setup(1, 0, 9999, True), Setup(2, 3, 120, True), Setup(2, 0, 120), Setup(2, 1, 1), Setup(2, 2, 150)]
# The mathematics holds in every setup; all else is tested in the first two, or as many as a test says.
OTHER_RANKS = {SETUPS[0]: Setup(2, 2, 150), SETUPS[1]: Setup(1, 1, 9999)}  # together all four ZeRO stages


def in_setups(number: int) -> pytest.MarkDecorator:
    """Run a test in the first setups alone."""
    return pytest.mark.parametrize("trained", in_tiers(SETUPS[:number], 2), ids=str, indirect=True)


@dataclass
class Task:
    """A tiny model, and samples for it: seven in three groups that share prompts, so that two ranks never have as many."""

    folder: Path
    ids: Ids
    images: dict[str, Image]
    samples: list[TrainingSample]

    def where(self) -> dict[str, ray.ObjectRef]:
        """The images in two bundles."""
        keys = list(self.images)
        bundles = [ray.put({key: self.images[key] for key in part}) for part in (keys[:2], keys[2:])]
        return {key: bundles[0 if key in keys[:2] else 1] for key in keys}


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Task:
    folder = tiny.build(tmp_path_factory.mktemp("tiny"), seed=5)
    ids = Ids.of(folder)
    made = [random_samples.image(1), random_samples.image(2, 64, 32), random_samples.image(3, 32, 32)]
    first, second, third = made
    samples = [
        *random_samples.group(ids, [first], [[], [second], [third, first]], seed=1),
        *random_samples.group(ids, [], [[second], [], []], seed=2),
        *random_samples.group(ids, [third], [[first]], seed=3),
    ]
    return Task(folder, ids, {image.key: image for image in made}, samples)


def naive_loss(plain, task: Task, preparer: ImagePreparer) -> Tensor:
    """GRPO's loss token by token, every sample alone and every image encoded anew."""
    total = torch.tensor(0.0)
    num_tokens = sum(sample.num_loss_tokens for sample in task.samples)
    for sample in task.samples:
        logits = sample_logits(plain, task, preparer, sample)
        for position in range(len(sample.token_ids)):
            if not sample.loss_mask[position]:
                continue
            row = logits[position - 1].clone()
            row[list(task.ids.never_sampled)] = -1e9
            if sample.call_forbidden[position]:
                row[task.ids.tool_call] = -1e9
            distribution = row.log_softmax(0)
            ratio = torch.exp(distribution[sample.token_ids[position]] - sample.logprobs[position])
            advantage = sample.advantages[position]
            surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.3) * advantage)
            entropy = -(distribution.exp() * distribution).sum()
            total = total - (surrogate + 0.01 * entropy) / num_tokens
    return total


def sample_logits(plain, task: Task, preparer: ImagePreparer, sample: TrainingSample) -> Tensor:
    tokens = torch.tensor([sample.token_ids])  # [1, T]
    inputs = {}
    if sample.image_keys:
        prepared = [preparer.prepare([key], task.images) for key in sample.image_keys]
        inputs["pixel_values"] = torch.cat([image.patches for image in prepared])
        inputs["image_grid_thw"] = torch.cat([image.grids for image in prepared])
    kinds = (tokens == task.ids.image_pad).int()
    # [T, V]
    return plain(input_ids=tokens, attention_mask=torch.ones_like(tokens), mm_token_type_ids=kinds, **inputs).logits[0]


@dataclass
class Run:
    """What three steps gave."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, Tensor]


@pytest.fixture(scope="module")
def expected(task) -> tuple[Run, dict[str, Tensor]]:
    """The plain loop's run; and for each weight, where its gradients were plain enough to be compared after Adam.

    Adam divides a gradient by its own size: where it is rounding noise alone (attention does not notice a key's bias), so is the step.
    """
    plain = AutoModelForImageTextToText.from_pretrained(task.folder, dtype=torch.float32).train()
    preparer = ImagePreparer(AutoImageProcessor.from_pretrained(task.folder), VIEW)
    optimizer = torch.optim.AdamW(plain.parameters(), betas=BETAS, weight_decay=DECAY)
    run = Run([], [], {})
    clear = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in plain.named_parameters()}
    for step in range(NUM_STEPS):
        value = naive_loss(plain, task, preparer)
        optimizer.zero_grad()
        value.backward()
        run.losses.append(value.item())
        run.norms.append(torch.nn.utils.clip_grad_norm_(plain.parameters(), CLIP).item())
        for name, weight in plain.named_parameters():
            clear[name] &= weight.grad.abs() > 1e-5
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / NUM_STEPS)
        optimizer.step()
    run.weights = {name: weight.detach().clone() for name, weight in plain.named_parameters()}
    return run, clear


def spec_of(task: Task, setup: Setup) -> LearnerSpec:
    config = LearnerConfig(
        num_ranks=setup.num_ranks,
        zero_stage=setup.zero_stage,
        micro_batch_tokens=setup.micro_batch_tokens,
        learning_rate=RATE,
        schedule="linear",
        betas=BETAS,
        weight_decay=DECAY,
        max_grad_norm=CLIP,
        freeze_vision=False,
        freeze_projector=False,
        collective_timeout_seconds=60,
    )
    return LearnerSpec(
        model=ModelConfig(path=str(task.folder), dtype="float32"),
        config=config,
        view=VIEW,
        num_steps=NUM_STEPS,
        never_sampled_ids=task.ids.never_sampled,
        call_token_id=task.ids.tool_call,
        with_reference=setup.with_reference,
        use_gpu=False,
    )


class Trained:
    """A group that has done three steps."""

    def __init__(self, task: Task, setup: Setup, folder: Path) -> None:
        self.setup = setup
        self.folder = folder
        self._task = task
        self.group = LearnerRanks(spec_of(task, setup), [{"num_cpus": 0.25}] * setup.num_ranks)
        self.steps = [self.train() for _ in range(NUM_STEPS)]
        self.weights = self.published()

    def train(self, objective=OBJECTIVE, samples: Sequence[TrainingSample] | None = None) -> Mapping[str, float]:
        batch = make_batch(
            samples or self._task.samples,
            num_ranks=self.setup.num_ranks,
            micro_batch_tokens=self.setup.micro_batch_tokens,
        )
        return self.group.train(batch, self._task.where(), objective)

    def published(self) -> dict[str, Tensor]:
        return load_file(self.group.publish(self.folder, 1).file.path)


def in_tiers(setups: Sequence[Setup], num_fast: int) -> list[Any]:
    """Return setups as parameters of a test, those after the first few for the slow tier."""
    return [
        pytest.param(one, marks=pytest.mark.slow if number >= num_fast else ()) for number, one in enumerate(setups)
    ]


@pytest.fixture(scope="module", params=in_tiers(SETUPS, 2), ids=str)
def trained(request, local_ray, task, tmp_path_factory) -> Iterator[Trained]:
    made = Trained(task, request.param, tmp_path_factory.mktemp("published"))
    yield made
    made.group.close()


def plain_model(weights: Mapping[str, Tensor], task: Task) -> Any:
    """Hugging Face's own model with these weights."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(task.folder / "config.json", folder)
        save_file(dict(weights), Path(folder, "model.safetensors"), metadata={"format": "pt"})
        return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)


def test_three_steps_are_those_of_the_plain_loop(trained, expected, task):
    """Losses and gradient norms to 1e-5 and 1e-4 of their size; weights to 1e-5, where each step moved them by up to 1e-3."""
    run, clear = expected
    assert [step["learner/loss"] for step in trained.steps] == pytest.approx(run.losses, rel=1e-5)
    assert [step["learner/grad_norm"] for step in trained.steps] == pytest.approx(run.norms, rel=1e-4)
    assert min(run.norms) > CLIP  # so that clipping is tested as well
    assert [step["learner/learning_rate"] for step in trained.steps] == pytest.approx([RATE, RATE * 2 / 3, RATE / 3])
    repeated = {Setup(1, 0, 9999, True): 0, Setup(2, 1, 1): 4}  # all in one row; each sample in a row of its own
    assert trained.steps[0]["learner/repeated_prompts"] == repeated.get(trained.setup, mock.ANY)
    weights = dict(plain_model(trained.weights, task).named_parameters())
    assert set(weights) == set(run.weights)
    for name, weight in run.weights.items():
        torch.testing.assert_close(weights[name][clear[name]], weight[clear[name]], atol=1e-5, rtol=0, msg=name)
    compared = sum(mask.sum().item() for mask in clear.values()) / sum(mask.numel() for mask in clear.values())
    assert compared > 0.7
    assert clear["model.visual.patch_embed.proj.weight"].any()


@in_setups(2)
def test_a_run_goes_on_bit_by_bit(trained):
    folder = trained.folder / "checkpoint"
    trained.group.save(folder)
    before = trained.published()
    metrics = trained.train()
    after = trained.published()
    assert trained.group.load(folder) == NUM_STEPS
    assert_equal(trained.published(), before)
    assert trained.train() == metrics
    assert_equal(trained.published(), after)
    assert any(not torch.equal(before[name], after[name]) for name in before) == (metrics["learner/learning_rate"] > 0)


def saved(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, whichever rank wrote them."""
    files = sorted(folder.glob("learner-*.safetensors"))
    found = [load_file(file) for file in files]
    assert sum(map(len, found)) == len({name for tensors in found for name in tensors}), "nothing is written twice"
    return {name: tensor for tensors in found for name, tensor in tensors.items()}


@in_setups(2)
def test_another_number_of_ranks_goes_on_from_it(trained, task):
    """Compare weights and moments bit by bit: from n ranks to 3 - n and another ZeRO stage, and back."""
    other = OTHER_RANKS[trained.setup]
    folders = [trained.folder / name for name in ("from", "by_the_other", "back")]
    trained.group.save(folders[0])
    group = LearnerRanks(spec_of(task, other), [{"num_cpus": 0.25}] * other.num_ranks)
    try:
        assert group.load(folders[0]) >= NUM_STEPS
        assert_equal(load_file(group.publish(trained.folder / "other", 1).file.path), trained.published())
        group.save(folders[1])
        batch = make_batch(task.samples, num_ranks=other.num_ranks, micro_batch_tokens=other.micro_batch_tokens)
        metrics = group.train(batch, task.where(), OBJECTIVE)
    finally:
        group.close()
    trained.group.load(folders[1])
    trained.group.save(folders[2])
    first, *others = (saved(folder) for folder in folders)
    assert {name.rpartition(".")[2] for name in first} == {"weight_fp32", "exp_avg", "exp_avg_sq"}
    for tensors in others:
        assert_equal(tensors, first)
    assert trained.train()["learner/loss"] == pytest.approx(metrics["learner/loss"], rel=1e-5)


@in_setups(2)
def test_a_checkpoint_that_lacks_a_rank_or_fits_another_model_is_named(trained, tmp_path):
    trained.group.save(tmp_path)
    tensors = saved(tmp_path)
    name = next(name for name in tensors if name.endswith(".exp_avg"))
    for file in tmp_path.glob("learner-*.safetensors"):
        file.unlink()
    for change, message in (
        ({name: torch.zeros(3)}, f"'{name}' has the shape \\(3,\\), not"),
        ({}, "no '.*': a file is missing, or other parameters were trained"),
    ):
        save_file(
            {**tensors, **change} if change else {"other.weight_fp32": torch.zeros(1)},
            tmp_path / "learner-0.safetensors",
        )
        with pytest.raises(LearnerStateError, match=message):
            trained.group.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no checkpoint of a learner"):
        trained.group.load(tmp_path / "nothing")


@in_setups(2)
def test_an_exported_folder_loads_with_equal_weights(trained, task):
    folder = trained.folder / "export"
    trained.group.export(folder)
    assert_equal(load_file(folder / "model.safetensors"), trained.published())
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert_equal(dict(model.named_parameters()), dict(plain_model(trained.published(), task).named_parameters()))
    text = "<tool_call>4</tool_call>"
    assert AutoTokenizer.from_pretrained(folder).encode(text) == AutoTokenizer.from_pretrained(task.folder).encode(text)
    assert AutoImageProcessor.from_pretrained(folder).patch_size == tiny.VIEW_FACTOR // 2
    assert (folder / "generation_config.json").exists()


@in_setups(2)
def test_a_checkpoint_is_exported_without_a_learner(trained, task, tmp_path):
    """Whatever stage and number of ranks wrote it, the same bits as the learner's own weights."""
    trained.group.save(tmp_path)
    policy = PolicyModel.load(spec_of(task, trained.setup).model).make_trainable(spec_of(task, Setup(1, 0, 1)).config)
    assert learner_state.read_weights(policy, tmp_path) >= NUM_STEPS
    write_folder(policy.hf, dict(policy.hf.named_parameters()), str(task.folder), tmp_path / "export")
    assert_equal(load_file(tmp_path / "export" / "model.safetensors"), trained.published())


@in_setups(2)
def test_sft_and_text_alone(trained, task):
    """The same learner, another objective; and no sample of the batch has an image."""
    plain = plain_model(trained.published(), task)
    texts = [sample for sample in task.samples if not sample.image_keys]
    texts = [dataclasses.replace(sample, call_forbidden=()) for sample in texts]
    total = 0.0
    with torch.no_grad():
        for sample in texts:
            logits = plain(input_ids=torch.tensor([sample.token_ids])).logits[0]
            logits[:, list(task.ids.never_sampled)] = -torch.inf
            logprobs = logits.log_softmax(-1)
            places = [place for place, on in enumerate(sample.loss_mask) if on]
            total -= sum(logprobs[place - 1, sample.token_ids[place]].item() for place in places) / len(places)
    metrics = trained.train(SftObjective(aggregation="sequence_mean"), texts)
    assert metrics["learner/loss"] == pytest.approx(total / len(texts), rel=1e-5)


@in_setups(3)  # the third has no reference
def test_the_reference_stays_what_it_was(trained, task):
    objective = GrpoObjective(kl_coefficient=0.5, kl_kind="k2")
    if not trained.setup.with_reference:
        with pytest.raises(ray.exceptions.RayTaskError, match="without a reference"):
            trained.train(objective)
        return
    preparer = ImagePreparer(AutoImageProcessor.from_pretrained(task.folder), VIEW)
    first = AutoModelForImageTextToText.from_pretrained(task.folder, dtype=torch.float32)
    now = plain_model(trained.published(), task)
    differences = []
    with torch.no_grad():
        for sample in task.samples:
            rows = []
            for plain in (now, first):
                logits = sample_logits(plain, task, preparer, sample)
                logits[:, list(task.ids.never_sampled)] = -torch.inf
                places = [place for place, on in enumerate(sample.loss_mask) if on]
                for place in places:
                    if sample.call_forbidden[place]:
                        logits[place - 1, task.ids.tool_call] = -torch.inf
                rows.append(
                    torch.stack([logits[place - 1].log_softmax(-1)[sample.token_ids[place]] for place in places])
                )
            differences.append(rows[0] - rows[1])
    kl = torch.cat(differences).square().mean().item() / 2
    assert kl > 1e-6
    metrics = trained.train(objective)
    assert metrics["learner/kl_reference"] == pytest.approx(kl, rel=1e-3)
    assert metrics["learner/loss"] == pytest.approx(metrics["learner/policy_loss"] + 0.5 * kl, rel=1e-4)


@in_setups(2)
def test_what_is_not_finite_changes_no_weight(trained, task):
    """Of no use is a group after it, but that can be told apart."""
    before = trained.published()
    with pytest.raises(ray.exceptions.RayTaskError) as raised:
        trained.train(OVERFLOWING)
    assert isinstance(raised.value.cause, NonFiniteError)
    assert "the gradient is not finite" in str(raised.value)
    assert_equal(trained.published(), before)

    sample = task.samples[3]
    impossible = dataclasses.replace(sample, token_ids=(*sample.token_ids[:-1], task.ids.vision_end))
    with pytest.raises(ray.exceptions.RayTaskError) as raised:
        trained.train(samples=[*task.samples[:3], impossible])
    assert isinstance(raised.value.cause, NonFiniteError)
    assert f"the loss of 1 of {trained.setup.num_ranks} ranks is not finite" in str(raised.value)
    assert_equal(trained.published(), before)

    with pytest.raises(MismatchError, match="engine and learner differ by .* algorithm.max_mismatch allows 1e-09"):
        trained.train(dataclasses.replace(OBJECTIVE, max_mismatch=1e-9))
    assert_equal(trained.published(), before)


@in_setups(2)
def test_a_rank_that_hangs_or_dies_fails_the_call(trained, monkeypatch):
    """Last of all: the rank is gone."""
    rank = trained.group._ranks[-1]
    os.kill(ray.get(rank.__ray_call__.remote(lambda _: os.getpid())), signal.SIGSTOP)
    with monkeypatch.context() as patched:
        patched.setattr(trained.group, "_limit", 1.0)
        with pytest.raises(LearnerLost, match="a learner rank was lost: no answer within 1 seconds"):
            trained.train()
    ray.kill(rank)
    with pytest.raises(LearnerLost, match="a learner rank was lost: .*killed"):
        trained.train()


def assert_equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    assert set(first) == set(second)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_options_are_needed_for_each_rank(task):
    with pytest.raises(ValueError, match="options for 1 ranks of 2"):
        LearnerRanks(spec_of(task, Setup(2, 0, 1)), [{}])


def test_settings_follow_the_configuration():
    config = LearnerConfig(zero_stage=2, max_grad_norm=0.7, offload_optimizer=True, num_threads=3)
    settings = deepspeed_config(config, "bfloat16", 1000, use_gpu=True)
    assert settings["bf16"]["enabled"]
    assert settings["data_types"] == {"grad_accum_dtype": "fp32"}
    assert settings["gradient_clipping"] == 0.7
    assert settings["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert settings["zero_optimization"]["reduce_bucket_size"] == 1000
    assert learner_environment(config, use_gpu=False)["OMP_NUM_THREADS"] == "3"
    assert learner_environment(config, use_gpu=True)["DS_ACCELERATOR"] == "cuda"
    assert "PYTORCH_CUDA_ALLOC_CONF" in learner_environment(config, use_gpu=True, transfer="nccl")
    assert "PYTORCH_CUDA_ALLOC_CONF" not in learner_environment(config, use_gpu=True, transfer="ipc")
    assert math.isclose(
        deepspeed_config(LearnerConfig(zero_stage=0), "float32", 10, use_gpu=False)["gradient_clipping"], 0.0
    )
