"""PolicyModel against plain Hugging Face: log-probabilities, entropies, images encoded once, forbidden tokens, scoring in pieces."""

import dataclasses
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageTextToText

from actors.learner import policy_model
from actors.learner.image_inputs import ImagePreparer
from actors.learner.policy_model import PolicyModel
from arm_rl.core.compute_config import LearnerConfig
from arm_rl.core.config import ModelConfig
from arm_rl.core.images import Image
from arm_rl.core.micro_batch import collate
from arm_rl.core.types import TrainingSample
from tests.support import random_samples, tiny, tiny_qwen3
from tests.support.random_samples import VIEW, Ids

FROZEN = LearnerConfig(freeze_vision=True, freeze_projector=True)
TRAINED = LearnerConfig(freeze_vision=False, freeze_projector=False)


@pytest.fixture(scope="module", params=[tiny, tiny_qwen3], ids=["qwen2.5", "qwen3"])
def folder(request, tmp_path_factory):
    return request.param.build(tmp_path_factory.mktemp("tiny"), seed=3)


@pytest.fixture(scope="module")
def ids(folder):
    return Ids.of(folder)


@pytest.fixture(scope="module")
def plain(folder):
    """Hugging Face's own model, nothing of ours in it."""
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def preparer(folder):
    return ImagePreparer(AutoImageProcessor.from_pretrained(folder), VIEW)


@pytest.fixture(scope="module")
def images():
    """Views of 16, 8 and 4 tokens."""
    made = [
        random_samples.image(1),
        random_samples.image(2),
        random_samples.image(3, 64, 32),
        random_samples.image(4, 32, 32),
    ]
    return {image.key: image for image in made}


@pytest.fixture(scope="module")
def samples(ids, images):
    """The first image is shown by three samples, twice by one of them."""
    first, second, third, fourth = images.values()
    shown = [[first], [first, third], [second, first, fourth, first], [], [third]]
    return [random_samples.sample(ids, group, seed=seed, length=8 + 3 * seed) for seed, group in enumerate(shown)]


def load(folder, ids, config=TRAINED) -> PolicyModel:
    model = ModelConfig(path=str(folder), dtype="float32")
    return PolicyModel.load(model, never_sampled_ids=ids.never_sampled, call_token_id=ids.tool_call).make_trainable(
        config
    )


