"""Formulas in an image as LaTeX, by rapid-latex-ocr: an optional package, whose models must lie on this machine.

Written against version 0.0.9. The package would fetch its models from the network at first use; this tool names files, so that it does not.
They could not be had where this was written: the real package was run here with tiny models of the same inputs and outputs, never with
its own, and the tests use a stand-in.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arm_rl.core.errors import UserError
from arm_rl.core.session import ToolResult
from tools.base import Execution, ImageName, Tool, ToolContext
from tools.ocr import decode_image

NO_FORMULA = "no formula found"
# The engine's files, by the name of its argument.
MODEL_FILES = {
    "image_resizer_path": "image_resizer.onnx",
    "encoder_path": "encoder.onnx",
    "decoder_path": "decoder.onnx",
    "tokenizer_json": "tokenizer.json",
}


class ExtractFormulaTool(Tool):
    """Formula OCR."""

    name = "extract_formula"
    description = "Reads the formula in an image and gives it as LaTeX."
    execution = Execution(isolation="process", concurrency=2, timeout_seconds=120)

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Arguments:
        """Which image."""

        image: ImageName

    def __init__(self, *, models: str, max_megapixels: float = 20.0) -> None:
        """Checks that the package and its files are there.

        Args:
            models: folder with the files of `MODEL_FILES`.
            max_megapixels: of an image; a formula is a small thing, and larger images are refused.
        """
        folder = Path(models)
        files = ", ".join(MODEL_FILES.values())
        if importlib.util.find_spec("rapid_latex_ocr") is None:
            raise UserError(
                "extract_formula needs the package rapid-latex-ocr, which is not installed: "
                "pip install --no-deps rapid-latex-ocr==0.0.9 chardet (its other needs are met; it asks for an older NumPy than it needs); "
                f"and its files {files} in the folder that the key models names"
            )
        missing = [name for name in MODEL_FILES.values() if not (folder / name).is_file()]
        if missing:
            raise UserError(f"models: {folder}: {', '.join(missing)} missing; a release of rapid-latex-ocr has {files}")
        self.max_megapixels = max_megapixels
        self._files = {argument: str(folder / name) for argument, name in MODEL_FILES.items()}
        self._engine: Any = None

    def run(self, arguments: Arguments, context: ToolContext) -> ToolResult:
        """The LaTeX."""
        pixels = decode_image(context.image(arguments.image), arguments.image, self.max_megapixels)
        darkest, lightest = pixels.convert("L").getextrema()
        if darkest == lightest:  # the engine divides by the contrast
            return ToolResult(status="ok", text=NO_FORMULA)
        if self._engine is None:
            from rapid_latex_ocr import LaTeXOCR

            self._engine = LaTeXOCR(**self._files)
        latex, _ = self._engine(np.asarray(pixels))  # [height, width, 3]
        return ToolResult(status="ok", text=latex.strip() or NO_FORMULA)
