"""Text files that users write: UTF-8, with or without a byte order mark, and an error that names the line where a file is neither."""

import codecs
import os
from collections.abc import Iterator
from pathlib import Path

from arm_rl.core.errors import UserError

_OTHER_MARKS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


class EncodingError(UserError):
    """A text file in another encoding than UTF-8; the message names the file and the line."""


def read_text(path: str | os.PathLike) -> str:
    """Return the text of a file, without its byte order mark and with line breaks as `\\n`.

    Raises:
        EncodingError: If the file is not UTF-8.
        OSError: If the file cannot be read.
    """
    return "".join(read_lines(path)).replace("\r", "\n")


def read_lines(path: str | os.PathLike) -> Iterator[str]:
    """Yield the lines of a file, each with its `\n`; the file is held in memory line by line.

    Raises:
        EncodingError: If a line is not UTF-8.
        OSError: If the file cannot be read.
    """
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            yield _decode_line(line, f"{path}: line {number}").replace("\r\n", "\n")


def _decode_line(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        known = next((name for mark, name in _OTHER_MARKS.items() if line.startswith(mark)), None)
        found = f"the file is {known}" if known else f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
        raise EncodingError(f"{where}: not UTF-8 text ({found}): save the file as UTF-8") from error
