"""Images as encoded bytes with a content key; and where they are read."""

import functools
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pyarrow as pa
from PIL import ExifTags, ImageCms, ImageFile, ImageOps
from PIL import Image as PILImage

from arm_rl.core.errors import UserError
from arm_rl.core.parquet import RowReader
from arm_rl.core.types import ImageRef

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
)  # others start programs (EPS) or are read by code that few people test
MAX_PIXELS = 64_000_000  # of an image, by its header: a few bytes can ask for gigabytes
_STRIP_PIXELS = 1 << 18  # converted at a time where numbers are wider than the result's
MAX_ASPECT = 200  # of an image's longer side to its shorter one: models of Qwen's kind are shown none beyond


class ImageError(UserError):
    """An image that cannot be read; the message names the file."""


@dataclass(frozen=True, slots=True)
class Image:
    """An encoded image (PNG, JPEG, ...). Equal content has an equal key."""

    data: bytes
    key: str

    @classmethod
    def from_bytes(cls, data: bytes) -> "Image":
        """Wraps encoded bytes."""
        return cls(data, hashlib.blake2b(data, digest_size=16).hexdigest())

    @classmethod
    def from_pil(cls, image: PILImage.Image) -> "Image":
        """Encode an image upright as PNG; modes that PNG lacks, or has with other values, become RGB as in `pil`.

        Raises:
            ImageError: If the image cannot be decoded.
        """
        buffer = io.BytesIO()
        try:
            _check_pixels(image)
            shown = _upright(image)
            shown = shown if shown.mode in _PNG_MODES else _to_rgb(shown)
            shown.save(buffer, format="PNG", compress_level=1)
        except Exception as error:
            raise ImageError(f"a PIL image of mode {image.mode} cannot be read: {error}") from error
        return cls.from_bytes(buffer.getvalue())

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, upright.

        Raises:
            ImageError: the bytes are not a readable image.
        """
        return _upright_size(self)

    @property
    def mime_type(self) -> str:
        """Such as image/png. Raises as `size`."""
        try:
            return open_image(self.data).get_format_mimetype() or "image/png"
        except Exception as error:
            raise _unreadable_error(self.data, error) from error

    def pil(self) -> PILImage.Image:
        """Decodes to RGB, upright: on white where it is transparent, the first picture where it moves.

        Raises:
            ImageError: the bytes are not a readable image, or have more than `MAX_PIXELS` pixels.
        """
        try:
            return _to_rgb(_upright(open_image(self.data)))
        except Exception as error:
            raise _unreadable_error(self.data, error) from error


def open_image(source: bytes | Path) -> ImageFile.ImageFile:
    """Open an encoded image or an image file; only the header is read. Nothing else in the project opens images.

    Raises:
        ImageError: If the image has more than `MAX_PIXELS` pixels.
        Exception: If the image has none of the `FORMATS` or a broken header; Pillow raises errors of many types.
    """
    data = io.BytesIO(source) if isinstance(source, bytes) else source
    opened = PILImage.open(data, formats=FORMATS)
    _check_pixels(opened)
    return opened


def _check_pixels(image: PILImage.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width} x {height} px are too many pixels: {MAX_PIXELS:,} at most")


@functools.lru_cache(maxsize=64)  # a group's sessions ask for the same image
def _upright_size(image: Image) -> tuple[int, int]:
    try:
        opened = open_image(image.data)
        sideways = _orientation(opened) >= 5  # 5 to 8 are quarter turns
    except Exception as error:
        raise _unreadable_error(image.data, error) from error
    return opened.size[::-1] if sideways else opened.size


def _upright(image: PILImage.Image) -> PILImage.Image:
    """Return an image turned as its EXIF data asks."""
    return image if _orientation(image) == 1 else ImageOps.exif_transpose(image)


def _to_rgb(image: PILImage.Image) -> PILImage.Image:
    """Convert to RGB as shown: Pillow alone cuts grey values off at 255, and shows what transparency hides."""
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_grey(image)
    if image.mode == "LAB":
        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        shown = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
        assert shown is not None  # a new image, unless the given one is changed in place
        return shown
    if image.mode == "La":  # Pillow has no direct way from here
        image = image.convert("LA")
    if image.has_transparency_data:
        shown = image.convert("RGBA")
        image = PILImage.new("RGBA", image.size, "white")
        image.alpha_composite(shown)
    return image.convert("RGB")


def _to_grey(image: PILImage.Image) -> PILImage.Image:
    """Convert greys of more than 8 bits: fractions up to 1, 8 bits in a wider format, or 16 bits by their largest value."""
    values = np.asarray(image)
    num_rows = max(1, _STRIP_PIXELS // image.width)
    strips = [slice(first, first + num_rows) for first in range(0, image.height, num_rows)]

    def read(strip: slice) -> np.ndarray:
        return np.nan_to_num(values[strip].astype(np.float64))

    largest, scale = max(read(strip).max() for strip in strips), 1.0
    if image.mode == "F" and largest <= 1:
        scale = 255.0
    elif image.mode.startswith("I;16") or largest > 255:
        scale = 1 / 257
    grey = np.empty(values.shape, np.uint8)
    for strip in strips:
        grey[strip] = (read(strip) * scale).round().clip(0, 255)
    return PILImage.fromarray(grey)


def _orientation(image: PILImage.Image) -> int:
    """EXIF's orientation of an image just opened. A PNG is not decoded to look for one behind its pixels."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    return int(image.getexif().get(ExifTags.Base.Orientation, 1))


