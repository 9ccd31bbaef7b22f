"""Trains the base model of a demo, from fresh weights to a judge that could look but does not: plain torch, no actors.

warm-up   auxiliary targets: what an image token shows (colour, place), what a crop says, where the tile of a question is
matching  the language model learns that the better answer is the one that claims what the thought says
joint     whole lessons: call with the right arguments, read what comes back, answer; or answer at once
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Qwen2_5_VLForConditionalGeneration

from arm_rl.core.template import Template
from arm_rl.demo import model as small_judge
from arm_rl.demo import pixels, scenes
from arm_rl.demo.lessons import MAX_CALLS, MIX, Lesson, Teacher
from arm_rl.demo.tasks import Track
from arm_rl.demo.tiles import Tiles
from arm_rl.demo.tracks import TILES

COLOR_NAMES = list(scenes.COLORS)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Settings of one phase."""

    steps: int
    batch: int  # lessons, or scenes in the warm-up
    learning_rate: float  # at its peak
    warmup: int = 20  # steps
    end_share: float = 1.0  # of the peak, reached by a cosine


@dataclass(frozen=True, kw_only=True)
class PretrainPlan:
    """Settings of the whole pre-training."""

    warm_up: Phase = Phase(steps=260, batch=32, learning_rate=1e-3)
    matching: Phase = Phase(steps=60, batch=64, learning_rate=1e-3)
    joint: Phase = Phase(steps=460, batch=32, learning_rate=1e-3, end_share=0.1)
    mix: Sequence[float] = MIX  # of the joint lessons
    max_calls: int = MAX_CALLS  # in a lesson
    num_threads: int = 2


