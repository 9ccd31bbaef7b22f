"""The zoom tool: exact crops, clamped, grown, refused and enlarged boxes."""

import struct
import warnings
import zlib

import pytest
from hypothesis import given, strategies
from PIL import Image as PILImage

from arm_rl.core.images import Image
from tests.support.scripted import noise
from tools.base import ToolContext
from tools.image_zoom import ImageZoomTool

PLAIN = ImageZoomTool(enlarge_below=0)


def zoom(box, size=(400, 300), tool=PLAIN):
    """The result of a zoom into an image of that size."""
    context = ToolContext(
        images={"original_image": Image.from_pil(noise(*size))}, texts={}, image_names=["original_image"]
    )
    return tool.call({"image": "original_image", "bbox_2d": box}, context)


def crop(box, size=(400, 300), tool=PLAIN):
    """The crop's pixels."""
    result = zoom(box, size, tool)
    assert (result.status, result.text) == ("ok", "")
    (image,) = result.images
    return image.pil()


def same(shown, pixels):
    return shown.size == pixels.size and shown.tobytes() == pixels.tobytes()


@pytest.mark.parametrize(
    ("box", "pixels"),
    [
        ([0, 0, 1000, 1000], (0, 0, 400, 300)),
        ([250, 500, 750, 1000], (100, 150, 300, 300)),
        ([0, 0, 500, 500], (0, 0, 200, 150)),
        ([500.0, 0, 1000, 500.0], (200, 0, 400, 150)),
        ([251, 501, 749, 999], (100, 150, 300, 300)),  # outwards, to whole pixels
        ([-500, -1, 500, 500], (0, 0, 200, 150)),
        ([500, 500, 5000, 1001], (200, 150, 400, 300)),
        ([-1e308, -1e300, 1e308, 1e300], (0, 0, 400, 300)),
    ],
)
def test_a_crop_is_the_region_at_full_resolution(box, pixels):
    assert same(crop(box), noise(400, 300).crop(pixels))


@pytest.mark.parametrize(
    ("box", "pixels"),
    [
        ([500, 500, 501, 501], (187, 137, 215, 165)),  # in the middle: around itself
        ([0, 0, 1, 1], (0, 0, 28, 28)),  # at a corner: inwards
        ([999, 999, 1000, 1000], (372, 272, 400, 300)),
        ([0, 500, 1000, 501], (0, 137, 400, 165)),  # one side only
        ([0, 0, 70, 1000], (0, 0, 28, 300)),  # 28 pixels exactly
        ([0, 0, 67, 1000], (0, 0, 28, 300)),  # 26.8 pixels
        ([500, 0, 560, 1000], (198, 0, 226, 300)),  # 24 pixels, two on each side
        ([999, 0, 1200, 500], (372, 0, 400, 150)),
        ([999.9999, 0, 1000, 1000], (372, 0, 400, 300)),
    ],
)
def test_a_small_box_is_grown_to_28_pixels(box, pixels):
    assert same(crop(box), noise(400, 300).crop(pixels))


@pytest.mark.parametrize("size", [(10, 300), (300, 10), (10, 10), (1, 1), (27, 28)])
@pytest.mark.parametrize("box", [[0, 0, 1, 1], [999, 999, 1000, 1000], [499, 499, 501, 501]])
def test_a_box_grows_no_further_than_the_image(size, box):
    assert crop(box, size).size == (min(28, size[0]), min(28, size[1]))


@given(
    width=strategies.integers(1, 120),
    height=strategies.integers(1, 120),
    xs=strategies.tuples(*[strategies.floats(0, 1000) | strategies.integers(0, 1000)] * 2),
    ys=strategies.tuples(*[strategies.floats(0, 1000) | strategies.integers(0, 1000)] * 2),
)
def test_every_crop_lies_inside_covers_its_box_and_is_large_enough(width, height, xs, ys):
    (x1, x2), (y1, y2) = sorted(xs), sorted(ys)
    if x1 == x2 or y1 == y2:
        assert zoom([x1, y1, x2, y2], (width, height)).status == "bad_arguments"
        return
    left, top, right, bottom = PLAIN._box_in_pixels([x1, y1, x2, y2], width, height)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert right - left >= min(28, width)
    assert bottom - top >= min(28, height)
    assert left <= x1 * width / 1000
    assert x2 * width / 1000 <= right
    assert top <= y1 * height / 1000
    assert y2 * height / 1000 <= bottom


def test_a_box_that_is_too_thin_is_refused():
    assert crop([0, 0, 1000, 1], (2800, 100)).size == (2800, 28)  # 100:1 exactly
    wide = zoom([0, 0, 1000, 1], (2801, 100))
    assert (wide.status, wide.images) == ("bad_arguments", ())
    assert wide.text == "Error: bbox_2d: sides of 2801 x 28 px are beyond 100:1"
    assert zoom([0, 0, 1, 1000], (100, 2801)).status == "bad_arguments"
    assert zoom([0, 0, 1000, 1000], (101, 1)).status == "bad_arguments"
    assert crop([0, 0, 1000, 1000], (100, 1)).size == (100, 1)


