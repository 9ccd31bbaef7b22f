"""Rows of parquet files, a few at a time, and what becomes of those that cannot be used."""

import errno
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from arm_rl.core.config import DataConfig
from arm_rl.core.errors import UserError
from arm_rl.core.parquet import large_row_group_bytes, open_file, rows_per_read

logger = logging.getLogger(__name__)

_SHOWN = 5  # reasons in the warning


class DataError(UserError):
    """Data that cannot be used; the message names the file and the row."""


class TooLong(DataError):
    """A row of more tokens than a session or a batch may have: left out whatever is done with broken rows."""


@dataclass(slots=True)
class BrokenRows:
    """Rows that cannot be used: the first one ends the reading, or all of them are left out and counted."""

    skip: bool = False
    number: int = 0  # left out
    num_too_long: int = 0  # left out: nothing is broken about them
    _reasons: list[str] = field(default_factory=list)
    _first_too_long: str = ""

    @classmethod
    def of(cls, config: DataConfig) -> "BrokenRows":
        """As `data.broken_rows` says."""
        return cls(skip=config.broken_rows == "skip")

    @property
    def reasons(self) -> list[str]:
        """Of the first ones."""
        return list(self._reasons)

    def skip_row(self, error: UserError, number: int = 1) -> None:
        """Count a row, or `number` rows with the same error; raise the error if broken rows may not be skipped."""
        if isinstance(error, TooLong):
            self.num_too_long += number
            self._first_too_long = self._first_too_long or str(error)
            return
        if not self.skip:
            raise error
        self.number += number
        if len(self._reasons) < _SHOWN:
            self._reasons.append(str(error))

    def report(self, num_used: int) -> None:
        """Says what was left out beside `num_used` rows, once everything was read.

        Raises:
            DataError: it was everything.
        """
        num_rows = self.number + self.num_too_long + num_used
        reasons = "\n".join(f"  {reason}" for reason in self._reasons) + (
            "\n  ..." if self.number > len(self._reasons) else ""
        )
        told = []
        if self.num_too_long:
            told.append(
                f"left out {self.num_too_long} of {num_rows} rows for their length; the first is {self._first_too_long}"
            )
        if self.number:
            told.append(f"skipped {self.number} of {num_rows} rows (data.broken_rows=skip):\n{reasons}")
        if num_rows and not num_used:
            raise DataError(
                "\n".join([f"none of the {num_rows} rows can be used:", *filter(None, (reasons, self._first_too_long))])
            )
        for message in told:
            logger.warning("%s", message)

    def metrics(self) -> dict[str, float]:
        """How many were left out, and why."""
        return {"data/skipped_rows": float(self.number), "data/too_long_rows": float(self.num_too_long)}


def expand_folders(names: Sequence[str]) -> list[str]:
    """Return the files, with each folder replaced by the parquet files in it, in the order of their names.

    Raises:
        DataError: a folder has none.
    """
    files: list[str] = []
    for name in names:
        shards = sorted(str(path) for path in Path(name).glob("*.parquet")) if Path(name).is_dir() else [name]
        if not shards:
            raise DataError(f"{name}: a folder without parquet files")
        files += shards
    return files


def require_files(files: Iterable[str | os.PathLike]) -> None:
    """Raise an error if one of the files or folders does not exist, before a job spends time on the others.

    Raises:
        DataError: If a file is missing; the message names the file.
    """
    for file in files:
        if not Path(file).exists():
            raise DataError(f"{file}: {os.strerror(errno.ENOENT)}")


def read_rows(
    path: str, required: Sequence[str], optional: Sequence[str], broken: BrokenRows
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file with their numbers. Rows that cannot be read are broken ones; a part of a file can be.

    Raises:
        DataError: a file that cannot be read, that lacks a column that is required, or that has no rows.
    """
    try:
        file = open_file(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a readable parquet file: {error}") from error
    with file:
        names = file.schema_arrow.names
        missing = [column for column in required if column not in names]
        if missing:
            raise DataError(f"{path}: the column {missing[0]!r} is missing; found: {', '.join(names)}")
        columns = [name for name in (*required, *optional) if name in names]
        if not file.metadata.num_rows:
            raise DataError(f"{path}: there are no rows")
        if large := large_row_group_bytes(file):
            logger.info(
                "%s: row groups of up to %d MB: every sample is slow to read; `prepare_data convert` writes small ones",
                path,
                large >> 20,
            )
        first = 0
        for group in range(file.num_row_groups):
            end = first + file.metadata.row_group(group).num_rows
            yield from _rows_of_group(path, file, group, columns, first, end, broken)
            first = end


def _rows_of_group(
    path: str, file: pq.ParquetFile, group: int, columns: list[str], first: int, end: int, broken: BrokenRows
) -> Iterator[tuple[int, dict[str, Any]]]:
    batches = file.iter_batches(rows_per_read(file, group), row_groups=[group], columns=columns)
    while first < end:
        try:
            batch = next(batches)
        except (OSError, pa.ArrowException, StopIteration) as error:  # what follows in this group is lost
            reason = str(error) or "the row group ends too early"
            broken.skip_row(DataError(f"{path}: rows {first} to {end - 1} cannot be read: {reason}"), end - first)
            return
        for number in range(len(batch)):
            try:
                (row,) = batch.slice(number, 1).to_pylist()
            except UnicodeDecodeError as error:
                broken.skip_row(DataError(f"{path}: row {first + number}: a text is not UTF-8: {error}"))
                continue
            yield first + number, row
        first += len(batch)
