"""Zoom: a crop of an image at its full resolution, as the next observation."""

import math
from typing import Any

from PIL import Image as PILImage

from arm_rl.core.images import Image
from arm_rl.core.session import ToolResult
from tools.base import ArgumentError, Tool, ToolContext, function_schema

RELATIVE = 1000  # coordinates run from 0 to this, whatever the image's size


class ImageZoomTool(Tool):
    """Crops a box. Boxes are clamped to the image, grown where they are too small, and refused where they are too thin."""

    name = "image_zoom_in_tool"
    schema = function_schema(
        name,
        "Zooms into a part of an image and shows it at full resolution.",
        {
            "image": {"type": "string", "description": "Name of the image: original_image, or an earlier observation."},
            "bbox_2d": {
                "type": "array",
                "items": {"type": "number"},
                "minItems": 4,
                "maxItems": 4,
                "description": f"The box [x1, y1, x2, y2], each from 0 to {RELATIVE} relative to the image's width and height.",
            },
        },
        required=("image", "bbox_2d"),
    )

    def __init__(self, *, min_side: int = 28, max_aspect: float = 100.0, enlarge_below: int = 224) -> None:
        self.min_side = min_side  # pixels that each side of a crop has at least, as far as the image has them
        self.max_aspect = max_aspect  # longer side over shorter side, at most
        self.enlarge_below = enlarge_below  # a crop whose short side has fewer pixels is enlarged 2x

    def run(self, arguments: dict[str, Any], context: ToolContext) -> ToolResult:
        """The crop, as an image."""
        source = context.image(arguments["image"]).pil()
        left, top, right, bottom = self._pixels(arguments["bbox_2d"], *source.size)
        crop = source.crop((left, top, right, bottom))
        if min(crop.size) < self.enlarge_below:
            crop = crop.resize((crop.width * 2, crop.height * 2), PILImage.Resampling.BICUBIC)
        return ToolResult(status="ok", text="", images=(Image.from_pil(crop),))

    def _pixels(self, box: list[float], width: int, height: int) -> tuple[int, int, int, int]:
        """The box in whole pixels of the image."""
        if not all(abs(value) < math.inf for value in box):  # of integers too, which isfinite refuses beyond a float's range
            raise ArgumentError(f"bbox_2d: coordinates must be finite, not {box}")
        x1, y1, x2, y2 = (min(max(value, 0), RELATIVE) for value in box)
        if x1 >= x2 or y1 >= y2:
            raise ArgumentError(f"bbox_2d: needs x1 < x2 and y1 < y2 inside 0..{RELATIVE}, not {box}")
        left, right = _grown(x1 * width / RELATIVE, x2 * width / RELATIVE, self.min_side, width)
        top, bottom = _grown(y1 * height / RELATIVE, y2 * height / RELATIVE, self.min_side, height)
        long, short = max(right - left, bottom - top), min(right - left, bottom - top)
        if long > self.max_aspect * short:
            raise ArgumentError(f"bbox_2d: sides of {right - left} x {bottom - top} px are beyond {self.max_aspect:g}:1")
        return left, top, right, bottom


def _grown(low: float, high: float, least: int, size: int) -> tuple[int, int]:
    """An interval in whole pixels, grown around its middle to `least` where the image is large enough."""
    start, stop = math.floor(low), math.ceil(high)
    missing = min(least, size) - (stop - start)
    if missing > 0:
        start = min(max(start - missing // 2, 0), size - min(least, size))
        stop = start + min(least, size)
    return start, stop
