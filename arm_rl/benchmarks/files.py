"""Benchmark files as they are published: rows of JSON lines, parquet or TSV, and their images; whatever is wrong is named at the door."""

import base64
import binascii
import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from arm_rl.core.atomic_file import replace_file
from arm_rl.core.errors import UserError
from arm_rl.core.images import Image, ImageError
from arm_rl.core.parsing import parse_json
from arm_rl.core.text_file import EncodingError, read_lines
from arm_rl.core.types import ImageRef

csv.field_size_limit(sys.maxsize)  # images stand in a TSV's fields


class BenchmarkError(UserError):
    """A benchmark's file that cannot be used; the message names the file, the row and the key."""


@dataclass(frozen=True, slots=True)
class FileRow:
    """A row, read key by key."""

    path: Path
    number: int  # from 0
    values: dict[str, Any]

    @property
    def location(self) -> str:
        """File and row, for messages."""
        return f"{self.path}: row {self.number}"

    def error(self, key: str, message: str) -> BenchmarkError:
        """An error about a key of this row."""
        return BenchmarkError(f"{self.location}: {key}: {message}")

    def get(self, key: str) -> Any:
        """The value as it is; it must be there."""
        if self.values.get(key) is None:
            raise self.error(
                key, f"is missing; found: {', '.join(name for name, value in self.values.items() if value is not None)}"
            )
        return self.values[key]

    def text(self, key: str) -> str:
        """A text."""
        value = self.get(key)
        if not isinstance(value, str) or not value.strip():
            raise self.error(key, f"a text is needed, not {value!r:.80}")
        return value

    def name(self, key: str) -> str:
        """A text or a whole number, as text: ids are written either way."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
            raise self.error(key, f"a text or a number is needed, not {value!r:.80}")
        return str(value).strip()

    def texts(self, key: str, *, at_least: int) -> list[str]:
        """A list of texts."""
        value = self.get(key)
        if not isinstance(value, list) or len(value) < at_least or not all(isinstance(one, str) for one in value):
            raise self.error(key, f"a list of {at_least} or more texts is needed, not {value!r:.80}")
        return value

    def integer(self, key: str) -> int:
        """Return a whole number."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(key, f"a whole number is needed, not {value!r:.80}")
        return value


def read_rows(path: Path, formats: tuple[str, ...]) -> Iterator[FileRow]:
    """The rows of a file, a few in memory at a time.

    Args:
        formats: those that the benchmark is published in: endings without their dot.

    Raises:
        BenchmarkError: the file cannot be read, is of another format or has no rows.
    """
    ending = path.suffix.removeprefix(".").lower()
    if ending not in formats:
        raise BenchmarkError(f"{path}: a file that ends in {' or '.join('.' + one for one in formats)} is needed")
    readers = {"jsonl": _json_lines, "parquet": _parquet, "tsv": _tsv}
    number = -1
    try:
        for number, values in enumerate(readers[ending](path)):
            yield FileRow(path, number, values)
    except OSError as error:
        raise BenchmarkError(f"{path}: {error.strerror or error}") from error
    except EncodingError as error:
        raise BenchmarkError(str(error)) from error
    except (pa.ArrowException, csv.Error, UnicodeDecodeError) as error:
        raise BenchmarkError(f"{path}: after row {number}: not a readable {ending} file: {error}") from error
    if number < 0:
        raise BenchmarkError(f"{path}: there are no rows")


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(line for line in read_lines(path) if line.strip()):
        try:
            values = parse_json(line)
        except ValueError as error:
            raise BenchmarkError(f"{path}: row {number}: not valid JSON: {error}") from error
        if not isinstance(values, dict):
            raise BenchmarkError(f"{path}: row {number}: a JSON object is needed, not {values!r:.80}")
        yield values


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=16):
            yield from batch.to_pylist()


def _tsv(path: Path) -> Iterator[dict[str, Any]]:
    for number, values in enumerate(csv.DictReader(read_lines(path), delimiter="\t")):
        if None in values:
            raise BenchmarkError(f"{path}: row {number}: more fields than the first line names")
        yield {key: value or None for key, value in values.items()}  # an empty field is no value


@dataclass(frozen=True, slots=True)
class ImageStore:
    """Where images that stand inside of files are kept, each once: sessions read images by their path."""

    folder: Path

    def store_image(self, row: FileRow, key: str) -> ImageRef:
        """Store the image of a row: a struct of `bytes` (and `path`), bytes, or base64 in a text."""
        value = row.get(key)
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str):
            try:
                value = base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError) as error:
                raise row.error(key, f"an image as base64 is needed, not {value[:40]!r}: {error}") from error
        if not isinstance(value, bytes) or not value:
            raise row.error(key, f"an image is needed, not {value!r:.80}")
        image = _check_image(row, key, value)
        path = self.folder / image.key
        if not path.exists():
            with replace_file(path) as temporary:
                temporary.write_bytes(value)
        return ImageRef(path=str(path))

    @staticmethod
    def find_image(row: FileRow, key: str, name: str, *folders: Path) -> ImageRef:
        """Return an image in a file of its own, from the first folder that has it; no name leads out of them."""
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise row.error(key, f"a path below the benchmark's folder is needed, not {name!r}")
        for folder in folders:
            path = folder / name
            if path.is_file():
                _check_image(row, key, path.read_bytes())
                return ImageRef(path=str(path))
        raise row.error(key, f"there is no image {name!r} in {' or '.join(map(str, folders))}")


def _check_image(row: FileRow, key: str, data: bytes) -> Image:
    image = Image.from_bytes(data)
    try:
        _ = image.size
    except ImageError as error:
        raise row.error(key, str(error)) from error
    return image