def plain_scores(
    plain, preparer, ids: Ids, sample: TrainingSample, images: Mapping[str, Image], temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies [T] of one sample, from the full logits, token by token."""
    tokens = torch.tensor([sample.token_ids])
    inputs = {}
    if sample.image_keys:
        prepared = [preparer.prepare([key], images) for key in sample.image_keys]  # a copy for each place
        inputs = {
            "pixel_values": torch.cat([image.patches for image in prepared]),
            "image_grid_thw": torch.cat([image.grids for image in prepared]),
        }
    kinds = (tokens == ids.image_pad).int()
    # [T, V]
    logits = plain(input_ids=tokens, attention_mask=torch.ones_like(tokens), mm_token_type_ids=kinds, **inputs).logits[
        0
    ]
    logprobs, entropies = torch.zeros(len(sample.token_ids)), torch.zeros(len(sample.token_ids))
    for position, token in enumerate(sample.token_ids):
        if sample.loss_mask[position]:
            row = logits[position - 1] / temperature
            gone = [*ids.never_sampled, *([ids.tool_call] if sample.call_forbidden[position] else [])]
            kept = [index for index in range(len(row)) if index not in gone]
            distribution = torch.distributions.Categorical(logits=row[kept])
            logprobs[position] = distribution.log_prob(torch.tensor(kept.index(token)))
            entropies[position] = distribution.entropy()
    return logprobs, entropies


def score_plainly(
    plain, preparer, ids: Ids, samples: Sequence[TrainingSample], images: Mapping[str, Image], temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies [N] of the samples' loss tokens, one sample after the other."""
    scores = [plain_scores(plain, preparer, ids, sample, images, temperature) for sample in samples]
    masks = [torch.tensor(sample.loss_mask) for sample in samples]
    logprobs, entropies = zip(*scores, strict=True)
    return tuple(
        torch.cat([row[mask] for row, mask in zip(rows, masks, strict=True)]) for rows in (logprobs, entropies)
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_are_those_of_the_plain_model(folder, plain, preparer, ids, images, samples, temperature):
    batch = collate(samples)
    policy = load(folder, ids)
    with torch.no_grad():
        found = policy(batch, preparer.prepare(batch.image_keys, images), temperature=temperature)
        expected = score_plainly(plain, preparer, ids, samples, images, temperature)
    for values, of_plain in zip(found, expected, strict=True):
        torch.testing.assert_close(values, of_plain, atol=1e-5, rtol=0)


def test_an_image_of_many_samples_is_encoded_once(folder, preparer, ids, images, samples):
    policy = load(folder, ids)
    encoded = []
    policy.hf.model.visual.register_forward_pre_hook(
        lambda module, args, kwargs: encoded.extend(kwargs["grid_thw"].tolist()), with_kwargs=True
    )
    batch = collate(samples)
    policy(batch, preparer.prepare(batch.image_keys, images))
    assert sum(len(sample.image_keys) for sample in samples) == 8
    assert sorted(encoded) == [[1, 4, 4], [1, 4, 8], [1, 8, 8], [1, 8, 8]]


def gradients(policy: PolicyModel, preparer, images, pieces: Sequence[Sequence[TrainingSample]]) -> dict[str, Tensor]:
    """Of the sum of all loss tokens' log-probabilities, each piece in a forward pass of its own."""
    policy.zero_grad()
    for piece in pieces:
        batch = collate(piece)
        logprobs, _ = policy(batch, preparer.prepare(batch.image_keys, images))
        (logprobs * batch.advantages).sum().backward()
    return {name: weight.grad.clone() for name, weight in policy.named_parameters() if weight.grad is not None}


def gradients_of_plain(plain, preparer, ids, samples, images) -> dict[str, Tensor]:
    """The same of Hugging Face's own model, each sample in a forward pass of its own."""
    plain.zero_grad()
    for sample in samples:
        logprobs, _ = plain_scores(plain, preparer, ids, sample, images, 1.0)
        (logprobs * torch.tensor(sample.advantages)).sum().backward()
    return {f"hf.{name}": weight.grad for name, weight in plain.named_parameters()}


def test_gradients_of_shared_images_are_those_of_images_encoded_apart(folder, plain, preparer, ids, images, samples):
    shared = gradients(load(folder, ids), preparer, images, [samples])
    apart = gradients_of_plain(plain, preparer, ids, samples, images)
    assert set(apart) == set(shared)
    assert apart["hf.model.visual.patch_embed.proj.weight"].abs().max() > 1e-3
    for name, gradient in apart.items():
        torch.testing.assert_close(shared[name], gradient, atol=2e-5, rtol=1e-4, msg=name)


@pytest.fixture(scope="module")
def groups(ids, images):
    """Two groups with prompts of different lengths: images in the prompt, in the rows, in both, and text alone."""
    first, second, third, fourth = images.values()
    return [
        *random_samples.group(ids, [first], [[], [second], [third, first], []], seed=7),
        *random_samples.group(ids, [third, fourth], [[], [second]], seed=8),
        *random_samples.group(ids, [], [[], []], seed=9),
    ]


def test_a_prompt_and_its_images_are_computed_once(folder, preparer, ids, images, groups):
    policy = load(folder, ids)
    read = []
    policy.hf.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["inputs_embeds"].shape[:2]), with_kwargs=True
    )
    members = groups[:4]
    batch = collate(members)
    policy(batch, preparer.prepare(batch.image_keys, images))
    prompt = members[0].num_prompt_tokens
    assert read == [(1, prompt + sum(len(member.token_ids) - prompt for member in members))], "one row, no padding"


def test_features_of_a_frozen_tower_are_used_again(folder, preparer, ids, images, samples):
    policy = load(folder, ids, dataclasses.replace(FROZEN, zero_stage=2))
    encoded = []
    policy.hf.model.visual.register_forward_pre_hook(
        lambda module, args, kwargs: encoded.extend(kwargs["grid_thw"].tolist()), with_kwargs=True
    )
    batch = collate(samples)
    first, _ = policy(batch, preparer.prepare(batch.image_keys, images))
    later, _ = policy(batch, preparer.prepare(batch.image_keys, images))
    assert len(encoded) == 4
    torch.testing.assert_close(first, later, atol=0, rtol=0)
    fresh, _ = load(folder, ids, FROZEN)(batch, preparer.prepare(batch.image_keys, images))
    torch.testing.assert_close(first, fresh, atol=0, rtol=0)


def test_gradients_do_not_depend_on_the_cut(folder, preparer, ids, images, samples):
    policy = load(folder, ids)
    whole = gradients(policy, preparer, images, [samples])
    cut = gradients(policy, preparer, images, [samples[:1], samples[1:4], samples[4:]])
    for name, gradient in whole.items():
        torch.testing.assert_close(cut[name], gradient, atol=2e-5, rtol=1e-4, msg=name)


def test_frozen_parts_get_no_gradient(folder, preparer, ids, images, samples):
    def trained(config: LearnerConfig) -> set[str]:
        found = gradients(load(folder, ids, config), preparer, images, [samples])
        return {"merger" if "merger" in name else "tower" for name in found if ".visual." in name}

    assert trained(TRAINED) == {"merger", "tower"}
    assert trained(FROZEN) == set()
    assert trained(LearnerConfig(freeze_vision=True, freeze_projector=False)) == {"merger"}


def test_an_image_shown_nowhere_changes_nothing_and_reaches_the_tower(folder, preparer, ids, images, samples):
    policy = load(folder, ids)
    batch = collate(samples[3:4])
    blank = preparer.prepare((), images)
    without, _ = policy(batch)
    logprobs, _ = policy(batch, blank)
    assert torch.equal(logprobs, without)
    logprobs.sum().backward()
    gradient = policy.hf.model.visual.patch_embed.proj.weight.grad
    assert gradient is not None
    assert not gradient.any()


