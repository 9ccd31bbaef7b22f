"""The policy as the learner computes it: log-probabilities and entropies of sampled tokens, from Hugging Face's model."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from actors.learner import architectures
from actors.learner.image_inputs import ImageInputs
from actors.learner.pretrained import load_pretrained
from actors.learner.vision_tower import speed_up
from actors.weights import lora
from arm_rl.core.batching import MicroBatch
from arm_rl.core.compute_config import LearnerConfig
from arm_rl.core.config import ModelConfig

_MAX_LOGITS = 1 << 27  # logits held at a time: half a GiB in float32
_MAX_FEATURE_BYTES = 1 << 29  # of image features kept


class PolicyModel(nn.Module):
    """A vision-language model of Qwen's shape (`model.visual`, `model.language_model`, `lm_head`, mrope), scored at loss positions only."""

    def __init__(self, model: Any, *, never_sampled_ids: Sequence[int] = (), call_token_id: int | None = None) -> None:
        super().__init__()
        self.hf = model
        speed_up(model.model.visual)
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
        """Scores the loss tokens of a micro-batch.

        Args:
            batch: on the CPU; positions are laid out there.
            images: those of `batch.image_keys`. Each is encoded once and shown wherever `batch` says. An image that is shown nowhere is
                encoded all the same: the ranks' forward passes must run the same modules.
            temperature: the logits are divided by it.
            entropy_gradient: whether gradients flow through the entropies.

        Returns:
            Log-probabilities of the tokens and entropies of the distributions they came from, float32 [B, T] each, 0 without loss.

        Raises:
            ValueError: the pads are not those of the images.
        """
        features = None if images is None else self._encode(images)
        rows = self._rows(batch.token_ids, batch.attention_mask, batch.shown, images, features)
        before, hidden = self._read(batch, rows, images, features)  # [B, H] or None, [B, T, H]
        device = hidden.device
        mask = batch.loss_mask.to(device)  # bool [B, T]
        if before is None:  # the token at t is predicted at t - 1, and the first one by nothing
            predicting = hidden[:, :-1][mask[:, 1:]]  # [N, H]
        else:
            predicting = torch.cat([before[:, None], hidden[:, :-1]], dim=1)[mask]  # [N, H]
        scores = self.scorer(
            predicting,
            batch.token_ids.to(device)[mask],
            batch.call_forbidden.to(device)[mask],
            temperature,
            entropy_gradient,
        )
        empty = torch.zeros(mask.shape, dtype=torch.float32, device=device)  # [B, T]
        logprobs, entropy = (empty.masked_scatter(mask, values) for values in scores)
        return logprobs, entropy

    def _read(
        self, batch: MicroBatch, rows: "_Rows", images: ImageInputs | None, features: list[Tensor] | None
    ) -> tuple[Tensor | None, Tensor]:
        """Last hidden states of the rows [B, T, H], and those at the ends of their prompts [B, H] where these stand apart.

        Prompts are read first, once each; the rows then attend to the keys and values of theirs, through which gradients flow back.
        """
        language_model = self.hf.model.language_model
        if not len(batch.prompt_ids):
            # Padding is on the right, where causal attention never looks: no mask is needed, and attention takes its fastest path.
            read = language_model(
                inputs_embeds=rows.embeddings, position_ids=rows.positions, use_cache=False, **rows.shown
            )
            return None, read.last_hidden_state
        prompts = self._rows(batch.prompt_ids, batch.prompt_mask, batch.prompt_shown, images, features)
        device = rows.embeddings.device
        prompt_of, lengths = batch.prompt_of.to(device), batch.prompt_mask.sum(dim=1).to(device)  # [B], [G]
        read = language_model(
            inputs_embeds=prompts.embeddings, position_ids=prompts.positions, use_cache=True, **prompts.shown
        )
        cache = read.past_key_values
        cache.batch_select_indices(prompt_of)
        # bool [B, P + T]
        seen = torch.cat([batch.prompt_mask[batch.prompt_of], batch.attention_mask], dim=1).to(device)
        hidden = language_model(
            inputs_embeds=rows.embeddings,
            position_ids=rows.positions + prompts.ends.to(device)[prompt_of][None, :, None],
            attention_mask=seen,
            past_key_values=cache,
            use_cache=True,
            **rows.shown,
        ).last_hidden_state
        ends = read.last_hidden_state[torch.arange(len(lengths), device=device), lengths - 1]  # [G, H]
        return ends[prompt_of], hidden

    def _rows(
        self,
        token_ids: Tensor,
        attention_mask: Tensor,
        shown: Sequence[int],
        images: ImageInputs | None,
        features: list[Tensor] | None,
    ) -> "_Rows":
        """Embeddings of rows [R, T], their images shown in them, and their positions."""
        device = self.scorer.is_call.device
        is_image = token_ids == self.hf.config.image_token_id  # bool [R, T]
        grids = torch.zeros((0, 3), dtype=torch.int64) if images is None else images.grids[list(shown)]  # [shown, 3]
        expected = self._num_tokens(grids).sum().item()
        if is_image.sum().item() != expected:
            raise ValueError(f"{is_image.sum().item()} image pads for {len(grids)} images of {expected} tokens")
        positions, _ = self.hf.model.get_rope_index(
            token_ids, mm_token_type_ids=is_image.int(), image_grid_thw=grids, attention_mask=attention_mask
        )  # int64 [3, R, T]
        ends = positions.amax(dim=0).masked_fill(~attention_mask, -1).amax(dim=1) + 1  # [R]
        embeddings = self.hf.get_input_embeddings()(token_ids.to(device))  # [R, T, H]
        beside: dict[str, Any] = {}
        if features is not None and shown:
            embeddings, beside = architectures.show(
                embeddings, is_image.to(device), torch.cat([features[place] for place in shown])
            )
        elif features is not None:
            embeddings = embeddings + 0.0 * sum(feature.sum() for feature in features).to(embeddings.dtype)
        return _Rows(embeddings, positions.to(device), ends, beside)

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


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows as the language model reads them."""

    embeddings: Tensor  # [R, T, H]
    positions: Tensor  # int64 [3, R, T]
    ends: Tensor  # int64 [R], on the CPU: the position that follows
    shown: Mapping[str, Any]  # what else the language model is called with


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
