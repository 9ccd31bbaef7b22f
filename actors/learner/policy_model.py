"""The policy as the learner computes it: log-probabilities and entropies of sampled tokens, from Hugging Face's model."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from actors.learner import architectures
from actors.learner.image_inputs import ImageInputs
from actors.learner.packed_attention import use_packed_attention
from actors.learner.pretrained import load_pretrained
from actors.learner.vision_tower import speed_up
from actors.weights import lora
from arm_rl.core.compute_config import LearnerConfig
from arm_rl.core.config import ModelConfig
from arm_rl.core.micro_batch import MicroBatch

_MAX_LOGITS = 1 << 27  # logits held at a time: half a GiB in float32
_MAX_FEATURE_BYTES = 1 << 29  # of image features kept


class PolicyModel(nn.Module):
    """A vision-language model of Qwen's shape (`model.visual`, `model.language_model`, `lm_head`, mrope), scored at loss positions only."""

    def __init__(self, model: Any, *, never_sampled_ids: Sequence[int] = (), call_token_id: int | None = None) -> None:
        super().__init__()
        self.hf = model
        speed_up(model.model.visual)
        use_packed_attention(model.model.language_model)
        # of images by their keys, where the tower that makes them stays as it is
        self._features: OrderedDict[str, Tensor] | None = None
        self.scorer = TokenScorer(model.lm_head.weight, never_sampled_ids, call_token_id)

    @classmethod
    def load(
        cls, model: ModelConfig, *, never_sampled_ids: Sequence[int] = (), call_token_id: int | None = None
    ) -> Self:
        """Reads a Hugging Face folder, or a model of the hub."""
        return cls(load_pretrained(model), never_sampled_ids=never_sampled_ids, call_token_id=call_token_id)

    def make_trainable(self, config: LearnerConfig) -> Self:
        """Sets what is trained, and how activations are kept."""
        self.train()
        visual = self.hf.model.visual
        visual.requires_grad_(not config.freeze_vision)
        for projector in architectures.projectors(visual):
            projector.requires_grad_(not config.freeze_projector)
        if config.lora_rank:
            lora.add_adapters(self.hf, config)
        # ZeRO-3's ranks must run the same modules
        if config.freeze_vision and config.freeze_projector and config.zero_stage < 3:
            self._features = OrderedDict()
        if config.gradient_checkpointing:
            self.hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return self

    def forward(
        self,
        batch: MicroBatch,
        images: ImageInputs | None = None,
        *,
        temperature: float = 1.0,
        entropy_gradient: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Score the loss tokens of a micro-batch.

        Args:
            batch: On the CPU; positions are computed there.
            images: Those of `batch.image_keys`. Each is encoded once and shown wherever `batch` says. An image that is shown nowhere is
                encoded all the same: the ranks' forward passes must run the same modules.
            temperature: Divisor of the logits.
            entropy_gradient: Whether gradients flow through the entropies.

        Returns:
            Log-probabilities of the loss tokens and entropies of the distributions they came from, float32 [N] each.

        Raises:
            ValueError: If the image tokens are not those of the images.
        """
        hidden = self._read(batch, images)  # [T, H]
        device = hidden.device
        return self.scorer(
            hidden[batch.predictors.to(device)],
            batch.token_ids[batch.loss_positions].to(device),
            batch.call_forbidden.to(device),
            temperature,
            entropy_gradient,
        )

    def _read(self, batch: MicroBatch, images: ImageInputs | None) -> Tensor:
        """Return the last hidden states of a packed row, [T, H]."""
        device = self.scorer.is_call.device
        is_image = batch.token_ids == self.hf.config.image_token_id  # bool [T]
        # [image-token spans, 3]
        grids = torch.zeros((0, 3), dtype=torch.int64) if images is None else images.grids[list(batch.shown)]
        expected = self._num_tokens(grids).sum().item()
        if is_image.sum().item() != expected:
            raise ValueError(f"{is_image.sum().item()} image pads for {len(grids)} images of {expected} tokens")
        embeddings = self.hf.get_input_embeddings()(batch.token_ids.to(device)[None])  # [1, T, H]
        beside: dict[str, Any] = {}
        if images is not None:
            features = self._encode(images)
            if batch.shown:
                embeddings, beside = architectures.show(
                    embeddings, is_image.to(device)[None], torch.cat([features[place] for place in batch.shown])
                )
            else:
                embeddings = embeddings + 0.0 * sum(feature.sum() for feature in features).to(embeddings.dtype)
        read = self.hf.model.language_model(
            inputs_embeds=embeddings,
            position_ids=self._positions(batch, grids).to(device),
            use_cache=False,
            segments=batch.segments,
            **beside,
        )
        return read.last_hidden_state[0]

    def _positions(self, batch: MicroBatch, grids: Tensor) -> Tensor:
        """Return the positions of a packed row, int64 [3, 1, T]; those of a branch continue its prompt's."""
        kinds = (batch.token_ids == self.hf.config.image_token_id).int()  # [T], 1 for an image token
        positions: list[Tensor] = []  # int64 [3, 1, length] each
        start = num_shown = 0
        for segment in batch.segments:
            end = start + segment.length
            shown = num_shown + int((torch.diff(kinds[start:end], prepend=kinds.new_zeros(1)) == 1).sum())
            own, _ = self.hf.model.get_rope_index(
                batch.token_ids[None, start:end],
                mm_token_type_ids=kinds[None, start:end],
                image_grid_thw=grids[num_shown:shown],
            )
            positions.append(own if segment.prompt is None else own + positions[segment.prompt].max() + 1)
            start, num_shown = end, shown
        return torch.cat(positions, dim=2)

    def _encode(self, images: ImageInputs) -> list[Tensor]:
        """Features of each image. A tower that is not trained sees an image that is used again soon only once."""
        if self._features is None or not images.keys:
            return self._features_of(images.patches, images.grids)
        pieces = images.patches.split(images.grids.prod(dim=1).tolist())
        new = [place for place, key in enumerate(images.keys) if key not in self._features]
        if new:
            features = self._features_of(torch.cat([pieces[place] for place in new]), images.grids[new])
            self._features.update(zip((images.keys[place] for place in new), features, strict=True))
        for key in images.keys:
            self._features.move_to_end(key)
        found = [self._features[key] for key in images.keys]
        while sum(feature.nbytes for feature in self._features.values()) > _MAX_FEATURE_BYTES:
            self._features.popitem(last=False)
        return found

    def _features_of(self, patches: Tensor, grids: Tensor) -> list[Tensor]:
        visual, device = self.hf.model.visual, self.scorer.is_call.device
        with torch.set_grad_enabled(
            torch.is_grad_enabled() and any(weight.requires_grad for weight in visual.parameters())
        ):
            return architectures.image_features(self.hf, patches.to(device), grids.to(device))

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
        size = getattr(weight, "ds_shape", weight.shape)[0]  # a ZeRO-3 shard's own shape is empty
        self.register_buffer("never_sampled", _one_hot(size, never_sampled_ids), persistent=False)
        self.register_buffer(
            "is_call", _one_hot(size, [] if call_token_id is None else [call_token_id]), persistent=False
        )

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
