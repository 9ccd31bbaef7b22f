"""Trajectories on disk: a parquet file with one row a trajectory, and beside it the images, each once. Reading gives back all of it, or
some rows, some images, or only what is light.

trajectories/stage2-000040.parquet          rows; the stage and the step stand in the schema's metadata too
trajectories/images/stage2-000040.parquet   key, bytes
"""

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from arm_rl.core.atomic_file import replace_file
from arm_rl.core.images import Image
from arm_rl.core.types import (
    ImageInfo,
    ImagePart,
    ImageRef,
    Message,
    Sample,
    ScoredTrajectory,
    ToolCall,
    ToolEvent,
    Trajectory,
    Turn,
)

ROWS_READ_TOGETHER, IMAGES_READ_TOGETHER = 64, 8  # of a file: its row groups, so that a few are read without the others


@dataclass(frozen=True, kw_only=True, slots=True)
class TrajectoryLog:
    """What a file holds."""

    stage: str
    step: int
    scored: tuple[ScoredTrajectory, ...]
    samples: dict[str, Sample]  # by id
    images: dict[str, Image]  # by key; those that were written


def file_name(stage: str, step: int) -> str:
    """The name of a step's file: sorted by name, a stage's files are in order."""
    return f"{stage.replace('/', '-')}-{step:06d}.parquet"


def write(
    path: Path,
    scored: Sequence[ScoredTrajectory],
    samples: Mapping[str, Sample],
    images: Mapping[str, Image],
    *,
    stage: str = "",
    step: int = 0,
) -> None:
    """Writes trajectories, the samples they belong to and those of the images that they show.

    Args:
        path: `…/trajectories/NAME.parquet`; the images go to `…/trajectories/images/NAME.parquet`.
        scored: the rows.
        samples: by id: at least those of the rows.
        images: by key; where one is missing, the trajectory keeps its key and the image is not there when it is read.
        stage: of the training, or of an evaluation.
        step: of the stage.
    """
    rows = [_trajectory_row(one, samples[one.trajectory.sample_id]) for one in scored]
    shown = {info.key for one in scored for info in one.trajectory.images}
    pixels = [{"key": key, "bytes": images[key].data} for key in sorted(shown & images.keys())]
    metadata = {"arm_rl.stage": stage, "arm_rl.step": str(step)}
    _write_table(_images_path(path), pa.Table.from_pylist(pixels, schema=_IMAGES), IMAGES_READ_TOGETHER)
    _write_table(path, pa.Table.from_pylist(rows, schema=_ROWS.with_metadata(metadata)), ROWS_READ_TOGETHER)


def remove(path: Path) -> None:
    """Removes what `write` wrote, if it is there."""
    for file in (path, _images_path(path)):
        file.unlink(missing_ok=True)


def read(path: Path) -> TrajectoryLog:
    """Reads what `write` wrote."""
    table = pq.read_table(path)
    metadata = table.schema.metadata
    rows = table.to_pylist()
    pixels = pq.read_table(_images_path(path)).to_pylist()
    return TrajectoryLog(
        stage=metadata[b"arm_rl.stage"].decode(),
        step=int(metadata[b"arm_rl.step"]),
        scored=tuple(_parse_trajectory(row) for row in rows),
        samples={row["sample"]["id"]: _parse_sample(row["sample"]) for row in rows},
        images={entry["key"]: Image(entry["bytes"], entry["key"]) for entry in pixels},
    )


