"""A file of JSON lines that grows while a job runs: complete lines are kept whatever ends the job, and the next run adds to them."""

import json
from pathlib import Path
from typing import Any

from arm_rl.core.errors import UserError


class LinesError(UserError):
    """A line that is none; the message names it."""


def read_json_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the objects of a file's complete lines, and the number of bytes of these lines.

    There are none where there is no file. A last line that was cut off is skipped.

    Raises:
        LinesError: If another line is broken.
    """
    found: list[dict[str, Any]] = []
    num_bytes = 0
    if not path.exists():
        return found, num_bytes
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            num_bytes += len(line)
            try:
                found.append(dict(json.loads(line)))
            except (ValueError, TypeError) as error:
                raise LinesError(
                    f"{path}: line {number}: not a JSON object ({error}): remove it, and it is made again"
                ) from error
    return found, num_bytes


class JsonLines:
    """A file's lines, and those that come."""

    def __init__(self, path: Path) -> None:
        """Read the file, if there is one, and open it for more lines, which replace a last line that was cut off.

        Raises:
            LinesError: If another line is broken.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.entries, num_bytes = read_json_lines(path)
        self._file = path.open("ab")
        self._file.truncate(num_bytes)

    def add(self, values: dict[str, Any]) -> None:
        """Write a line. The operating system has it when this returns."""
        self._file.write(json.dumps(values, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        self._file.flush()

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
