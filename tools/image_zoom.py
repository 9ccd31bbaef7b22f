"""Zoom: a crop of an image at its full resolution, as the next observation."""

import math
import threading
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated

from PIL import Image as PILImage
from pydantic import Field

from arm_rl.core.errors import UserError
from arm_rl.core.images import Image
from arm_rl.core.session import ToolResult
from tools.base import ArgumentError, Execution, ImageName, Tool, ToolContext

RELATIVE = 1000  # coordinates run from 0 to this, whatever the image's size
LARGE_MEGAPIXELS = 16.0  # images above this are decoded one at a time: threads share the memory

_one_at_a_time = threading.Lock()


class ImageZoomTool(Tool):
    """Crops a box. Boxes are clamped to the image, grown where they are too small, and refused where they are too thin."""

    name = "image_zoom_in_tool"
    description = "Zooms into a part of an image and shows it at full resolution."
    execution = Execution(isolation="thread")  # what it decodes is bounded

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Arguments:
        """Which part of which image."""

        image: ImageName
        bbox_2d: Annotated[
            list[float],
            Field(
                min_length=4,
                max_length=4,
                description=f"The box [x1, y1, x2, y2], each from 0 to {RELATIVE} relative to the image's width and height.",
            ),
        ]

    def __init__(
        self, *, min_side: int = 28, max_aspect: float = 100.0, enlarge_below: int = 224, max_megapixels: float = 64.0
    ) -> None:
        if not (min_side >= 1 and max_aspect >= 1 and enlarge_below >= 0 and max_megapixels > 0):
            raise UserError("min_side and max_aspect are at least 1, enlarge_below at least 0, max_megapixels above 0")
        self.min_side = min_side  # pixels that each side of a crop has at least, as far as the image has them
        self.max_aspect = max_aspect  # longer side over shorter side, at most
        self.enlarge_below = enlarge_below  # a crop whose short side has fewer pixels is enlarged 2x
        self.max_megapixels = max_megapixels  # of the image that is cropped: it is decoded whole

    def run(self, arguments: Arguments, context: ToolContext) -> ToolResult:
        """The crop, as an image."""
        image = context.image(arguments.image)
        width, height = image.size
        megapixels = width * height / 1e6
        if megapixels > self.max_megapixels:
            raise ArgumentError(
                f"{arguments.image} is too large to zoom into: {megapixels:.0f} megapixels, {self.max_megapixels:g} at most"
            )
        box = self._box_in_pixels(arguments.bbox_2d, width, height)
        with _one_at_a_time if megapixels > LARGE_MEGAPIXELS else nullcontext():
            crop = image.pil().crop(box)
        if min(crop.size) < self.enlarge_below:
            crop = crop.resize((crop.width * 2, crop.height * 2), PILImage.Resampling.BICUBIC)
        return ToolResult(status="ok", text="", images=(Image.from_pil(crop),))

    def _box_in_pixels(self, box: list[float], width: int, height: int) -> tuple[int, int, int, int]:
        """Return the box in whole pixels of the image: left, top, right, bottom."""
        if not all(math.isfinite(value) for value in box):
            raise ArgumentError(f"bbox_2d: coordinates must be finite, not {box}")
        x1, y1, x2, y2 = (min(max(value, 0), RELATIVE) for value in box)
        if x1 >= x2 or y1 >= y2:
            raise ArgumentError(f"bbox_2d: needs x1 < x2 and y1 < y2 inside 0..{RELATIVE}, not {box}")
        left, right = _grow_interval(x1 * width / RELATIVE, x2 * width / RELATIVE, self.min_side, width)
        top, bottom = _grow_interval(y1 * height / RELATIVE, y2 * height / RELATIVE, self.min_side, height)
        long, short = max(right - left, bottom - top), min(right - left, bottom - top)
        if long > self.max_aspect * short:
            raise ArgumentError(
                f"bbox_2d: sides of {right - left} x {bottom - top} px are beyond {self.max_aspect:g}:1"
            )
        return left, top, right, bottom


def _grow_interval(low: float, high: float, least: int, size: int) -> tuple[int, int]:
    """Round an interval outwards and grow it around its middle to `least` pixels if the image is large enough."""
    start, stop = math.floor(low), math.ceil(high)
    missing = min(least, size) - (stop - start)
    if missing > 0:
        start = min(max(start - missing // 2, 0), size - min(least, size))
        stop = start + min(least, size)
    return start, stop
