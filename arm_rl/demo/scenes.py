"""Draws the scenes of the digits task: tiles with handwritten digits, engraved or plain, a question, two claimed answers.

The digit of a tile is engraved: each of its points is a 2x2 checkerboard whose mean is the tile's own colour. A small view of the
scene averages that away; a crop at full resolution shows it. A plain digit is written in light ink, and the small view shows it too.
Everything else is symmetric in the two claimed answers, the digits of the other tiles too: where one of them shows the wrong answer,
the third shows the right one. So only the asked tile tells them apart.
"""

import functools
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from PIL import Image as PILImage

Split = Literal["train", "held_out", "pretrain", "validation", "test"]
Box = tuple[int, int, int, int]

CLASSES = (0, 1, 4, 7)
COLORS = {"red": (186, 70, 70), "green": (70, 172, 78), "blue": (72, 84, 186), "yellow": (186, 178, 70)}
CANVAS = 256  # pixels a side
GRID = 4  # cells a side
CELL = CANVAS // GRID  # pixels
CELL_SPAN = 1000 // GRID  # the same in a tool's coordinates, 0..1000
MARGIN = 4  # pixels between a tile and the edges of its cell
POINTS = 24  # points of an engraved digit a side; a point is 2x2 pixels
DEPTH = 60  # how far a checkerboard departs from the tile's colour, in 0..255
PLAIN = 32  # pixels a side of a plain digit: 8 in the small view, as it was written
INK = 240  # grey of a plain digit's strokes, in 0..255
NUM_TILES = 3
HELD_OUT_SHARE = 0.25  # of the digit images

