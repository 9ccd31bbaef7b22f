"""The small judge's forward pass over lessons, in plain torch: sequences with equally many images form one padded batch."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import Qwen2_5_VLForConditionalGeneration

from arm_rl.demo import pixels
from arm_rl.demo.lessons import Lesson


def lesson_logits(
    model: Qwen2_5_VLForConditionalGeneration, lessons: Sequence[Lesson], image_tokens: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute logits (M, vocabulary), targets (M,) and weights (M,) of the M weighted tokens of lessons, lesson by lesson.

    Sequences are padded on the right, which causal attention does not see: no mask is needed.
    """
    length = max(len(lesson.token_ids) for lesson in lessons)
    ids = torch.zeros(len(lessons), length, dtype=torch.long)
    weights = torch.zeros(len(lessons), length)
    for number, lesson in enumerate(lessons):
        ids[number, : len(lesson.token_ids)] = torch.tensor(lesson.token_ids)
        weights[number, : len(lesson.weights)] = torch.tensor(lesson.weights)
    hidden = hidden_states(model, ids, torch.cat(list(image_tokens)) if image_tokens else None)
    places = weights[:, 1:] > 0
    return model.lm_head(hidden[:, :-1][places]), ids[:, 1:][places], weights[:, 1:][places]


def hidden_states(model: Qwen2_5_VLForConditionalGeneration, ids: Tensor, image_tokens: Tensor | None) -> Tensor:
    """Compute the last hidden states (B, T, hidden) of ids (B, T).

    Args:
        model: The small judge.
        ids: Token ids with image pads.
        image_tokens: Embeddings of all pads of the batch in order, (pads, hidden); None if there are none.
    """
    is_image = ids == model.config.image_token_id
    embedded = model.get_input_embeddings()(ids)
    if image_tokens is not None:
        embedded = embedded.masked_scatter(is_image.unsqueeze(-1), image_tokens)
    return model.model.language_model(
        inputs_embeds=embedded, position_ids=positions(is_image), use_cache=False
    ).last_hidden_state


def positions(is_image: Tensor) -> Tensor:
    """Compute Qwen's three position ids (3, B, T) where every image is a square of GRID x GRID tokens; `is_image` is (B, T)."""
    side = int(pixels.NUM_TOKENS**0.5)
    inside = torch.where(is_image, (torch.cumsum(is_image, dim=1) - 1) % pixels.NUM_TOKENS, 0)  # place in its own image
    step = torch.where(is_image, (inside == 0) * side, 1)  # an image moves the position on by its side, once
    start = torch.cumsum(step, dim=1) - torch.where(is_image, side, 1)
    return torch.stack([start, start + inside // side, start + inside % side])


def lessons_loss(model: Qwen2_5_VLForConditionalGeneration, lessons: Sequence[Lesson]) -> Tensor:
    """Compute the weighted mean of the negative log-likelihoods of all weighted tokens."""
    total = sum(sum(lesson.weights) for lesson in lessons)
    loss = torch.zeros(())
    for group, (logits, targets, weights) in batch_logits(model, lessons):
        del group
        loss = loss + (functional.cross_entropy(logits, targets, reduction="none") * weights).sum() / total
    return loss


def batch_logits(
    model: Qwen2_5_VLForConditionalGeneration, lessons: Sequence[Lesson]
) -> Iterator[tuple[list[int], tuple[Tensor, Tensor, Tensor]]]:
    """Yield batches of lessons as their indices and what `lesson_logits` returns for them."""
    views = [view for lesson in lessons for view in lesson.views]
    tokens = pixels.encode(model.model.visual, pixels.make_patches(np.stack(views))) if views else None
    ends = np.cumsum([len(lesson.views) for lesson in lessons])
    for group in _batches_by_length(lessons):
        chosen = (
            [tokens[ends[n] - len(lessons[n].views) : ends[n]].flatten(0, 1) for n in group]
            if tokens is not None
            else []
        )
        yield group, lesson_logits(model, [lessons[n] for n in group], chosen)


def _batches_by_length(lessons: Sequence[Lesson]) -> list[list[int]]:
    """Return sets of indices of lessons with equally many images, which need little padding."""
    groups: dict[int, list[int]] = {}
    for number, lesson in enumerate(lessons):
        groups.setdefault(len(lesson.views), []).append(number)
    return list(groups.values())
