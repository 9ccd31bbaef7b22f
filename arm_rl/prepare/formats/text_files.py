"""JSON and JSON lines, read object by object."""

import codecs
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from arm_rl.core.errors import UserError
from arm_rl.core.parsing import parse_json, replace_surrogates
from arm_rl.core.placeholders import count_images
from arm_rl.core.text_file import read_lines, read_text
from arm_rl.data.parquet_rows import BrokenRows, DataError
from arm_rl.prepare.records import Record, tool_names

T = TypeVar("T")


def read_objects(path: Path, decode: Callable[[dict[str, Any], str], T], broken: BrokenRows) -> Iterator[T]:
    """What the objects of a file mean: a JSON array (held in memory), or an object a line.

    Raises:
        DataError: the file cannot be read, or an object cannot be used.
    """
    try:
        whole = _is_array(path)
        lines = (line for line in read_lines(path) if line.strip())
        for number, item in enumerate(parse_json(read_text(path)) if whole else lines):
            where = f"{path}: {'item' if whole else 'row'} {number}"
            try:
                value = item if whole else parse_json(item)
                if not isinstance(value, dict):
                    raise DataError(f"{where}: an object is needed, not {value!r:.80}")
                found = decode(value, where)
            except UserError as error:
                broken.skip_row(error)
            except ValueError as error:
                broken.skip_row(DataError(f"{where}: not valid JSON: {error}"))
            else:
                yield found
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise DataError(f"{path}: not a readable JSON file: {error}") from error


def _is_array(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(64).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["


def dump_json(value: Any, where: str) -> str:
    """Return a value as JSON.

    Raises:
        DataError: it holds what JSON does not have.
    """
    try:
        return replace_surrogates(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: it cannot be written as JSON: {error}") from error


def schemas_to_write(record: Record, known: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]] | None:
    """The schemas of a record's tools; None where it names none.

    Raises:
        DataError: the schema of a tool is not known.
    """
    if record.schemas is not None or record.tools is None:
        return None if record.schemas is None else list(record.schemas)
    unknown = [name for name in record.tools if name not in known]
    if unknown:
        raise DataError(f"the schema of {unknown[0]!r} is not known: give the files that list the tools with --tools")
    return [known[name] for name in record.tools]


def parse_tools(value: Any, where: str) -> tuple[tuple[str, ...] | None, tuple[Mapping[str, Any], ...] | None]:
    """Return the names and the schemas of a list of schemas."""
    if value is None:
        return None, None
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise DataError(f"{where}: tools is {value!r:.80}; a list of function schemas is needed")
    return tool_names(value), tuple(value) or None


def require_images(record: Record, where: str) -> Record:
    """The record, if it has as many images as places for them.

    Raises:
        DataError: it has not.
    """
    places = sum(count_images(text) for _, text in record.messages)
    if places != len(record.images):
        raise DataError(f"{where}: the messages have {places} <image> for {len(record.images)} images")
    return record
