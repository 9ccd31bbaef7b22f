"""Text in an image, read by RapidOCR with the models of its own package: nothing is downloaded."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image as PILImage

from arm_rl.core.errors import UserError
from arm_rl.core.images import Image
from arm_rl.core.session import ToolResult
from tools.base import ArgumentError, Execution, ImageName, Tool, ToolContext

NO_TEXT = "no text found"
_LEAST_SIDE, _MAX_ASPECT = 64, 4  # of what the engine is given: pixels, and longer side over shorter side
_SAME_ROW = 0.5  # of a line's height: how far the middles of two lines of one row lie apart at most


class TextReader:
    """Reads printed and written text, Chinese and Latin scripts. Loads its models at the first image; one thread uses it at a time."""

    def __init__(self, *, threads: int = 1, max_side: int = 2000) -> None:
        """Checks that it could read.

        Args:
            threads: of one reading.
            max_side: pixels; an image whose longer side has more is scaled down first.

        Raises:
            UserError: a package is missing, or a number is out of range.
        """
        missing = [name for name in ("rapidocr", "onnxruntime") if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(
                f"reading text in images needs the packages rapidocr and onnxruntime; not installed: {', '.join(missing)}"
            )
        for key, value, least in (("threads", threads, 1), ("max_side", max_side, 64)):
            if value < least:
                raise UserError(f"{key}: at least {least}, not {value}")
        self.threads, self.max_side = threads, max_side
        self._engine: Any = None

    def read(self, pixels: PILImage.Image) -> str:
        """The lines of text from top to bottom, those of one row from left to right; empty where there is none."""
        if self._engine is None:
            self._engine = _load_engine(self.threads, self.max_side)
        if max(pixels.size) > self.max_side:
            pixels = pixels.copy()
            pixels.thumbnail((self.max_side, self.max_side), PILImage.Resampling.LANCZOS)
        # [height, width, 3]; blue first, as OpenCV has it
        found = self._engine(np.asarray(_pad(pixels))[:, :, ::-1])
        return "" if found.boxes is None else join_in_reading_order(found.boxes, found.txts)


def _pad(pixels: PILImage.Image) -> PILImage.Image:
    """Paste an image with a very short side into the middle of a larger one of the corner's colour.

    The engine enlarges an image until its short side is long enough: one of 3000 x 2 pixels would take gigabytes.
    """
    pixels = pixels.convert("RGB")
    least = max(_LEAST_SIDE, -(-max(pixels.size) // _MAX_ASPECT))
    width, height = max(pixels.width, least), max(pixels.height, least)
    if (width, height) == pixels.size:
        return pixels
    canvas = PILImage.new("RGB", (width, height), pixels.getpixel((0, 0)))
    canvas.paste(pixels, ((width - pixels.width) // 2, (height - pixels.height) // 2))
    return canvas


def _load_engine(threads: int, max_side: int) -> Any:
    import onnxruntime
    from rapidocr import RapidOCR

    onnxruntime.set_default_logger_severity(3)  # errors only: it warns about the machine's devices
    return RapidOCR(
        params={
            "Global.log_level": "critical",  # an image without text is no warning
            "Global.max_side_len": max_side,
            "EngineConfig.onnxruntime.intra_op_num_threads": threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )


def join_in_reading_order(boxes: np.ndarray, texts: Sequence[str]) -> str:
    """Join texts in reading order.

    Args:
        boxes: [number of texts, 4 corners, (x, y)], in pixels.

    Returns:
        A line for each row; texts side by side have a blank between them.
    """
    tops, bottoms, lefts = boxes[:, :, 1].min(axis=1), boxes[:, :, 1].max(axis=1), boxes[:, :, 0].min(axis=1)
    middles = (tops + bottoms) / 2
    rows: list[list[int]] = []
    for index in np.argsort(middles, kind="stable").tolist():
        height = bottoms[index] - tops[index]
        if rows and middles[index] - middles[rows[-1][0]] <= _SAME_ROW * height:
            rows[-1].append(index)
        else:
            rows.append([index])
    return "\n".join(
        " ".join(texts[index] for index in sorted(row, key=lambda index: (lefts[index], index))) for row in rows
    )


class ExtractTextTool(Tool):
    """OCR. A call has a process to itself: the memory that it takes grows with the image."""

    name = "extract_text"
    description = "Reads the text in an image and gives it line by line."
    execution = Execution(isolation="process", concurrency=2, timeout_seconds=120)

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Arguments:
        """Which image."""

        image: ImageName

    def __init__(self, *, threads: int = 1, max_side: int = 2000, max_megapixels: float = 64.0) -> None:
        self._reader = TextReader(threads=threads, max_side=max_side)
        self.max_megapixels = max_megapixels  # of the image as it comes: decoding takes 3 to 12 bytes a pixel

    def run(self, arguments: Arguments, context: ToolContext) -> ToolResult:
        """The text."""
        pixels = decode_image(context.image(arguments.image), arguments.image, self.max_megapixels)
        return ToolResult(status="ok", text=self._reader.read(pixels) or NO_TEXT)


def decode_image(image: Image, name: str, max_megapixels: float) -> PILImage.Image:
    """Decode an image that is not too large.

    Raises:
        ArgumentError: it is.
    """
    width, height = image.size
    if width * height > max_megapixels * 1e6:
        raise ArgumentError(
            f"{name} is too large to read: {width} x {height} px, {max_megapixels:g} megapixels at most"
        )
    return image.pil()
