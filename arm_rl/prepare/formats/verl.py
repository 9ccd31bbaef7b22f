"""verl's RL parquet, and demonstrations: `prompt` (or `messages`), `images`, and any other columns as they are, `tools_kwargs` included."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from arm_rl.core.atomic_file import replace_file
from arm_rl.core.errors import UserError
from arm_rl.core.parquet import open_file
from arm_rl.core.parsing import parse_json
from arm_rl.data.parquet_rows import BrokenRows, DataError, read_rows
from arm_rl.prepare.formats.pictures import Pictures
from arm_rl.prepare.formats.text_files import dump_json, require_images
from arm_rl.prepare.records import Record, prune

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_EMBEDDED = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
_AS_FILES = pa.list_(pa.struct([("path", pa.string()), ("image", pa.string())]))
_ROWS, _BYTES = 128, 16 << 20  # of a row group, which is read together
_SCHEMAS = "tool_schemas"  # a column of its own: their JSON


def read(path: Path, load: Callable[[Any], Any], broken: BrokenRows) -> Iterator[Record]:
    """Raises as `Format.read`."""
    try:
        with open_file(str(path)) as file:
            names = file.schema_arrow.names
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a readable parquet file: {error}") from error
    column = "prompt" if "prompt" in names else "messages"
    for number, row in read_rows(str(path), (column,), [name for name in names if name != column], broken):
        where = f"{path}: row {number}"
        try:
            record = _parse_record(row, column, load, where)
        except UserError as error:
            broken.skip_row(error if str(error).startswith(where) else DataError(f"{where}: {error}"))
        else:
            yield record


def _parse_record(row: dict[str, Any], column: str, load: Callable[[Any], Any], where: str) -> Record:
    written, shown = row.pop(column), row.pop("images", None)
    if not isinstance(written, list) or not all(
        isinstance(one, dict) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str)
        for one in written
    ):
        raise DataError(
            f"{where}: {column} is {written!r:.80}; a list of structs of role and content, both texts, is needed"
        )
    tools, schemas = row.pop("tools", None), row.pop(_SCHEMAS, None)
    record = Record(
        messages=tuple((one["role"], one["content"]) for one in written),
        images=tuple(load(entry) for entry in shown or ()),
        tools=None if tools is None else tuple(tools),
        schemas=None if schemas is None else tuple(parse_json(schemas)),
        others=prune(row),
    )
    return require_images(record, where)


def layout(records: Iterable[Record]) -> pa.Schema:
    """The columns of all records together.

    Raises:
        DataError: a column has values of kinds that parquet cannot hold in one.
    """
    schema, batch = pa.schema([]), []
    for record in records:
        batch.append(_format_row(record))
        if len(batch) == _ROWS:
            schema, batch = _unify_schema(schema, batch), []
    return _unify_schema(schema, batch) if batch else schema


def _unify_schema(schema: pa.Schema, rows: list[dict[str, Any]]) -> pa.Schema:
    for name in dict.fromkeys(name for row in rows for name in row):
        fixed = {"prompt": _MESSAGES, "messages": _MESSAGES}.get(name)
        try:
            kind = fixed or pa.array([row.get(name) for row in rows]).type
            schema = pa.unify_schemas([schema, pa.schema([(name, kind)])], promote_options="permissive")
        except (pa.ArrowException, OverflowError) as error:
            raise DataError(f"{name}: its values are not of one kind, as a column's must be: {error}") from error
    return schema


def write(path: Path, records: Iterable[Record], pictures: Pictures, schema: pa.Schema) -> int:
    """As `Format.write`: row groups are small, so that training reads single rows."""
    schema = schema.append(pa.field("images", _EMBEDDED if pictures.embeds else _AS_FILES))
    number = size = 0
    with replace_file(path) as temporary, pq.ParquetWriter(temporary, schema, max_rows_per_page=16) as writer:
        batch: list[dict[str, Any]] = []
        for record in records:
            batch.append({**_format_row(record), "images": [pictures.entry(image) for image in record.images]})
            number, size = number + 1, size + sum(len(image.data) for image in record.images)
            if len(batch) == _ROWS or size > _BYTES:
                writer.write_table(pa.Table.from_pylist(batch, schema=schema), row_group_size=_ROWS)
                batch, size = [], 0
        if batch:
            writer.write_table(pa.Table.from_pylist(batch, schema=schema), row_group_size=_ROWS)
    return number


def _format_row(record: Record) -> dict[str, Any]:
    row = dict(record.others)
    row["prompt" if record.is_rl else "messages"] = [{"role": role, "content": text} for role, text in record.messages]
    if record.tools is not None or not record.is_rl:
        row["tools"] = list(record.tools or ())
    if record.schemas is not None:
        row[_SCHEMAS] = dump_json(record.schemas, "tools")
    return row
