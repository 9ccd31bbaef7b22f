"""Images: content keys, sizes, where they are read from, and the view that a model gets."""

import io
import subprocess
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies
from PIL import ExifTags
from PIL import Image as PILImage
from transformers import Qwen2VLImageProcessor

from arm_rl.core.images import Image, ImageError, _to_grey, check, load, read_entry
from arm_rl.core.resize import ViewSize
from arm_rl.core.types import ImageRef
from tests.support.pictures import GREYS, MODES, difference, gradient, in_mode
from tests.support.scripted import noise

ORIENTATIONS = range(1, 9)
IMAGES = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def encoded(pixels, kind="PNG", **options):
    buffer = io.BytesIO()
    pixels.save(buffer, format=kind, **options)
    return buffer.getvalue()


def write(path, rows, row_group_size=2, name="images"):
    table = pa.Table.from_pylist([{name: row} for row in rows], schema=pa.schema([(name, IMAGES)]))
    pq.write_table(table, path, row_group_size=row_group_size)
    return str(path)


def test_equal_content_has_an_equal_key():
    first, same, other = (Image.from_pil(noise(8, 8, seed)) for seed in (0, 0, 1))
    assert first == same
    assert first.key == same.key != other.key
    assert len({first, same, other}) == 2


def test_png_keeps_every_pixel():
    pixels = noise(33, 7)
    image = Image.from_pil(pixels)
    assert image.pil().tobytes() == pixels.tobytes()
    assert image.size == (33, 7)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_every_kind_of_image_becomes_rgb(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    image = Image.from_bytes(encoded(noise(20, 10).convert(mode), kind))
    assert (image.pil().mode, image.pil().size, image.size) == ("RGB", (20, 10), (20, 10))


@pytest.mark.parametrize("mode", MODES)
def test_a_pil_image_of_every_mode_looks_the_same_in_all_ways(mode):
    """Given as an object, and as a file where a format has the mode."""
    given, expected = in_mode(mode), gradient().convert("L" if mode in GREYS else "RGB").convert("RGB")
    shown = Image.from_pil(given).pil()
    assert (shown.mode, shown.size) == ("RGB", expected.size)
    coarse = {"1": 255, "P": 51, "PA": 51, "LAB": 40}  # black or white, a palette in steps of 51, colours beyond sRGB
    assert difference(shown, expected) <= coarse.get(mode, 11)
    if mode in ("F", "I", "I;16", "LAB", "CMYK"):
        assert difference(Image.from_bytes(encoded(given, "TIFF")).pil(), shown) == 0


@pytest.mark.parametrize("values", [[0.0, 0.5, 1.0], [0.0, 128.0, 255.0], [0.0, 32896.0, 65535.0], [np.nan, 0.5, 7e9]])
def test_floats_are_fractions_or_8_or_16_bits(values):
    pixels = PILImage.fromarray(np.array([values], dtype=np.float32))
    for image in (Image.from_pil(pixels), Image.from_bytes(encoded(pixels, "TIFF"))):
        shown = [image.pil().getpixel((x, 0))[0] for x in range(3)]
        assert shown == ([0, 0, 255] if values[2] > 1e9 else [0, 128, 255])


def test_a_pil_image_is_turned_as_its_file_would_be():
    photo = PILImage.new("RGB", (20, 10))
    exif = photo.getexif()
    exif[ExifTags.Base.Orientation] = 6
    file = encoded(photo, "JPEG", exif=exif)
    assert Image.from_bytes(file).pil().size == Image.from_pil(PILImage.open(io.BytesIO(file))).size == (10, 20)


def test_a_pil_image_that_cannot_be_decoded_is_an_image_error():
    with pytest.raises(ImageError, match="mode RGB cannot be read"):
        Image.from_pil(PILImage.open(io.BytesIO(encoded(noise(64, 64))[:2000])))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(mode):
    """A hidden colour does not come out, half of one is mixed with white, and what is opaque stays as it was."""
    pixels = PILImage.new("RGBA", (3, 1), (0, 0, 0, 0))
    pixels.putpixel((1, 0), (0, 0, 0, 255))
    pixels.putpixel((2, 0), (0, 0, 0, 128))
    if mode == "P":
        pixels = PILImage.new("P", (3, 1))
        pixels.putpalette([0, 0, 0, 0, 0, 0, 127, 127, 127])
        pixels.putdata([0, 1, 2])
        image = Image.from_bytes(encoded(pixels, transparency=0))
    else:
        image = Image.from_bytes(encoded(pixels.convert(mode)))
    assert [image.pil().getpixel((x, 0)) for x in range(3)] == [(255, 255, 255), (0, 0, 0), (127, 127, 127)]


@pytest.mark.parametrize(("kind", "bits"), [("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", np.int32)])
def test_sixteen_bits_are_scaled_not_cut(kind, bits):
    pixels = PILImage.fromarray(np.array([[0, 257, 257 * 128, 65535]]).astype(bits))
    shown = Image.from_bytes(encoded(pixels, kind)).pil()
    assert [shown.getpixel((x, 0)) for x in range(4)] == [(0, 0, 0), (1, 1, 1), (128, 128, 128), (255, 255, 255)]


def test_an_image_of_16_bits_that_uses_few_of_them():
    """Dark is dark: 200 of 65,535 is nearly black."""
    shown = Image.from_bytes(encoded(PILImage.fromarray(np.full((1, 1), 200, dtype=np.uint16)))).pil()
    assert shown.getpixel((0, 0)) in ((0, 0, 0), (1, 1, 1))


def test_cmyk_is_what_it_looks_like():
    inks = PILImage.new("CMYK", (2, 1), (0, 0, 0, 0))
    inks.putpixel((1, 0), (0, 255, 255, 0))
    shown = Image.from_bytes(encoded(inks, "TIFF")).pil()
    assert [shown.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (255, 0, 0)]


def test_the_first_picture_of_a_moving_one():
    first, second = PILImage.new("RGB", (4, 4), "red"), PILImage.new("RGB", (4, 4), "blue")
    shown = Image.from_bytes(encoded(first, "GIF", save_all=True, append_images=[second])).pil()
    assert (shown.size, shown.getpixel((0, 0))) == ((4, 4), (255, 0, 0))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_an_image_is_upright_however_the_camera_was_held(orientation, kind):
    exif = PILImage.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image = Image.from_bytes(encoded(noise(20, 10), kind, exif=exif))
    assert image.size == image.pil().size == ((20, 10) if orientation < 5 else (10, 20))


def test_an_image_that_was_turned_shows_its_top_at_the_top():
    pixels = PILImage.new("RGB", (20, 10), "black")
    pixels.paste("white", (0, 0, 10, 10))  # stored: the left half is white
    exif = PILImage.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned a quarter clockwise: the left side becomes the top
    upright = np.asarray(Image.from_bytes(encoded(pixels, exif=exif)).pil().convert("L"))
    assert upright[:10].min() == 255
    assert upright[10:].max() == 0


def webp_header(width, height):
    """A lossless WebP image of 34 bytes."""
    bits = (width - 1) | (height - 1) << 14
    data = b"\x2f" + bits.to_bytes(4, "little") + b"\x88\x88\x08" + bytes(6)
    chunk = b"VP8L" + len(data).to_bytes(4, "little") + data
    return b"RIFF" + (4 + len(chunk)).to_bytes(4, "little") + b"WEBP" + chunk


def test_a_small_file_of_many_pixels_is_refused_by_its_header(monkeypatch):
    """Before anything is decoded, at every way to an image's pixels and properties."""
    monkeypatch.setattr(PILImage.Image, "load", lambda self: pytest.fail("it is decoded"))
    image = Image.from_bytes(webp_header(13300, 13300))
    for use in (image.pil, lambda: image.size, lambda: image.mime_type, lambda: check(image.data)):
        with pytest.raises(ImageError, match="13300 x 13300 px are too many pixels: 64,000,000 at most"):
            use()
    with pytest.raises(ImageError, match="too many pixels"):
        Image.from_pil(PILImage.new("1", (8001, 8000)))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EOF\n"


@pytest.mark.parametrize(
    "data", [EPS, encoded(noise(8, 8), "PPM"), encoded(noise(8, 8), "ICNS"), encoded(noise(8, 8), "TGA")]
)
def test_an_image_of_another_format_is_refused(data, monkeypatch):
    """Pillow starts Ghostscript for EPS."""
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program is started"))
    for use in (Image.from_bytes(data).pil, lambda: check(data)):
        with pytest.raises(ImageError, match=r"none of the formats that are known \(PNG, JPEG"):
            use()


def test_nothing_else_opens_images():
    sources = [
        path for folder in ("arm_rl", "actors", "jobs", "rewards", "tools") for path in Path(folder).rglob("*.py")
    ]
    assert [str(path) for path in sources if "Image.open(" in path.read_text()] == ["arm_rl/core/images.py"]


def test_wide_numbers_are_converted_without_a_wide_copy():
    """4 million pixels of 16 bits: 8 bytes for each of them are never held."""
    image = PILImage.fromarray(np.arange(4 << 20, dtype=np.uint32).astype(np.uint16).reshape(2048, 2048))
    tracemalloc.start()
    grey = np.asarray(_to_grey(image))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 7 * image.width * image.height
    assert (grey == (np.asarray(image) / 257).round()).all()


@pytest.mark.parametrize("data", [b"", b"no image", encoded(noise(64, 64))[:100], encoded(noise(64, 64))[:-3000]])
def test_bytes_that_are_no_image(data):
    with pytest.raises(ImageError, match=f"not a readable image \\({len(data)} bytes\\)"):
        Image.from_bytes(data).pil()


def test_no_size_without_an_image():
    with pytest.raises(ImageError, match="not a readable image"):
        _ = Image.from_bytes(b"no image").size


def test_a_file_is_read(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(noise()))
    assert load(ImageRef(path=str(tmp_path / "a.png"))).pil().tobytes() == noise().tobytes()


def test_rows_of_a_parquet_file_are_read(tmp_path):
    """Over the borders of row groups, and from the row's list."""
    images = [Image.from_pil(noise(4, 4, seed)) for seed in range(6)]
    rows = [[images[0]], [images[1], images[2]], [], [images[3]], [images[4], images[5]]]
    path = write(tmp_path / "a.parquet", [[{"bytes": image.data, "path": None} for image in row] for row in rows])
    for number, row in enumerate(rows):
        for index, image in enumerate(row):
            assert load(ImageRef(path=path, row=number, index=index)) == image


def test_a_path_in_a_parquet_file_is_relative_to_its_folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").write_bytes(encoded(noise()))
    path = write(tmp_path / "a.parquet", [[{"bytes": None, "path": "pictures/a.png"}]])
    assert load(ImageRef(path=path, row=0)).size == (256, 256)


@pytest.mark.parametrize(
    ("file", "row", "index", "message"),
    [
        ("none.png", None, 0, "none.png: No such file"),
        ("none.parquet", 0, 0, "none.parquet: not a readable parquet file"),
        ("text.parquet", 0, 0, "text.parquet: not a readable parquet file"),
        ("columns.parquet", 0, 0, "columns.parquet: not a readable parquet file with images"),
        ("good.parquet", 2, 0, "good.parquet: there is no row 2"),
        ("good.parquet", 0, 1, "good.parquet: row 0 has 1 images, and no number 1"),
        ("good.parquet", 1, 0, "good.parquet: row 1 has 0 images, and no number 0"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, file, row, index, message):
    write(tmp_path / "good.parquet", [[{"bytes": encoded(noise(4, 4)), "path": None}], None])
    write(tmp_path / "columns.parquet", [[]], name="pictures")
    (tmp_path / "text.parquet").write_text("not parquet")
    with pytest.raises(ImageError, match=message):
        load(ImageRef(path=str(tmp_path / file), row=row, index=index))


def test_an_entry_needs_bytes_or_a_path(tmp_path):
    with pytest.raises(ImageError, match="bytes or a path"):
        read_entry({"bytes": None, "path": None}, tmp_path)
    with pytest.raises(ImageError, match=r"gone\.png: No such file"):
        read_entry({"path": "gone.png"}, tmp_path)


PROCESSORS = {  # patch size, merge size, fewest and most pixels: the demo's, and the released models' own
    "digits": (8, 2, 64 * 64, 64 * 64),
    "Qwen2.5-VL": (14, 2, 56 * 56, 14 * 14 * 4 * 1280),
    "wide": (16, 2, 32 * 32, 1024 * 1024),
}


@pytest.mark.parametrize("name", PROCESSORS)
@given(width=strategies.integers(1, 700), height=strategies.integers(1, 700))
@settings(max_examples=25)
def test_a_view_has_as_many_tokens_as_the_processor_makes(name, width, height):
    if max(width, height) / min(width, height) > 150:
        return  # the library refuses beyond 200:1
    patch, merge, least, most = PROCESSORS[name]
    processor = Qwen2VLImageProcessor(
        patch_size=patch, merge_size=merge, size={"shortest_edge": least, "longest_edge": most}
    )
    grid = processor(images=[PILImage.new("RGB", (width, height))])["image_grid_thw"][0]
    view = ViewSize(factor=patch * merge, min_pixels=least, max_pixels=most)
    assert view.num_tokens(width, height) == int(grid[0] * grid[1] * grid[2]) // merge**2


@given(width=strategies.integers(1, 3000), height=strategies.integers(1, 3000))
def test_a_released_models_view_is_not_resized_again(width, height):
    if max(width, height) / min(width, height) > 150:
        return
    view = ViewSize(factor=28, min_pixels=56 * 56, max_pixels=1280 * 784)
    assert view.resized_size(*view.resized_size(width, height)) == view.resized_size(width, height)


def test_the_view_is_the_whole_image_made_smaller():
    view = ViewSize(factor=16, min_pixels=64 * 64, max_pixels=64 * 64)
    shown = view.resize(Image.from_pil(noise(256, 256)))
    assert shown.size == (64, 64)
    assert abs(np.asarray(shown, dtype=float).mean() - np.asarray(noise(256, 256), dtype=float).mean()) < 2