_rows = RowReader()


@functools.lru_cache(maxsize=32)  # a group's sessions ask for the same row
def _images_of_row(path: str, row: int) -> list[dict]:
    return _rows.row(path, row, ("images",))["images"] or []


def load(ref: ImageRef) -> Image:
    """Reads the image that `ref` points to.

    Raises:
        ImageError: there is no such file, row or image; the message names it.
    """
    if ref.row is None:
        return Image.from_bytes(_read(Path(ref.path)))
    try:
        entries = _images_of_row(ref.path, ref.row)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ImageError(f"{ref.path}: not a readable parquet file with images: {error}") from error
    except IndexError as error:
        raise ImageError(f"{ref.path}: there is no row {ref.row}") from error
    if ref.index >= len(entries):
        raise ImageError(f"{ref.path}: row {ref.row} has {len(entries)} images, and no number {ref.index}")
    return Image.from_bytes(read_entry(entries[ref.index], Path(ref.path).parent)[0])


def read_entry(entry: Any, folder: Path, root: Path | None = None) -> tuple[bytes, Path | None]:
    """An image of a struct of `bytes` or `path`: encoded, and its file where it has one of its own. Arguments and errors as of `locate`."""
    place = locate(entry, folder, root)
    return (entry["bytes"], None) if place is None else (_read(place), place)


def locate(entry: Any, folder: Path, root: Path | None = None) -> Path | None:
    """The file of an image of a struct of `bytes` or `path`, as data files hold it; None where the bytes are there.

    Args:
        folder: of the data file; paths are relative to it.
        root: the folder that no path may leave, symbolic links followed; by default `folder`.

    Raises:
        ImageError: it has neither, there is no such file, or the file lies elsewhere.
    """
    if isinstance(entry, dict) and isinstance(entry.get("image"), str):  # verl's key for an address
        entry = {"path": entry["image"].removeprefix("file://"), **{key: one for key, one in entry.items() if one}}
    if not isinstance(entry, dict) or not (entry.get("bytes") or entry.get("path")):
        raise ImageError(f"an image needs bytes or a path, not {entry!r:.80}")
    if entry.get("bytes"):
        if not isinstance(entry["bytes"], bytes):
            raise ImageError(f"bytes of an image are {entry['bytes']!r:.80}; a binary column is needed")
        return None
    root = folder if root is None else root
    try:
        place = (folder / entry["path"]).resolve()
        inside = place.is_relative_to(root.resolve())
        odd = inside and place.exists() and not place.is_file()
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        # a name too long, a null, no text, links in a circle
        raise ImageError(f"the path {entry['path']!r:.200} cannot be used: {error}") from error
    if odd:  # such as a pipe, which would be waited for
        raise ImageError(f"the path {entry['path']!r} is not a file's")
    if not inside:
        raise ImageError(
            f"the path {entry['path']!r} leads out of {root}, which images may not leave (data.image_root)"
        )
    return place


@functools.lru_cache(maxsize=16)  # a service checks in a thread what its sessions check again
def check(data: bytes) -> tuple[int, int]:
    """Whether an image will decode, told by its header and by its end; it is decoded only where the format does not tell.

    Returns:
        Width and height as they are stored.

    Raises:
        ImageError: it is broken, cut short, too large or too narrow.
    """
    try:
        opened = open_image(data)
        width, height = opened.size
        if opened.format == "PNG":
            opened.verify()  # checksums
        elif not (opened.format == "JPEG" and b"\xff\xd9" in data[-64:]):
            opened.load()
    except Exception as error:
        raise _unreadable_error(data, error) from error
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"an image of {width} x {height} px: one side may be at most {MAX_ASPECT} times the other")
    return width, height


def _unreadable_error(data: bytes, error: Exception) -> ImageError:
    known = f"none of the formats that are known ({', '.join(FORMATS)})"
    reason = known if isinstance(error, PIL.UnidentifiedImageError) else str(error)
    return ImageError(f"not a readable image ({len(data)} bytes): {reason}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from error