@pytest.mark.parametrize(
    ("box", "text"),
    [
        ([500, 0, 500, 500], "needs x1 < x2 and y1 < y2 inside 0..1000"),
        ([600, 0, 500, 500], "needs x1 < x2 and y1 < y2"),
        ([0, 600, 500, 500], "needs x1 < x2 and y1 < y2"),
        ([1000, 0, 2000, 500], "inside 0..1000"),
        ([-20, 0, -10, 500], "inside 0..1000"),
        ([float("nan"), 0, 1, 1], "coordinates must be finite"),
        ([0, 0, float("inf"), 1], "coordinates must be finite"),
        ([0, float("-inf"), 1, 1], "coordinates must be finite"),
        ([0, 0, 10**400, 500], "bbox_2d[2]: Input should be a valid number"),
        ([True, False, 500, 500], "is not of type 'number'"),
        (["0", 0, 500, 500], "bbox_2d[0]: '0' is not of type 'number'"),
        ([0, 0, 500], "bbox_2d: [0, 0, 500] is too short"),
        ([0, 0, 500, 500, 500], "is too long"),
        ("0, 0, 500, 500", "is not of type 'array'"),
        ({"x1": 0}, "is not of type 'array'"),
        (None, "is not of type 'array'"),
    ],
)
def test_a_box_that_cannot_be_used_says_why(box, text):
    result = zoom(box)
    assert result.status == "bad_arguments"
    assert text in result.text


def test_an_image_that_is_not_there():
    context = ToolContext(images={}, texts={}, image_names=["original_image", "observation_1"])
    result = PLAIN.call({"image": "observation_7", "bbox_2d": [0, 0, 1, 1]}, context)
    assert (result.status, result.text) == (
        "bad_arguments",
        "Error: there is no image 'observation_7'; known: original_image, observation_1",
    )
    result = PLAIN.call(
        {"image": "observation_7", "bbox_2d": [0, 0, 1, 1]}, ToolContext(images={}, texts={}, image_names=[])
    )
    assert result.text.endswith("known: none")


@pytest.mark.parametrize(("side", "shown"), [(224, 224), (223, 446), (100, 200), (28, 56)])
def test_a_small_crop_is_enlarged(side, shown):
    pixels = crop([0, 0, 1000, 1000], (300, side), tool=ImageZoomTool())
    assert pixels.size == (300 * shown // side, shown)
    assert same(pixels, noise(300, side).resize(pixels.size, PILImage.Resampling.BICUBIC))


def test_the_short_side_decides_whether_a_crop_is_enlarged():
    assert crop([0, 0, 1000, 1000], (1000, 100), tool=ImageZoomTool()).size == (2000, 200)
    assert crop([0, 0, 1000, 1000], (300, 300), tool=ImageZoomTool()).size == (300, 300)


def test_the_limits_are_settings():
    tool = ImageZoomTool(min_side=50, max_aspect=2, enlarge_below=60)
    assert crop([0, 0, 1, 1], tool=tool).size == (100, 100)
    assert zoom([0, 0, 1000, 1], tool=tool).text == "Error: bbox_2d: sides of 400 x 50 px are beyond 2:1"


def test_the_source_stays_as_it_was():
    source = Image.from_pil(noise(64, 64))
    context = ToolContext(images={"a": source}, texts={}, image_names=["a"])
    PLAIN.call({"image": "a", "bbox_2d": [0, 0, 500, 500]}, context)
    assert source.pil().tobytes() == noise(64, 64).tobytes()


def bomb(width, height):
    """A small PNG that says that it is large: a kilobyte for any size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return Image.from_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("width", "height", "text"),
    [
        (10_001, 10_000, "10001 x 10000 px are too many pixels"),
        (13_000, 13_000, "13000 x 13000 px are too many pixels"),
        (50_000, 50_000, "exceeds limit"),
        (2**31 - 1, 2**31 - 1, "exceeds limit"),
    ],
)
def test_a_decompression_bomb_is_refused_unopened(width, height, text):
    context = ToolContext(images={"original_image": bomb(width, height)}, texts={}, image_names=["original_image"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PILImage.DecompressionBombWarning)
        result = PLAIN.call({"image": "original_image", "bbox_2d": [0, 0, 10, 10]}, context)
    assert (result.status, result.images) == ("bad_arguments", ())
    assert text in result.text


def test_the_largest_size_is_a_setting():
    assert zoom([0, 0, 500, 500], (400, 300), ImageZoomTool(max_megapixels=0.12)).status == "ok"
    assert zoom([0, 0, 500, 500], (400, 300), ImageZoomTool(max_megapixels=0.119)).status == "bad_arguments"


@pytest.mark.parametrize("data", [b"", b"no image", Image.from_pil(noise(64, 64)).data[:-3000]])
def test_an_image_that_cannot_be_read_is_an_observation(data):
    context = ToolContext(images={"original_image": Image.from_bytes(data)}, texts={}, image_names=["original_image"])
    result = PLAIN.call({"image": "original_image", "bbox_2d": [0, 0, 10, 10]}, context)
    assert result.status == "bad_arguments"
    assert "not a readable image" in result.text