def read_summaries(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the columns `LIGHT` of each row, and the calls' JSON, status and seconds in `turns`."""
    for batch in pq.ParquetFile(path).iter_batches(ROWS_READ_TOGETHER, columns=LIGHT):
        yield from batch.to_pylist()


def read_rows(path: Path, rows: Sequence[int]) -> list[tuple[ScoredTrajectory, Sample]]:
    """Some rows, in the order asked for.

    Raises:
        IndexError: there are not so many.
    """
    modified = path.stat().st_mtime_ns
    read = [_read_row(path, modified, row) for row in rows]
    return [(_parse_trajectory(row), _parse_sample(row["sample"])) for row in read]


def read_images(path: Path, keys: Sequence[str]) -> dict[str, Image]:
    """Those of the images, by key, that were kept."""
    found = pq.read_table(_images_path(path), filters=pc.field("key").isin(pa.array(keys, pa.string()))).to_pylist()
    return {entry["key"]: Image(entry["bytes"], entry["key"]) for entry in found}


def count_rows(path: Path) -> int:
    """Return the number of rows of a file."""
    return pq.read_metadata(path).num_rows


def find_rows_with_text(path: Path, text: str) -> list[int]:
    """Return the rows that contain a text, in whatever case, in a prompt, a turn or an observation."""
    found: set[int] = set()
    start = 0
    for batch in pq.ParquetFile(path).iter_batches(ROWS_READ_TOGETHER, columns=TEXTS):
        found.update(start + row for column in batch.columns for row in _rows_containing(column, text))
        start += batch.num_rows
    return sorted(found)


def read_stage_and_step(path: Path) -> tuple[str, int]:
    """Return the stage and the step that a file belongs to."""
    metadata = pq.read_schema(path).metadata
    return metadata[b"arm_rl.stage"].decode(), int(metadata[b"arm_rl.step"])


def _struct(**types: pa.DataType) -> pa.DataType:
    return pa.struct(list(types.items()))


_TEXT, _IDS, _NAMES = pa.string(), pa.list_(pa.int32()), pa.list_(pa.string())
_IMAGES = pa.schema([("key", _TEXT), ("bytes", pa.binary())])

_EVENT = _struct(
    call=_TEXT,  # JSON: what a model writes in a call need not be valid Unicode, which a parquet string must be
    status=_TEXT,
    text=_TEXT,
    image_names=_NAMES,
    seconds=pa.float64(),
)
_TURN = _struct(
    token_ids=_IDS,
    logprobs=pa.list_(pa.float64()),
    text=_TEXT,
    finish_reason=_TEXT,
    tool_events=pa.list_(_EVENT),
    observation_ids=_IDS,
    call_forbidden=pa.bool_(),
    policy_version=pa.int64(),
)
_SAMPLE = _struct(
    id=_TEXT,
    track=_TEXT,
    # a part has one of the two
    messages=pa.list_(_struct(role=_TEXT, parts=pa.list_(_struct(text=_TEXT, image=_TEXT)))),
    images=pa.list_(_struct(path=_TEXT, row=pa.int64(), index=pa.int64())),
    texts=_NAMES,
    label=_TEXT,
    tools=_NAMES,
    expected_tools=_NAMES,
    target_box=pa.list_(pa.float64()),
)
_ROWS = pa.schema(
    {
        "sample_id": _TEXT,
        "track": _TEXT,
        "group_id": _TEXT,
        "index": pa.int64(),
        "reward": pa.float64(),
        "parts": pa.map_(_TEXT, pa.float64()),
        "correct": pa.bool_(),
        "format_ok": pa.bool_(),
        "scorer_error": _TEXT,
        "end": _TEXT,
        "error": _TEXT,
        "seconds": pa.float64(),
        "prompt_ids": _IDS,
        "turns": pa.list_(_TURN),
        "images": pa.list_(_struct(name=_TEXT, key=_TEXT)),
        "sample": _SAMPLE,
    }
)


_CALLS = "turns.list.element.tool_events.list.element"
LIGHT = ["sample_id", "track", "group_id", "index", "reward", "correct", "format_ok", "end"]
LIGHT += [f"{_CALLS}.call", f"{_CALLS}.status", f"{_CALLS}.seconds"]
TEXTS = ["turns.list.element.text", f"{_CALLS}.text", "sample.messages.list.element.parts.list.element.text"]


def _rows_containing(column: pa.Array, text: str) -> list[int]:
    """Return the rows of a column, however nested, that contain a text."""
    if pa.types.is_list(column.type):
        inner = _rows_containing(column.flatten(), text)
        return sorted(set(pc.list_parent_indices(column).take(pa.array(inner, pa.int64())).to_pylist()))
    if pa.types.is_struct(column.type):
        return [
            row
            for number in range(column.type.num_fields)
            for row in _rows_containing(pc.struct_field(column, number), text)
        ]
    return pc.indices_nonzero(pc.match_substring(column, text, ignore_case=True)).to_pylist()


def _read_row(path: Path, modified: int, row: int) -> dict[str, Any]:
    for group, num_rows in enumerate(_row_group_sizes(path, modified)):
        if row < num_rows:
            return _read_row_group(path, modified, group).slice(row, 1).to_pylist()[0]
        row -= num_rows
    raise IndexError(f"{path}: {row + 1} rows after the last")


@functools.lru_cache(maxsize=64)
def _row_group_sizes(path: Path, modified: int) -> list[int]:
    metadata = pq.read_metadata(path)
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


@functools.lru_cache(maxsize=4)  # neighbours are asked for one after the other
def _read_row_group(path: Path, modified: int, group: int) -> pa.Table:
    return pq.ParquetFile(path).read_row_group(group)


def _trajectory_row(scored: ScoredTrajectory, sample: Sample) -> dict[str, Any]:
    trajectory = scored.trajectory
    return {
        **_field_values(trajectory, "sample_id", "track", "group_id", "index", "end", "error", "seconds", "prompt_ids"),
        **_field_values(scored, "reward", "correct", "format_ok"),
        "parts": list(scored.parts.items()),
        "scorer_error": scored.error,
        "turns": [_turn_row(turn) for turn in trajectory.turns],
        "images": [dataclasses.asdict(info) for info in trajectory.images],
        "sample": _sample_row(sample),
    }


def _turn_row(turn: Turn) -> dict[str, Any]:
    names = ("token_ids", "logprobs", "text", "finish_reason", "observation_ids", "call_forbidden", "policy_version")
    return {**_field_values(turn, *names), "tool_events": [_event_row(event) for event in turn.tool_events]}


def _event_row(event: ToolEvent) -> dict[str, Any]:
    return {
        **_field_values(event, "status", "text", "image_names", "seconds"),
        "call": json.dumps(dataclasses.asdict(event.call)),
    }


def _sample_row(sample: Sample) -> dict[str, Any]:
    messages = [
        {"role": message.role, "parts": [_part_row(part) for part in message.parts]} for message in sample.messages
    ]
    names = ("id", "track", "texts", "label", "tools", "expected_tools", "target_box")
    return {
        **_field_values(sample, *names),
        "messages": messages,
        "images": [dataclasses.asdict(ref) for ref in sample.images],
    }


def _part_row(part: str | ImagePart) -> dict[str, str | None]:
    return {"text": part, "image": None} if isinstance(part, str) else {"text": None, "image": part.name}


def _parse_trajectory(row: dict[str, Any]) -> ScoredTrajectory:
    trajectory = Trajectory(
        **{name: row[name] for name in ("sample_id", "track", "group_id", "index", "end", "error", "seconds")},
        prompt_ids=tuple(row["prompt_ids"]),
        turns=tuple(_parse_turn(turn) for turn in row["turns"]),
        images=tuple(ImageInfo(**info) for info in row["images"]),
    )
    return ScoredTrajectory(
        trajectory=trajectory,
        **{name: row[name] for name in ("reward", "correct", "format_ok")},
        parts=dict(row["parts"]),
        error=row["scorer_error"],
    )


def _parse_turn(row: dict[str, Any]) -> Turn:
    sequences = {name: tuple(row[name]) for name in ("token_ids", "logprobs", "observation_ids")}
    return Turn(**{**row, **sequences, "tool_events": tuple(_parse_event(event) for event in row["tool_events"])})


def _parse_event(row: dict[str, Any]) -> ToolEvent:
    return ToolEvent(**{**row, "call": ToolCall(**json.loads(row["call"])), "image_names": tuple(row["image_names"])})


def _parse_sample(row: dict[str, Any]) -> Sample:
    sequences = {name: tuple(row[name]) for name in ("texts", "tools", "expected_tools")}
    box = row["target_box"]
    return Sample(
        **{**row, **sequences, "target_box": None if box is None else tuple(box)}
        | {
            "messages": tuple(
                Message(role=one["role"], parts=tuple(_parse_part(part) for part in one["parts"]))
                for one in row["messages"]
            ),
            "images": tuple(ImageRef(**ref) for ref in row["images"]),
        }
    )


def _parse_part(row: dict[str, str | None]) -> str | ImagePart:
    if row["image"] is not None:
        return ImagePart(name=row["image"])
    assert row["text"] is not None
    return row["text"]


def _field_values(source: object, *names: str) -> dict[str, Any]:
    """Return the named fields of a dataclass as a dictionary."""
    return {name: getattr(source, name) for name in names}


def _images_path(path: Path) -> Path:
    return path.parent / "images" / path.name


def _write_table(path: Path, table: pa.Table, row_group_size: int) -> None:
    with replace_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=row_group_size)
