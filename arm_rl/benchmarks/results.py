"""The verdicts of an evaluation on disk, a line each, written as they come: what is there is not asked again."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from arm_rl.benchmarks.base import ItemVerdict
from arm_rl.core.errors import UserError

FILE = "results.jsonl"
Key = tuple[str, str, str]  # benchmark, way of asking, item


class ResultsError(UserError):
    """Results that cannot be used; the message names the file and the line."""


def read_results(folder: Path) -> dict[Key, ItemVerdict]:
    """The verdicts in a run's folder. A last line that was cut off is left out.

    Raises:
        ResultsError: a line that is not a verdict.
    """
    found: dict[Key, ItemVerdict] = {}
    for number, line in enumerate(_lines(folder / FILE), 1):
        try:
            values = json.loads(line)
            judged = ItemVerdict.from_dict(values["judged"])
            found[values["benchmark"], values["way"], judged.id] = judged
        except (ValueError, KeyError, TypeError) as error:
            raise ResultsError(
                f"{folder / FILE}: line {number}: not a verdict ({error!r}); without it, it is asked again"
            ) from error
    return found


def _lines(path: Path) -> Iterator[str]:
    if path.exists():
        with path.open(encoding="utf-8") as file:
            yield from (line for line in file if line.endswith("\n"))


class ResultsWriter:
    """Appends verdicts."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE
        whole = sum(len(line.encode()) for line in _lines(path))
        self._file = path.open("ab")
        self._file.truncate(whole)  # a line that was cut off is written again

    def add(self, benchmark: str, way: str, judged: ItemVerdict) -> None:
        """Writes a line; it is on disk when this returns."""
        line = json.dumps({"benchmark": benchmark, "way": way, "judged": judged.as_dict()}, ensure_ascii=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()

    def __enter__(self) -> "ResultsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
