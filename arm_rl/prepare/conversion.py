"""From one format to another, row by row, images with it."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from arm_rl.data.image_store import ImageSource
from arm_rl.data.parquet_rows import BrokenRows, DataError
from arm_rl.prepare.formats import FORMATS
from arm_rl.prepare.formats.pictures import Pictures
from arm_rl.prepare.records import Record


def convert(
    source: Path,
    target: Path,
    read_as: str,
    write_as: str,
    *,
    images: ImageSource,
    image_folder: Path | None = None,
    schemas: Mapping[str, Any] | None = None,
    broken: BrokenRows | None = None,
    on_row: Callable[[Record], object] = lambda record: None,
) -> int:
    """Writes `target`, which is there only when it is whole.

    Args:
        image_folder: where images are kept as files, each content once; by default they stand in the target itself.
        schemas: of tools that rows name without one.

    Returns:
        The number of rows.

    Raises:
        DataError: the source cannot be read, or a row cannot be used or not be written in that format.
    """
    broken = broken or BrokenRows()
    reader, writer = FORMATS[read_as], FORMATS[write_as]
    layout = (
        writer.layout(reader.read(source, lambda entry: None, BrokenRows(skip=True))) if write_as == "verl" else schemas
    )

    def records() -> Iterator[Record]:
        number = 0
        for record in reader.read(source, images.read, broken):
            number += 1
            yield record
            on_row(record)
        broken.report(number)
        if not number:
            raise DataError(f"{source}: there are no rows")

    return writer.write(target, records(), Pictures(target, image_folder), layout)
