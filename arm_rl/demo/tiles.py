"""Tracks of scenes with tiles. `digits`: digits too fine for the small view; the zoom tool shows them. `engraved` and `plain`: some are."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from arm_rl.demo import phrases, pixels, scenes
from arm_rl.demo.tasks import Look
from tools.base import ToolContext
from tools.image_zoom import ImageZoomTool

IMAGE = "original_image"


@dataclass(frozen=True, kw_only=True, slots=True)
class TilesTask:
    """A scene and the question about one of its tiles."""

    scene: scenes.Scene
    key: tuple[int, ...] = (0,)

    @property
    def question(self) -> str:
        """Which digit is on the tile of one colour."""
        return self.scene.question

    @property
    def claims(self) -> tuple[int, int]:
        """Two digits."""
        return self.scene.claims

    @property
    def label(self) -> str:
        """The answer that is right."""
        return self.scene.label

    @property
    def view(self) -> np.ndarray:
        """The scene, small."""
        return pixels.resized_scene(self.scene)

    @property
    def image(self) -> PILImage.Image:
        """The scene, large."""
        return PILImage.fromarray(scenes.draw(self.scene))

    @property
    def texts(self) -> tuple[str, ...]:
        """The claims."""
        return tuple(map(str, self.scene.claims))

    @property
    def immediate_thought(self) -> str | None:
        """Thought about a plain digit: what the digit is."""
        return phrases.conclusion(self.scene.asked_tile.digit) if self.scene.asked_tile.plain else None

    @property
    def target_box(self) -> scenes.Box:
        """The asked tile's cell."""
        return self.scene.asked_tile.box

    def right_look(self, rng: np.random.Generator) -> Look:
        """Return a look at the asked tile."""
        asked = self.scene.asked_tile
        return self._look((asked.row, asked.column), phrases.conclusion(asked.digit), int(self.scene.label))

    def wrong_look(self, rng: np.random.Generator, *, near: bool) -> Look:
        """Return a look at another tile, or at any other cell."""
        cell = scenes.other_tile(self.scene, rng) if near else scenes.any_other_cell(self.scene, rng)
        return self._look(cell, phrases.UNCLEAR, None)

    def _look(self, cell: tuple[int, int], thought: str, choice: int | None) -> Look:
        view = scenes.draw_cell(self.scene, *cell)
        return Look(
            tool=Tiles.tool, arguments=arguments(scenes.cell_box(*cell)), view=view, thought=thought, choice=choice
        )


class Tiles:
    """Scenes of tiles.

    Args:
        name: of the track.
        asked_plain: as in `scenes.make_scene`.
    """

    ability = "fine-grained perception"
    tool = ImageZoomTool.name

    def __init__(self, name: str = "digits", asked_plain: bool | None = None) -> None:
        self.name, self.asked_plain = name, asked_plain

    def task(self, seed: int, split: scenes.Split, index: int) -> TilesTask:
        """The scene at `index`."""
        kind = () if self.asked_plain is None else (int(self.asked_plain),)
        return TilesTask(scene=scenes.make_scene(seed, split, index, self.asked_plain), key=(seed, index, *kind))

    def stray_look(self, rng: np.random.Generator) -> Look:
        """Return a look at a cell of an image that does not exist."""
        row, column = divmod(int(rng.integers(scenes.GRID**2)), scenes.GRID)
        return Look(
            tool=self.tool,
            arguments=arguments(scenes.cell_box(row, column)),
            text=_missing_image_text(),
            thought=phrases.UNCLEAR,
        )

    def prepare(self, folder: Path, seed: int) -> None:
        """The zoom tool reads the session's images only."""

    def requests(self) -> list[str]:
        """One for each colour."""
        return [phrases.request(scenes.question(color), (0, 1)) for color in scenes.COLORS]

    def turns(self) -> list[str]:
        """Zooms into images of each name."""
        return [
            phrases.call_turn(self.tool, arguments((0, 250, 500, 750), name))
            for name in (IMAGE, "observation_1", "observation_2")
        ]

    def observations(self) -> list[str]:
        """None but the image."""
        return []

    def free_words(self) -> Sequence[str]:
        """Return none: a call has one right place."""
        return ()

    def words(self) -> Sequence[str]:
        """Digits and coordinates."""
        return [str(number) for number in sorted({*range(10), *range(0, 1001, scenes.CELL_SPAN)})]


def arguments(box: scenes.Box, image: str = IMAGE) -> dict[str, object]:
    """Of a zoom."""
    return {"image": image, "bbox_2d": list(box)}


@functools.cache
def _missing_image_text() -> str:
    """Return the tool's text for a session without an image."""
    return ImageZoomTool().call(arguments(scenes.cell_box(0, 0)), ToolContext(images={}, texts={}, image_names=())).text
