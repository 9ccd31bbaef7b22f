"""Single rows of parquet files, read from disk when they are asked for, with a bounded memory however large the files are."""

import bisect
import functools
import itertools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

_BATCH_BYTES = 8 << 20  # of rows that are decoded together
_MOST_ROWS = 64  # of them
_READ_BYTES = 1 << 20  # from disk at a time
_SLOW_BYTES = 256 << 20  # of a row group whose rows are slow to reach


def open_file(path: str) -> pq.ParquetFile:
    """Opens a file to be read in pieces. It is not mapped into memory: a file cut short under a reader would kill the process.

    Raises:
        OSError, pa.ArrowException: it cannot be read.
    """
    # not whole row groups at once
    return pq.ParquetFile(path, buffer_size=_READ_BYTES, pre_buffer=False, page_checksum_verification=True)


def large_row_group_bytes(file: pq.ParquetFile) -> int:
    """Return the bytes of the largest row group if it is too large for random access to single rows, else 0."""
    largest = max((file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups)), default=0)
    return largest if largest > _SLOW_BYTES else 0


def rows_per_read(file: pq.ParquetFile, group: int) -> int:
    """Return how many rows of a row group to decode together, by their size."""
    found = file.metadata.row_group(group)
    return max(1, min(_MOST_ROWS, _BATCH_BYTES * found.num_rows // max(found.total_byte_size, 1)))


class RowReader:
    """Reads rows in any order, and in order at the pace of a scan. Safe for threads.

    Row groups are kept while they fit into `max_bytes`. A large one passes by up to the wanted row, and on from there for a later one.
    """

    def __init__(self, max_bytes: int = 32 << 20) -> None:
        self._max_bytes = max_bytes
        self._cached: OrderedDict[_Part, pa.Table] = OrderedDict()
        self._passing: _StreamedRowGroup | None = None
        self._open = functools.lru_cache(maxsize=16)(_OpenFile)
        self._lock = threading.Lock()

    def row(self, path: str, number: int, columns: Sequence[str]) -> dict[str, Any]:
        """The columns of row `number`; those that the file does not have are left out.

        Raises:
            OSError, pa.ArrowException: the file cannot be read.
            IndexError: it has no such row.
        """
        with self._lock:
            opened = self._open(path)
            group = bisect.bisect_right(opened.ends, number)
            if group == len(opened.ends):
                raise IndexError(f"there is no row {number}")
            part = _Part(path, group, tuple(name for name in columns if name in opened.names))
            (row,) = self._slice(opened.file, part, number - (opened.ends[group - 1] if group else 0)).to_pylist()
            return row

    def _slice(self, file: pq.ParquetFile, part: "_Part", index: int) -> pa.Table | pa.RecordBatch:
        """One row of a row group."""
        if part not in self._cached:
            if _uncompressed_size(file, part) > self._max_bytes // 4:
                if self._passing is None or self._passing.part != part or self._passing.first > index:
                    self._passing = _StreamedRowGroup(file, part)
                return self._passing.slice(index)
            table = file.read_row_group(part.group, columns=list(part.columns))
            if len(table) <= index:
                raise pa.ArrowInvalid(f"row group {part.group} ends too early")
            self._cached[part] = table
            while sum(table.nbytes for table in self._cached.values()) > self._max_bytes and len(self._cached) > 1:
                self._cached.popitem(last=False)
        self._cached.move_to_end(part)
        return self._cached[part].slice(index, 1)


class _OpenFile:
    """A file, its columns, and where its row groups end."""

    def __init__(self, path: str) -> None:
        self.file = open_file(path)
        self.names = frozenset(self.file.schema_arrow.names)
        groups = range(self.file.num_row_groups)
        self.ends = list(itertools.accumulate(self.file.metadata.row_group(group).num_rows for group in groups))


class _Part(NamedTuple):
    """Some columns of a row group."""

    path: str
    group: int
    columns: tuple[str, ...]


class _StreamedRowGroup:
    """A row group that is too large to be kept: one batch of it."""

    def __init__(self, file: pq.ParquetFile, part: _Part) -> None:
        self.part = part
        self.first = 0  # row of the batch
        rows = rows_per_read(file, part.group)
        self._batches = file.iter_batches(rows, row_groups=[part.group], columns=list(part.columns))
        self._batch = pa.RecordBatch.from_pylist([])

    def slice(self, index: int) -> pa.RecordBatch:
        """One row, not before `first`."""
        while index >= self.first + len(self._batch):
            self.first += len(self._batch)
            self._batch = next(self._batches, None)
            if self._batch is None:
                raise pa.ArrowInvalid(f"row group {self.part.group} ends too early")
        return self._batch.slice(index - self.first, 1)


def _uncompressed_size(file: pq.ParquetFile, part: _Part) -> int:
    """Return the uncompressed size of the columns in bytes."""
    found = file.metadata.row_group(part.group)
    chunks = (found.column(number) for number in range(found.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in part.columns)
