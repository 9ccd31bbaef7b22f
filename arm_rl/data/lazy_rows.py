"""Rows of parquet files as a sequence of what they mean, read from disk when asked for. In memory a row takes 15 bytes."""

from array import array
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeAlias, TypeVar, overload

import pyarrow as pa

from arm_rl.core.parquet import RowReader
from arm_rl.data.parquet_rows import DataError

T = TypeVar("T")
Decode: TypeAlias = Callable[[str, int, dict[str, Any]], T]


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

    def add(self, file: int, row: int, track: str, *, large: bool = False) -> None:
        """Takes up row `row` of file `file`, both from 0 on."""
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
