"""OCR: what is read, in which order, offline and without noise; and the adapter of the formula engine."""

import importlib.machinery
import pickle
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from arm_rl.core.errors import UserError
from arm_rl.core.images import Image
from tests.support.scripted import noise
from tools.base import ToolContext
from tools.formula import MODEL_FILES, ExtractFormulaTool
from tools.ocr import ExtractTextTool, TextReader, join_in_reading_order


@pytest.fixture(scope="module")
def tool() -> ExtractTextTool:
    return ExtractTextTool()


def drawn(size: tuple[int, int], *texts: tuple[int, int, int, str]) -> PILImage.Image:
    """Black on white: x, y, height and text."""
    image = PILImage.new("RGB", size, "white")
    for x, y, height, text in texts:
        ImageDraw.Draw(image).text((x, y), text, font=ImageFont.load_default(size=height), fill="black")
    return image


REPORT = drawn(
    (640, 240),
    (20, 20, 36, "Annual report"),
    (470, 22, 32, "page 12"),
    (20, 120, 28, "Revenue grew by 12.5 % to 3,400"),
)
REPORT_TEXT = "Annual report page 12\nRevenue grew by 12.5 % to 3,400"


def read(tool, pixels, name="original_image"):
    """The status and the text of a call."""
    context = ToolContext(images={"original_image": Image.from_pil(pixels)}, texts={}, image_names=["original_image"])
    result = tool.call({"image": name}, context)
    assert result.images == ()
    return result.status, result.text


def test_text_is_read_row_by_row(tool):
    assert read(tool, REPORT) == ("ok", REPORT_TEXT)


def test_nothing_to_read(tool):
    assert read(tool, PILImage.new("RGB", (120, 80), "white")) == ("ok", "no text found")


@pytest.mark.parametrize("size", [(1, 1), (2, 2500), (2500, 2), (9, 70)])
def test_the_engine_is_never_given_a_thin_image_which_it_would_blow_up(size):
    reader, seen = watched(2500)
    reader.read(PILImage.new("RGB", size, "white"))
    ((height, width, _),) = seen
    assert min(height, width) >= 64
    assert max(height, width) <= 4 * min(height, width)
    assert (width, height) >= size


def test_a_closely_cut_line_is_read(tool):
    assert read(tool, drawn((700, 30), (4, 2, 22, "One line of text, cut out closely"))) == (
        "ok",
        "One line of text, cut out closely",
    )


def watched(max_side: int) -> tuple[TextReader, list[tuple[int, ...]]]:
    """A reader without an engine, and the shapes of what it would have given to it."""
    reader = TextReader(max_side=max_side)
    seen: list[tuple[int, ...]] = []

    def engine(pixels: np.ndarray) -> types.SimpleNamespace:
        seen.append(pixels.shape)
        return types.SimpleNamespace(boxes=None, txts=None)

    reader._engine = engine
    return reader, seen


def test_a_large_image_is_scaled_down_first():
    reader, seen = watched(320)
    assert reader.read(noise(640, 480)) == ""
    assert seen == [(240, 320, 3)]


def test_an_image_beyond_the_limit_is_refused_before_it_is_decoded():
    assert read(ExtractTextTool(max_megapixels=0.01), noise(200, 51)) == (
        "bad_arguments",
        "Error: original_image is too large to read: 200 x 51 px, 0.01 megapixels at most",
    )


def test_an_unknown_image_lists_those_that_are_known(tool):
    assert read(tool, REPORT, name="observation_7") == (
        "bad_arguments",
        "Error: there is no image 'observation_7'; known: original_image",
    )


