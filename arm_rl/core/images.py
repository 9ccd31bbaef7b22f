"""Images as encoded bytes with a content key; and where they are read."""

import functools
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image as PILImage
from PIL import ImageOps

from arm_rl.core.types import ImageRef


class ImageError(ValueError):
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

    def pil(self) -> PILImage.Image:
        """Decodes to RGB, upright.

        Raises:
            ImageError: the bytes are not a readable image.
        """
        try:
            image = PILImage.open(io.BytesIO(self.data))
            return ImageOps.exif_transpose(image).convert("RGB")
        except Exception as error:
            raise ImageError(f"not a readable image ({len(self.data)} bytes): {error}") from error


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
        try:
            return Image.from_bytes(Path(ref.path).read_bytes())
        except OSError as error:
            raise ImageError(f"{ref.path}: {error}") from error
    row = ref.row
    file = _parquet(ref.path)
    for row_group in range(file.num_row_groups):
        num_rows = file.metadata.row_group(row_group).num_rows
        if row < num_rows:
            entry = _images_of_row_group(ref.path, row_group)[row][ref.index]
            return Image.from_bytes(entry["bytes"])
        row -= num_rows
    raise ImageError(f"{ref.path}: there is no row {ref.row}")
