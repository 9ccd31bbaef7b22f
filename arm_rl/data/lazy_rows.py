"""Rows of parquet files as a sequence of what they mean, read from disk when asked for. In memory a row takes 15 bytes."""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeAlias, TypeVar, overload

import pyarrow as pa

from arm_rl.core.parquet import RowReader
from arm_rl.data.parquet_rows import DataError

T = TypeVar("T")
Decode: TypeAlias = Callable[[str, int, dict[str, Any]], T]


def hash_row(values: Sequence[object], images: Iterable[bytes]) -> bytes:
    """Return a hash of a row's plain values and of its images' files: 16 bytes."""
    hashed = hashlib.blake2b(repr(values).encode("utf-8", "backslashreplace"), digest_size=16)
    for image in images:
        hashed.update(hashlib.blake2b(image, digest_size=16).digest())
    return hashed.digest()


class LazyRows(Sequence[T], Generic[T]):
    """What the rows that can be used mean, in the order of the files. Whoever checks the rows adds them."""

    def __init__(
        self, files: Sequence[str], columns: Sequence[str], decode: Decode[T], large_columns: Sequence[str] = ()
    ) -> None:
        """A sequence of nothing yet.

        Args:
            columns: those that `decode` needs of every row.
            decode: gives what a row means, of its file, its number and its columns. It was found good before.
            large_columns: those that it needs only of rows that are added with `large`.
        """
        self.files = tuple(files)
        self.track_names: list[str] = []
        self.tracks = array("H")  # of each row, as a place in `track_names`
        self._columns, self._large_columns, self._decode = tuple(columns), tuple(large_columns), decode
        self._file, self._row, self._large = array("I"), array("Q"), array("B")
        self._reader = RowReader()
        self._contents = hashlib.blake2b(digest_size=16)

    @property
    def fingerprint(self) -> str:
        """Hash of the contents of all rows in order, wherever their files are."""
        return self._contents.hexdigest()

    def require_same(self, fingerprint: str | None) -> None:
        """Require that the rows are those of a checkpoint; one of an older version has no fingerprint.

        Raises:
            DataError: If rows were added, removed, changed or moved since.
        """
        if fingerprint is not None and fingerprint != self.fingerprint:
            raise DataError(
                "data.train: the data has changed since the checkpoint: its rows are not the same, in the same order; "
                "restore the files, or choose another run.name"
            )

    def add(self, file: int, row: int, track: str, *, content: bytes, large: bool = False) -> None:
        """Take up row `row` of file `file`, both from 0 on; `content` is its `hash_row`."""
        self._contents.update(content)
        if track not in self.track_names:
            self.track_names.append(track)
        self.tracks.append(self.track_names.index(track))
        self._file.append(file)
        self._row.append(row)
        self._large.append(large)

    def remove(self, places: set[int]) -> None:
        """Gives rows up again."""
        for name in ("tracks", "_file", "_row", "_large"):
            column = getattr(self, name)
            setattr(
                self, name, array(column.typecode, (value for place, value in enumerate(column) if place not in places))
            )

    def location(self, place: int) -> str:
        """Return the file and the number of a row as text, for messages."""
        return f"{self.files[self._file[place]]}: row {self._row[place]}"

    def __len__(self) -> int:
        return len(self._row)

    @overload
    def __getitem__(self, place: int) -> T: ...

    @overload
    def __getitem__(self, place: slice) -> list[T]: ...

    def __getitem__(self, place: int | slice) -> T | list[T]:
        """Reads a row, or a list of them.

        Raises:
            DataError: its file cannot be read any more.
        """
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        path, number = self.files[self._file[place]], self._row[place]
        try:
            row = self._reader.row(path, number, self._columns + (self._large_columns if self._large[place] else ()))
        except (OSError, IndexError, pa.ArrowException) as error:
            raise DataError(
                f"{self.location(place)}: it could be read when the run started, and cannot be now: {error}"
            ) from error
        return self._decode(path, number, row)