def test_an_empty_micro_batch_has_gradients_of_zero(folder, preparer, ids, images):
    policy = load(folder, ids)
    logprobs, _ = policy(collate([]), preparer.prepare((), images))
    assert logprobs.shape == (0,)
    logprobs.sum().backward()
    for name, weight in policy.named_parameters():
        assert weight.grad is not None, name
        assert not weight.grad.any(), name


def test_a_forbidden_token_has_no_probability(folder, ids):
    policy = load(folder, ids)
    base = random_samples.sample(ids, [], seed=5)
    for token, forbidden, expected in [
        (ids.vision_end, False, False),
        (ids.tool_call, True, False),
        (ids.tool_call, False, True),
    ]:
        sample = TrainingSample(
            token_ids=(*base.token_ids[:-1], token),
            loss_mask=base.loss_mask,
            logprobs=base.logprobs,
            advantages=base.advantages,
            call_forbidden=(False,) * (len(base.token_ids) - 1) + (forbidden,),
        )
        logprobs, entropies = policy(collate([sample]))
        assert bool(logprobs[-1].isfinite()) == expected
        assert entropies.isfinite().all()


def test_scoring_in_pieces_changes_nothing(folder, preparer, ids, images, samples, monkeypatch):
    policy = load(folder, ids)
    whole = gradients(policy, preparer, images, [samples])
    monkeypatch.setattr(policy_model, "_MAX_LOGITS", 3 * len(policy.scorer.is_call))  # three tokens at a time
    pieces = gradients(policy, preparer, images, [samples])
    for name, gradient in whole.items():
        torch.testing.assert_close(pieces[name], gradient, atol=2e-5, rtol=1e-4, msg=name)


def test_gradient_checkpointing_changes_nothing(folder, preparer, ids, images, samples):
    kept = gradients(load(folder, ids), preparer, images, [samples])
    config = LearnerConfig(freeze_vision=False, freeze_projector=False, gradient_checkpointing=True)
    again = gradients(load(folder, ids, config), preparer, images, [samples])
    for name, gradient in kept.items():
        torch.testing.assert_close(again[name], gradient, atol=2e-5, rtol=1e-4, msg=name)


def test_bfloat16_gives_nearly_the_gradient_of_float32(folder, preparer, ids, images, samples):
    """The whole gradient's direction and size; its parts may be rounding noise alone."""
    exact = gradients(load(folder, ids), preparer, images, [samples])
    low = PolicyModel.load(
        ModelConfig(path=str(folder), dtype="bfloat16"),
        never_sampled_ids=ids.never_sampled,
        call_token_id=ids.tool_call,
    )
    rounded = gradients(low.make_trainable(TRAINED), preparer, images, [samples])
    assert {gradient.dtype for gradient in rounded.values()} == {torch.bfloat16}
    first, second = (torch.cat([found[name].float().flatten() for name in exact]) for found in (exact, rounded))
    assert torch.nn.functional.cosine_similarity(first, second, dim=0) > 0.99
    assert second.norm() / first.norm() == pytest.approx(1, abs=0.05)


def test_the_entropy_has_a_gradient_only_where_it_is_wanted(folder, ids, samples):
    policy = load(folder, ids)
    batch = collate(samples[3:4])
    _, entropies = policy(batch)
    assert not entropies.requires_grad
    _, entropies = policy(batch, entropy_gradient=True)
    entropies.sum().backward()
    gradient = policy.hf.lm_head.weight.grad
    assert gradient.isfinite().all()
    assert gradient.any()


def test_pads_and_images_must_match(folder, preparer, ids, images, samples):
    policy = load(folder, ids)
    batch = collate(samples[:1])
    with pytest.raises(ValueError, match="16 image pads for 1 images of 8 tokens"):
        policy(batch, preparer.prepare([list(images)[2]], images))
    with pytest.raises(ValueError, match="16 image pads for 0 images"):
        policy(collate([TrainingSample(**{**fields(samples[0]), "image_keys": ()})]))


def fields(sample: TrainingSample) -> dict:
    return {name: getattr(sample, name) for name in sample.__dataclass_fields__}


def test_an_image_is_processed_once_while_it_is_kept(folder, images):
    calls = []
    processor = AutoImageProcessor.from_pretrained(folder)
    preparer = ImagePreparer(
        lambda images, **options: calls.append(len(images)) or processor(images=images, **options), VIEW
    )
    first, second, third, _ = images
    preparer.prepare([first, second], images)
    again = preparer.prepare([second, third, first], images)
    assert calls == [2, 1]
    fresh = ImagePreparer(processor, VIEW).prepare([second, third, first], images)
    assert torch.equal(again.patches, fresh.patches)
    assert torch.equal(again.grids, fresh.grids)