def test_it_reads_offline_without_a_word_and_pickles_before_its_first_call(tmp_path):
    REPORT.save(tmp_path / "report.png")
    code = f"""
import pickle, socket
def refuse(*args, **kwargs):
    raise AssertionError("the network was asked for")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from pathlib import Path
from arm_rl.core.images import Image
from tools.base import ToolContext
from tools.ocr import ExtractTextTool
tool = pickle.loads(pickle.dumps(ExtractTextTool()))
image = Image.from_bytes(Path({str(tmp_path / "report.png")!r}).read_bytes())
print(repr(tool.call({{"image": "a"}}, ToolContext(images={{"a": image}}, texts={{}}, image_names=["a"])).text))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ended.stdout.strip(), ended.stderr) == (repr(REPORT_TEXT), "")


@pytest.mark.parametrize(
    ("config", "message"), [({"threads": 0}, "threads: at least 1"), ({"max_side": 10}, "max_side: at least 64")]
)
def test_a_wrong_configuration_is_refused(config, message):
    with pytest.raises(UserError, match=message):
        ExtractTextTool(**config)


def test_a_missing_package_is_said_when_the_tool_is_made(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "rapidocr" else object())
    with pytest.raises(UserError, match="not installed: rapidocr$"):
        ExtractTextTool()


def box(left, top, width=10, height=10):
    """The corners of an upright box."""
    return [[left, top], [left + width, top], [left + width, top + height], [left, top + height]]


@pytest.mark.parametrize(
    ("boxes", "text"),
    [
        ([box(0, 0), box(0, 20), box(0, 40)], "a\nb\nc"),
        ([box(0, 40), box(0, 20), box(0, 0)], "c\nb\na"),
        ([box(50, 0), box(0, 2), box(0, 30)], "b a\nc"),  # one row, a little aslant
        ([box(50, 0), box(0, 6), box(0, 30)], "a\nb\nc"),  # too far down for the row
        ([box(50, 0, height=40), box(0, 15), box(80, 20)], "b a c"),  # small print beside a large line
    ],
)
def test_reading_order(boxes, text):
    assert join_in_reading_order(np.array(boxes, dtype=np.float32), ["a", "b", "c"]) == text


# Formulas. The models cannot be had: a stand-in takes the package's place.


class LaTeXOCR:
    """Has the interface of the package's engine, and reads every image as its size."""

    def __init__(self, *, image_resizer_path, encoder_path, decoder_path, tokenizer_json) -> None:
        assert [Path(path).name for path in (image_resizer_path, encoder_path, decoder_path, tokenizer_json)] == list(
            MODEL_FILES.values()
        )

    def __call__(self, pixels):
        return (f" x^{{{pixels.shape[1]}}} " if pixels[0, 0, 0] else " "), 0.01


@pytest.fixture
def models(tmp_path, monkeypatch) -> Path:
    module = types.ModuleType("rapid_latex_ocr")
    module.__spec__ = importlib.machinery.ModuleSpec("rapid_latex_ocr", None)
    module.LaTeXOCR = LaTeXOCR  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rapid_latex_ocr", module)
    for name in MODEL_FILES.values():
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def test_a_formula_is_read(models):
    tool = pickle.loads(pickle.dumps(ExtractFormulaTool(models=str(models))))
    assert read(tool, drawn((90, 30), (20, 2, 20, "x"))) == ("ok", "x^{90}")


@pytest.mark.parametrize(
    "pixels",
    [PILImage.new("RGB", (90, 30), "white"), PILImage.new("RGB", (90, 30), "red"), PILImage.linear_gradient("L")],
)
def test_no_formula(models, pixels):
    assert read(ExtractFormulaTool(models=str(models)), pixels) == ("ok", "no formula found")


def test_a_formula_beyond_the_limit_is_refused(models):
    status, text = read(ExtractFormulaTool(models=str(models), max_megapixels=0.001), noise(200, 51))
    assert (status, "too large to read" in text) == ("bad_arguments", True)


def test_missing_model_files_are_named(models):
    (models / "encoder.onnx").unlink()
    with pytest.raises(
        UserError, match=r"models: .*: encoder\.onnx missing; a release of rapid-latex-ocr has image_resizer\.onnx"
    ):
        ExtractFormulaTool(models=str(models))


def test_the_missing_formula_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package rapid-latex-ocr, which is not installed"):
        ExtractFormulaTool(models=str(tmp_path))
