"""Auxiliary targets of the warm-up: what image tokens, crops and questions should tell, read by linear heads."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from arm_rl.demo import model as small_judge
from arm_rl.demo import scenes

COLOR_NAMES = list(scenes.COLORS)


class Probe(nn.Module):
    """Linear heads for auxiliary targets, dropped after the warm-up. Without them nothing is learned for hundreds of steps."""

    def __init__(self, plain: bool = False) -> None:
        """Create the heads; with `plain`, image tokens should tell plain digits too."""
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
        """Compute the sum of the targets' cross-entropies.

        Args:
            scene_tokens: Image tokens of the resized scenes, (B, 16, hidden).
            crop_tokens: Image tokens of the crops of the asked tiles, (B, 16, hidden).
            asked: Hidden states of the question about each colour, (B, colours, hidden).
            batch: The B scenes.
        """
        targets = self._targets(scene_tokens, crop_tokens, asked, batch)
        return sum(
            (weight * functional.cross_entropy(logits, wanted) for weight, logits, wanted in targets.values()),
            torch.zeros(()),
        )

    @torch.no_grad()
    def accuracies(
        self, scene_tokens: Tensor, crop_tokens: Tensor, asked: Tensor, batch: Sequence[scenes.Scene]
    ) -> dict[str, float]:
        """Return the share of each target that the heads predict (0..1), by name; the arguments are those of `loss`."""
        return {
            name: float((logits.argmax(dim=-1) == wanted).float().mean())
            for name, (_, logits, wanted) in self._targets(scene_tokens, crop_tokens, asked, batch).items()
        }

    def _targets(
        self, scene_tokens: Tensor, crop_tokens: Tensor, asked: Tensor, batch: Sequence[scenes.Scene]
    ) -> dict[str, tuple[float, Tensor, Tensor]]:
        """Return the weight, the logits (N, classes) and the classes (N,) of each target, by name."""
        colors, digits, cells = _targets(batch)
        color, row, column = self.cell(scene_tokens).split([len(COLOR_NAMES) + 1, scenes.GRID, scenes.GRID], dim=-1)
        places = torch.arange(scenes.GRID**2).repeat(len(batch))
        targets = {
            "colours": (1.0, color.flatten(0, 1), colors.flatten()),
            "rows": (0.5, row.flatten(0, 1), places // scenes.GRID),
            "columns": (0.5, column.flatten(0, 1), places % scenes.GRID),
            "crops": (1.0, self.digit(crop_tokens.mean(dim=1)), digits),
            "places": (1.0, self.where(asked).flatten(0, 1), cells.flatten()),
        }
        if self.plain is not None:
            of_cell, of_color = self.plain
            plain = _plain_digits(batch)
            none = torch.full((len(plain), 1), len(scenes.CLASSES))  # of a colour that no tile has
            colored = torch.cat([plain, none], dim=1).gather(1, cells)
            targets["plain digits"] = (1.0, of_cell(scene_tokens).flatten(0, 1), plain.flatten())
            targets["asked plain digits"] = (1.0, of_color(asked).flatten(0, 1), colored.flatten())
        return targets


def _targets(batch: Sequence[scenes.Scene]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the colour of each cell (B, 16), the digit of the asked tile (B,) and the cell of each colour (B, colours)."""
    num_cells = scenes.GRID**2
    colors = torch.full((len(batch), num_cells), len(COLOR_NAMES))
    cells = torch.full((len(batch), len(COLOR_NAMES)), num_cells)
    for number, scene in enumerate(batch):
        for tile in scene.tiles:
            cell, color = tile.row * scenes.GRID + tile.column, COLOR_NAMES.index(tile.color)
            colors[number, cell], cells[number, color] = color, cell
    return colors, torch.tensor([scenes.CLASSES.index(scene.asked_tile.digit) for scene in batch]), cells


def _plain_digits(batch: Sequence[scenes.Scene]) -> Tensor:
    """Return the class of the plain digit in each cell, or the class after the last one for none: (B, 16)."""
    digits = torch.full((len(batch), scenes.GRID**2), len(scenes.CLASSES))
    for number, scene in enumerate(batch):
        for tile in scene.tiles:
            if tile.plain:
                digits[number, tile.row * scenes.GRID + tile.column] = scenes.CLASSES.index(tile.digit)
    return digits