_CLAIMS = [
    (right, wrong, first, echo)
    for right in CLASSES
    for wrong in CLASSES
    if wrong != right
    for first in (0, 1)
    for echo in (0, 1)
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """One tile and the digit image in it."""

    color: str
    row: int  # 0..3, of cells, from the top
    column: int  # 0..3, from the left
    digit: int  # what is written
    image: int  # index in scikit-learn's set
    plain: bool = False  # written so that the small view shows it, not engraved

    @property
    def box(self) -> Box:
        """The tile's cell: x1, y1, x2, y2 in 0..1000."""
        return cell_box(self.row, self.column)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A drawn scene: the first tile is the one asked about."""

    tiles: tuple[Tile, ...]
    claims: tuple[int, int]  # the digits that the two answers claim
    label: Literal["1", "2"]  # the answer that is right

    @property
    def asked_tile(self) -> Tile:
        """Tile that the question is about."""
        return self.tiles[0]

    @property
    def question(self) -> str:
        """The question, without the claimed answers."""
        return question(self.asked_tile.color)


def question(color: str) -> str:
    """The question about the tile of one colour."""
    return f"Which digit is on the {color} tile?"


def cell_box(row: int, column: int) -> Box:
    """x1, y1, x2, y2 of a cell in 0..1000."""
    return column * CELL_SPAN, row * CELL_SPAN, (column + 1) * CELL_SPAN, (row + 1) * CELL_SPAN


@functools.cache
def _enlarged_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return images (N, POINTS, POINTS) as ink in 0..1, and their classes (N,)."""
    images, classes = _small_digits()
    return np.stack([_enlarge(image, POINTS) for image in images]), classes


@functools.cache
def plain_ink(image: int) -> np.ndarray:
    """A plain digit's ink in 0..1, (PLAIN, PLAIN)."""
    return _enlarge(_small_digits()[0][image], PLAIN)


@functools.cache
def _small_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's digits: ink in 0..1, (N, 8, 8), and their classes (N,)."""
    from sklearn.datasets import load_digits  # imports scipy: a second

    bundled = load_digits()
    return bundled.images / 16.0, bundled.target


def _enlarge(image: np.ndarray, side: int) -> np.ndarray:
    small = PILImage.fromarray(image.astype(np.float32))
    return np.clip(np.asarray(small.resize((side, side), PILImage.Resampling.BILINEAR)), 0.0, 1.0)


@functools.cache
def digit_images(split: Split, digit: int) -> np.ndarray:
    """Indices of a class's images in a split. `pretrain` has those of `train`; `validation` and `test` are halves of `held_out`."""
    indices = np.flatnonzero(_enlarged_digits()[1] == digit)
    order = np.random.default_rng(digit).permutation(len(indices))
    num_held_out = round(len(indices) * HELD_OUT_SHARE)
    half = num_held_out // 2
    parts = {"held_out": order[:num_held_out], "validation": order[:half], "test": order[half:num_held_out]}
    return np.sort(indices[parts.get(split, order[num_held_out:])])


def make_scene(seed: int, split: Split, index: int, asked_plain: bool | None = None) -> Scene:
    """The scene at `index` of a split. Every 48 scenes in a row hold each pair of claims equally often, in both orders.

    Args:
        asked_plain: whether the asked tile's digit is plain, in scenes where every second one of the others is; None: all are engraved.
    """
    stream = get_args(Split).index(split) + (0 if asked_plain is None else 10 * (1 + asked_plain))
    block, place = divmod(index, len(_CLAIMS))
    right, wrong, first, echo = _CLAIMS[
        np.random.default_rng([seed, stream, 1, block]).permutation(len(_CLAIMS))[place]
    ]
    rng = np.random.default_rng([seed, stream, 0, index])
    neither = [digit for digit in CLASSES if digit not in (right, wrong)]
    others = [right, wrong] if echo else rng.choice(neither, size=2).tolist()
    if rng.random() < 0.5:
        others.reverse()
    colors = rng.permutation(list(COLORS))[:NUM_TILES].tolist()
    cells = rng.permutation(GRID * GRID)[:NUM_TILES].tolist()
    tiles = tuple(
        Tile(
            color=color,
            row=cell // GRID,
            column=cell % GRID,
            digit=digit,
            image=int(rng.choice(digit_images(split, digit))),
        )
        for color, cell, digit in zip(colors, cells, [right, *others], strict=True)
    )
    if asked_plain is not None:
        kinds = [asked_plain, *(rng.random(NUM_TILES - 1) < 0.5)]
        tiles = tuple(replace(tile, plain=bool(plain)) for tile, plain in zip(tiles, kinds, strict=True))
    return Scene(tiles=tiles, claims=(right, wrong) if first == 0 else (wrong, right), label="1" if first == 0 else "2")


def other_tile(scene: Scene, rng: np.random.Generator) -> tuple[int, int]:
    """Row and column of a tile that is not asked about."""
    tile = scene.tiles[int(rng.integers(1, len(scene.tiles)))]
    return tile.row, tile.column


def any_other_cell(scene: Scene, rng: np.random.Generator) -> tuple[int, int]:
    """Row and column of any cell but the asked tile's."""
    asked = scene.asked_tile.row * GRID + scene.asked_tile.column
    return divmod((asked + int(rng.integers(1, GRID**2))) % GRID**2, GRID)


@functools.cache
def background() -> np.ndarray:
    """A gradient along both axes, (CANVAS, CANVAS, 3): it tells where one is."""
    ramp = np.linspace(40, 215, CANVAS)
    canvas = np.empty((CANVAS, CANVAS, 3))
    canvas[..., 0] = ramp[None, :]
    canvas[..., 1] = 128
    canvas[..., 2] = ramp[:, None]
    return canvas.round().astype(np.uint8)


@functools.cache
def tile_pixels(color: str, image: int, plain: bool = False) -> np.ndarray:
    """A tile with its digit, (CELL - 2 MARGIN, CELL - 2 MARGIN, 3), uint8."""
    side = CELL - 2 * MARGIN
    pixels = np.tile(np.array(COLORS[color], dtype=np.float64), (side, side, 1))
    if plain:
        edge = (side - PLAIN) // 2
        pixels[edge : edge + PLAIN, edge : edge + PLAIN] += plain_ink(image)[..., None] * (
            INK - np.array(COLORS[color])
        )
        return pixels.round().astype(np.uint8)
    # (2 POINTS, 2 POINTS), zero mean in each point
    ink = np.kron(_enlarged_digits()[0][image], np.array([[1, -1], [-1, 1]])) * DEPTH
    edge = (side - ink.shape[0]) // 2
    pixels[edge : edge + ink.shape[0], edge : edge + ink.shape[1]] += ink[..., None]
    return pixels.round().astype(np.uint8)


def draw_cell(scene: Scene, row: int, column: int) -> np.ndarray:
    """One cell of the drawn scene, (CELL, CELL, 3), uint8: what a crop of exactly that cell shows."""
    cell = background()[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL].copy()
    for tile in scene.tiles:
        if (tile.row, tile.column) == (row, column):
            cell[MARGIN : CELL - MARGIN, MARGIN : CELL - MARGIN] = tile_pixels(tile.color, tile.image, tile.plain)
    return cell


def draw(scene: Scene) -> np.ndarray:
    """The scene's pixels, (CANVAS, CANVAS, 3), uint8."""
    canvas = background().copy()
    for tile in scene.tiles:
        top, left = tile.row * CELL + MARGIN, tile.column * CELL + MARGIN
        side = CELL - 2 * MARGIN
        canvas[top : top + side, left : left + side] = tile_pixels(tile.color, tile.image, tile.plain)
    return canvas
