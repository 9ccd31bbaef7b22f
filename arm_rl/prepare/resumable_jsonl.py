"""A file of JSON lines that grows while a job runs: whatever ends the job, whole lines are kept, and the next run goes on after them."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from arm_rl.core.errors import UserError


class LinesError(UserError):
    """A line that is none; the message names it."""


class JsonLines:
    """A file's lines, and those that come."""

    def __init__(self, path: Path) -> None:
        """Reads the file, if there is one. A last line that was cut off is left out, and written over.

        Raises:
            LinesError: another line is broken.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.entries: list[dict[str, Any]] = []
        whole = 0
        with path.open("a+b") as file:
            file.seek(0)
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                try:
                    self.entries.append(dict(json.loads(line)))
                except (ValueError, TypeError) as error:
                    raise LinesError(
                        f"{path}: line {number}: not a JSON object ({error}): remove it, and it is made again"
                    ) from error
        self._file = path.open("ab")
        self._file.truncate(whole)

    def add(self, values: dict[str, Any]) -> None:
        """Writes a line; it is on disk when this returns."""
        self._file.write(json.dumps(values, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        self._file.flush()

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
