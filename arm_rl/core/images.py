"""Images as encoded bytes with a content key; and where they are read."""

import functools
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import ExifTags, ImageOps
from PIL import Image as PILImage

from arm_rl.core.errors import UserError
from arm_rl.core.types import ImageRef


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
        """Encodes as PNG, quickly rather than tightly."""
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", compress_level=1)
        return cls.from_bytes(buffer.getvalue())

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, upright.

        Raises:
            ImageError: the bytes are not a readable image.
        """
        return _size(self)

    def pil(self) -> PILImage.Image:
        """Decodes to RGB, upright: on white where it is transparent, the first picture where it moves.

        Raises:
            ImageError: the bytes are not a readable image, or one so large that Pillow takes it for an attack.
        """
        try:
            image = PILImage.open(io.BytesIO(self.data))
            return _rgb(image if _orientation(image) == 1 else ImageOps.exif_transpose(image))
        except Exception as error:
            raise ImageError(f"not a readable image ({len(self.data)} bytes): {error}") from error


@functools.lru_cache(maxsize=64)  # a group's sessions ask for the same image
def _size(image: Image) -> tuple[int, int]:
    try:
        opened = PILImage.open(io.BytesIO(image.data))
        sideways = _orientation(opened) >= 5  # 5 to 8 are quarter turns
    except Exception as error:
        raise ImageError(f"not a readable image ({len(image.data)} bytes): {error}") from error
    return opened.size[::-1] if sideways else opened.size


def _rgb(image: PILImage.Image) -> PILImage.Image:
    """To RGB, as it would be shown: Pillow alone cuts 16-bit values off at 255, and shows what transparency hides."""
    if image.mode.startswith("I"):  # greys of 16 bits, which some formats hold in 32
        values = np.asarray(image).astype(np.float64)
        wide = image.mode.startswith("I;16") or values.max() > 255
        image = PILImage.fromarray((values / (257 if wide else 1)).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        shown = image.convert("RGBA")
        image = PILImage.new("RGBA", image.size, "white")
        image.alpha_composite(shown)
    return image.convert("RGB")


def _orientation(image: PILImage.Image) -> int:
    """EXIF's orientation of an image just opened. A PNG is not decoded to look for one behind its pixels."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    return int(image.getexif().get(ExifTags.Base.Orientation, 1))


@functools.lru_cache(maxsize=8)
def _parquet(path: str) -> pq.ParquetFile:
    return pq.ParquetFile(path, memory_map=True)


@functools.lru_cache(maxsize=16)
def _images_of_row_group(path: str, row_group: int) -> list[list[dict]]:
    return _parquet(path).read_row_group(row_group, columns=["images"]).column("images").to_pylist()


def load(ref: ImageRef) -> Image:
    """Reads the image that `ref` points to.

    Raises:
        ImageError: there is no such file, row or image; the message names it.
    """
    if ref.row is None:
        return _read(Path(ref.path))
    try:
        entries = _images_of_row(ref.path, ref.row)
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise ImageError(f"{ref.path}: not a readable parquet file with images: {error}") from error
    if ref.index >= len(entries):
        raise ImageError(f"{ref.path}: row {ref.row} has {len(entries)} images, and no number {ref.index}")
    return from_entry(entries[ref.index], Path(ref.path).parent)


def _images_of_row(path: str, row: int) -> list[dict]:
    left = row
    file = _parquet(path)
    for row_group in range(file.num_row_groups):
        num_rows = file.metadata.row_group(row_group).num_rows
        if left < num_rows:
            return _images_of_row_group(path, row_group)[left] or []
        left -= num_rows
    raise ImageError(f"{path}: there is no row {row}")


def from_entry(entry: dict, folder: Path) -> Image:
    """The image of a struct of `bytes` or `path`, as data files hold it; paths are relative to `folder`.

    Raises:
        ImageError: it has neither, or there is no such file.
    """
    if entry.get("bytes"):
        return Image.from_bytes(entry["bytes"])
    if entry.get("path"):
        return _read(folder / entry["path"])
    raise ImageError("an image needs bytes or a path")


def _read(path: Path) -> Image:
    try:
        return Image.from_bytes(path.read_bytes())
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from error
