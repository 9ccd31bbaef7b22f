"""Formats of training data, each read into records and written from them: a visible table."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from arm_rl.data.parquet_rows import BrokenRows
from arm_rl.prepare.formats import openai, sharegpt, verl
from arm_rl.prepare.formats.pictures import Pictures
from arm_rl.prepare.records import Record


class Format(Protocol):
    """A module that reads and writes one format."""

    def read(self, path: Path, load: Callable[[Any], Any], broken: BrokenRows) -> Iterator[Record]:
        """The rows of a file; `load` is given what stands for each image. Raises a DataError for a file that cannot be used."""

    def write(self, path: Path, records: Iterable[Record], pictures: Pictures, layout: Any) -> int:
        """Writes a file and gives the number of rows. The images of the records are `Image`s."""

    def layout(self, records: Iterable[Record]) -> Any:
        """What must be known of all records before the first can be written; their images are not looked at."""


FORMATS: Mapping[str, Format] = {"verl": verl, "sharegpt": sharegpt, "openai": openai}
# whether a format's images stand in the file itself by default
EMBEDDED = {"verl": True, "sharegpt": False, "openai": True}


def guess_format(path: Path) -> str:
    """Return the format for a file's ending: .parquet is verl's, .jsonl is OpenAI's, others are ShareGPT's."""
    return {".parquet": "verl", ".jsonl": "openai"}.get(path.suffix, "sharegpt")
