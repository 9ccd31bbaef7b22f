"""The policy as the learner computes it: log-probabilities and entropies of sampled tokens, from Hugging Face's model."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForImageTextToText

from actors.image_inputs import ImageInputs
from arm_rl.core.batching import MicroBatch
from arm_rl.core.config import LearnerConfig, ModelConfig

_MAX_LOGITS = 1 << 27  # logits held at a time: half a GiB in float32


class PolicyModel(nn.Module):
    """A vision-language model of Qwen's shape (`model.visual`, `model.language_model`, `lm_head`, mrope), scored at loss positions only."""

    def __init__(self, model: Any, *, never_sampled_ids: Sequence[int] = (), call_token_id: int | None = None) -> None:
        super().__init__()
        self.hf = model
        self.scorer = TokenScorer(model.lm_head.weight, never_sampled_ids, call_token_id)

    @classmethod
    def load(cls, model: ModelConfig, *, never_sampled_ids: Sequence[int] = (), call_token_id: int | None = None) -> Self:
        """Reads a Hugging Face folder, or a model of the hub."""
        hf = AutoModelForImageTextToText.from_pretrained(model.path, dtype=getattr(torch, model.dtype), attn_implementation=model.attention)
        return cls(hf, never_sampled_ids=never_sampled_ids, call_token_id=call_token_id)

    def make_trainable(self, config: LearnerConfig) -> Self:
        """Sets what is trained, and how activations are kept."""
        self.train()
        visual = self.hf.model.visual
        visual.requires_grad_(not config.freeze_vision)
        visual.merger.requires_grad_(not config.freeze_projector)
        if config.gradient_checkpointing:
            self.hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return self

    def forward(
        self, batch: MicroBatch, images: ImageInputs | None = None, *, temperature: float = 1.0, entropy_gradient: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Scores the loss tokens of a micro-batch.

        Args:
            batch: on the CPU; positions are laid out there.
            images: those of `batch.image_keys`. Each is encoded once and shown wherever `batch.shown` says. An image that is shown
                nowhere is encoded all the same: the ranks' forward passes must run the same modules.
            temperature: the logits are divided by it.
            entropy_gradient: whether gradients flow through the entropies.

        Returns:
            Log-probabilities of the tokens and entropies of the distributions they came from, float32 [B, T] each, 0 without loss.

        Raises:
            ValueError: the pads are not those of the images.
        """
        device = self.scorer.is_call.device
        is_image = batch.token_ids == self.hf.config.image_token_id  # bool [B, T]
        positions = self._positions(batch, images, is_image).to(device)  # int64 [3, B, T]
        embeddings = self.hf.get_input_embeddings()(batch.token_ids.to(device))  # [B, T, H]
        if images is not None:
            embeddings = self._show(embeddings, is_image.to(device), images, batch.shown)
        # Padding is on the right, where causal attention never looks: no mask is needed, and attention takes its fastest path.
        hidden = self.hf.model.language_model(inputs_embeds=embeddings, position_ids=positions, use_cache=False).last_hidden_state
        mask = batch.loss_mask.to(device)  # bool [B, T]
        scores = self.scorer(
            hidden[:, :-1][mask[:, 1:]],  # [N, H]: the token at t is predicted at t - 1
            batch.token_ids.to(device)[mask],  # [N]
            batch.call_forbidden.to(device)[mask],  # [N]
            temperature,
            entropy_gradient,
        )
        empty = torch.zeros(mask.shape, dtype=torch.float32, device=device)  # [B, T]
        logprobs, entropy = (empty.masked_scatter(mask, values) for values in scores)
        return logprobs, entropy

    def _positions(self, batch: MicroBatch, images: ImageInputs | None, is_image: Tensor) -> Tensor:
        grids = torch.zeros((0, 3), dtype=torch.int64) if images is None else images.grids[list(batch.shown)]  # [shown, 3]
        expected = self._num_tokens(grids).sum().item()
        if is_image.sum().item() != expected:
            raise ValueError(f"{is_image.sum().item()} image pads for {len(grids)} images of {expected} tokens")
        positions, _ = self.hf.model.get_rope_index(
            batch.token_ids, mm_token_type_ids=is_image.int(), image_grid_thw=grids, attention_mask=batch.attention_mask
        )
        return positions  # [3, B, T]

    def _show(self, embeddings: Tensor, is_image: Tensor, images: ImageInputs, shown: Sequence[int]) -> Tensor:
        visual = self.hf.model.visual
        with torch.set_grad_enabled(torch.is_grad_enabled() and any(weight.requires_grad for weight in visual.parameters())):
            output = self.hf.get_image_features(images.patches.to(embeddings.device), images.grids.to(embeddings.device))
        features = list(output.pooler_output)  # of each image: [its tokens, H]
        if not shown:
            return embeddings + 0.0 * sum(feature.sum() for feature in features).to(embeddings.dtype)
        shown_features = torch.cat([features[place] for place in shown]).to(embeddings.dtype)  # [pads, H]
        return embeddings.masked_scatter(is_image[..., None], shown_features)

    def _num_tokens(self, grids: Tensor) -> Tensor:
        return grids.prod(dim=1) // self.hf.model.visual.spatial_merge_size**2


class TokenScorer(nn.Module):
    """The language model's head, which gives log-probabilities and entropies instead of logits.

    It holds the head's own parameter. As one module with one forward pass it lets ZeRO-3 gather that parameter once, however many
    pieces the tokens are scored in.
    """

    never_sampled: Tensor  # bool [V]
    is_call: Tensor  # bool [V]

    def __init__(self, weight: nn.Parameter, never_sampled_ids: Sequence[int], call_token_id: int | None) -> None:
        super().__init__()
        self.weight = weight  # [V, H]
        self.register_buffer("never_sampled", _one_hot(len(weight), never_sampled_ids), persistent=False)
        self.register_buffer("is_call", _one_hot(len(weight), [] if call_token_id is None else [call_token_id]), persistent=False)

    def forward(
        self, hidden: Tensor, token_ids: Tensor, call_forbidden: Tensor, temperature: float, entropy_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        """Scores N tokens.

        Args:
            hidden: [N, H] states that predict them.
            token_ids: int64 [N].
            call_forbidden: bool [N], where the call's first token could not be sampled.

        Returns:
            Log-probabilities and entropies, float32 [N] each. A token that could not be sampled has -inf.
        """
        size = max(1, _MAX_LOGITS // len(self.is_call))
        if len(hidden) <= size:
            return self._score(hidden, token_ids, call_forbidden, temperature, entropy_gradient)
        pieces = [  # logits of a piece are computed again in the backward pass rather than kept
            checkpoint(self._score, *piece, temperature, entropy_gradient, use_reentrant=False)
            for piece in zip(hidden.split(size), token_ids.split(size), call_forbidden.split(size), strict=True)
        ]
        logprobs, entropies = zip(*pieces, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    def _score(
        self, hidden: Tensor, token_ids: Tensor, call_forbidden: Tensor, temperature: float, entropy_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        logits = functional.linear(hidden, self.weight).float() / temperature  # [N, V]
        forbidden = self.never_sampled | (call_forbidden[:, None] & self.is_call)  # [N, V]
        all_logprobs = logits.masked_fill(forbidden, -torch.inf).log_softmax(dim=-1)  # [N, V]
        logprobs = all_logprobs.gather(1, token_ids[:, None])[:, 0]  # [N]
        with torch.set_grad_enabled(torch.is_grad_enabled() and entropy_gradient):
            finite = all_logprobs.masked_fill(forbidden, 0.0)  # 0 * -inf would be NaN
            entropies = -(all_logprobs.exp() * finite).sum(dim=-1)  # [N]
        return logprobs, entropies


def _one_hot(size: int, places: Sequence[int]) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[list(places)] = True
    return mask