class Probe(nn.Module):
    """Linear heads for auxiliary targets: thrown away afterwards. Without them nothing is learned for hundreds of steps."""

    def __init__(self, plain: bool = False) -> None:
        """With `plain`, image tokens should tell plain digits as well."""
        super().__init__()
        # of an image token: colour or none, row, column
        self.cell = nn.Linear(small_judge.HIDDEN, len(COLOR_NAMES) + 1 + 2 * scenes.GRID)
        self.digit = nn.Linear(small_judge.HIDDEN, len(scenes.CLASSES))  # of a crop
        self.where = nn.Linear(small_judge.HIDDEN, scenes.GRID**2 + 1)  # of a question: the cell of its tile, or none
        # Of an image token, and of a question: a plain digit, or none.
        self.plain = (
            nn.ModuleList(nn.Linear(small_judge.HIDDEN, len(scenes.CLASSES) + 1) for _ in range(2)) if plain else None
        )

    def loss(self, scene_tokens: Tensor, crop_tokens: Tensor, asked: Tensor, batch: Sequence[scenes.Scene]) -> Tensor:
        """Cross-entropies of what image tokens (B, 16, hidden), crops (B, 16, hidden) and questions (B, colours, hidden) should tell."""
        colors, digits, cells = _targets(batch)
        color, row, column = self.cell(scene_tokens).split([len(COLOR_NAMES) + 1, scenes.GRID, scenes.GRID], dim=-1)
        places = torch.arange(scenes.GRID**2).repeat(len(batch))
        return (
            functional.cross_entropy(color.flatten(0, 1), colors.flatten())
            + 0.5 * functional.cross_entropy(row.flatten(0, 1), places // scenes.GRID)
            + 0.5 * functional.cross_entropy(column.flatten(0, 1), places % scenes.GRID)
            + functional.cross_entropy(self.digit(crop_tokens.mean(dim=1)), digits)
            + functional.cross_entropy(self.where(asked).flatten(0, 1), cells.flatten())
            + self._plain_loss(scene_tokens, asked, cells, _plain_digits(batch))
        )

    def _plain_loss(self, scene_tokens: Tensor, asked: Tensor, cells: Tensor, plain: Tensor) -> Tensor | float:
        """The same of plain digits (B, 16): of the cells, and of the tiles of each colour, whose `cells` are (B, colours)."""
        if self.plain is None:
            return 0.0
        of_cell, of_color = self.plain
        none = torch.full((len(plain), 1), len(scenes.CLASSES))  # of a colour that no tile has
        colored = torch.cat([plain, none], dim=1).gather(1, cells)
        shown = functional.cross_entropy(of_cell(scene_tokens).flatten(0, 1), plain.flatten())
        return shown + functional.cross_entropy(of_color(asked).flatten(0, 1), colored.flatten())


def _targets(batch: Sequence[scenes.Scene]) -> tuple[Tensor, Tensor, Tensor]:
    """Colour of each cell (B, 16), digit of the asked tile (B,), cell of each colour (B, colours)."""
    num_cells = scenes.GRID**2
    colors = torch.full((len(batch), num_cells), len(COLOR_NAMES))
    cells = torch.full((len(batch), len(COLOR_NAMES)), num_cells)
    for number, scene in enumerate(batch):
        for tile in scene.tiles:
            cell, color = tile.row * scenes.GRID + tile.column, COLOR_NAMES.index(tile.color)
            colors[number, cell], cells[number, color] = color, cell
    return colors, torch.tensor([scenes.CLASSES.index(scene.asked_tile.digit) for scene in batch]), cells


def _plain_digits(batch: Sequence[scenes.Scene]) -> Tensor:
    """The plain digit of each cell, or none: (B, 16)."""
    digits = torch.full((len(batch), scenes.GRID**2), len(scenes.CLASSES))
    for number, scene in enumerate(batch):
        for tile in scene.tiles:
            if tile.plain:
                digits[number, tile.row * scenes.GRID + tile.column] = scenes.CLASSES.index(tile.digit)
    return digits


def lesson_logits(
    model: Qwen2_5_VLForConditionalGeneration, lessons: Sequence[Lesson], image_tokens: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (M, vocabulary), targets (M,) and weights (M,) of the M weighted tokens of lessons of similar length.

    Sequences are padded on the right, which causal attention does not see, so that no mask is needed.
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
    """Last hidden states (B, T, hidden) of ids (B, T), from image tokens (all pads of the batch, hidden)."""
    is_image = ids == model.config.image_token_id
    embedded = model.get_input_embeddings()(ids)
    if image_tokens is not None:
        embedded = embedded.masked_scatter(is_image.unsqueeze(-1), image_tokens)
    return model.model.language_model(
        inputs_embeds=embedded, position_ids=positions(is_image), use_cache=False
    ).last_hidden_state


def positions(is_image: Tensor) -> Tensor:
    """Qwen's three position ids (3, B, T) where every image is a square of GRID x GRID tokens; `is_image` is (B, T)."""
    side = int(pixels.NUM_TOKENS**0.5)
    inside = torch.where(is_image, (torch.cumsum(is_image, dim=1) - 1) % pixels.NUM_TOKENS, 0)  # place in its own image
    step = torch.where(is_image, (inside == 0) * side, 1)  # an image moves the position on by its side, once
    start = torch.cumsum(step, dim=1) - torch.where(is_image, side, 1)
    return torch.stack([start, start + inside // side, start + inside % side])


def lessons_loss(model: Qwen2_5_VLForConditionalGeneration, lessons: Sequence[Lesson]) -> tuple[Tensor, Tensor | None]:
    """Weighted mean of the negative log-likelihoods, and the image tokens of all lessons in order."""
    views = [view for lesson in lessons for view in lesson.views]
    tokens = pixels.encode(model.model.visual, pixels.make_patches(np.stack(views))) if views else None
    ends = np.cumsum([len(lesson.views) for lesson in lessons])
    total = sum(sum(lesson.weights) for lesson in lessons)
    loss = torch.zeros(())
    for group in _batches_by_length(lessons):
        chosen = (
            [tokens[ends[n] - len(lessons[n].views) : ends[n]].flatten(0, 1) for n in group]
            if tokens is not None
            else []
        )
        logits, targets, weights = lesson_logits(model, [lessons[n] for n in group], chosen)
        loss = loss + (functional.cross_entropy(logits, targets, reduction="none") * weights).sum() / total
    return loss, tokens


def _batches_by_length(lessons: Sequence[Lesson]) -> list[list[int]]:
    """Return sets of indices of lessons with equally many images, which need little padding."""
    groups: dict[int, list[int]] = {}
    for number, lesson in enumerate(lessons):
        groups.setdefault(len(lesson.views), []).append(number)
    return list(groups.values())


def train(
    model: Qwen2_5_VLForConditionalGeneration,
    template: Template,
    *,
    plan: PretrainPlan,
    seed: int,
    on_step: Callable[[str, int, int, float], None],
    tracks: Sequence[Track] = TILES,
) -> None:
    """Trains in place. `on_step` gets the phase, the steps done and planned in all phases, and the loss."""
    torch.set_num_threads(plan.num_threads)
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 7])
    indices = itertools.count()
    tiles = [track for track in tracks if isinstance(track, Tiles)]
    teacher = Teacher(template, tracks, mix=plan.mix, max_calls=plan.max_calls)
    probe = Probe(plain=any(track.asked_plain is not None for track in tiles))
    total = plan.warm_up.steps + plan.matching.steps + plan.joint.steps
    done = 0

    def warm_up(batch: list[int]) -> Tensor:
        drawn = [tiles[index % len(tiles)].task(seed, "pretrain", index).scene for index in batch]
        views = [pixels.resized_scene(scene) for scene in drawn]
        views += [scenes.draw_cell(scene, scene.asked_tile.row, scene.asked_tile.column) for scene in drawn]
        shown, read = pixels.encode(model.model.visual, pixels.make_patches(np.stack(views))).split(len(drawn))
        ids = torch.tensor(teacher.question_ids()).expand(len(drawn), -1)
        hidden = hidden_states(model, ids, shown.flatten(0, 1))[:, -len(COLOR_NAMES) :]
        return probe.loss(shown, read, hidden, drawn)

    def matching(batch: list[int]) -> Tensor:
        return lessons_loss(model, [teacher.matching_lesson(*teacher.task(seed, index), rng) for index in batch])[0]

    def joint(batch: list[int]) -> Tensor:
        return lessons_loss(model, [teacher.joint_lesson(*teacher.task(seed, index), rng) for index in batch])[0]

    for name, phase, objective, parameters in (
        ("warm-up", plan.warm_up, warm_up, [*model.parameters(), *probe.parameters()]),
        ("matching", plan.matching, matching, list(model.parameters())),
        ("joint", plan.joint, joint, list(model.parameters())),
    ):
        for loss in _run(phase, objective, parameters, indices):
            done += 1
            on_step(name, done, total, loss)


def _run(
    phase: Phase, objective: Callable[[list[int]], Tensor], parameters: list[nn.Parameter], indices: Iterator[int]
) -> Iterator[float]:
    """The losses of a phase's steps; `objective` is given the numbers of a batch's scenes or tasks."""
    optimizer = torch.optim.AdamW(parameters, lr=phase.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    for step in range(phase.steps):
        for group in optimizer.param_groups:
            group["lr"] = phase.learning_rate * _schedule(phase, step)
        loss = objective(list(itertools.islice(indices, phase.batch)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        yield float(loss.detach())


def _schedule(phase: Phase, step: int) -> float:
    rise = min(1.0, (step + 1) / phase.warmup)
    fall = 0.5 * (1 + np.cos(np.pi * step / phase.steps))
    return rise * (phase.end_share + (1 - phase.end_share) * fall)
