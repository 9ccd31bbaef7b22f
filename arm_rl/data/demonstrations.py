"""Demonstrations for the cold start: whole conversations in parquet, read as trajectories.

Columns: `messages` (role and content; `<image>` where an image stands; an assistant message is one turn, a tool message what came back),
`images` (structs of `bytes` or `path`, in order), `tools` (offered). Their trajectories pass through the same functions as those of
rollouts.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from arm_rl.core.atomic_file import replace_file
from arm_rl.core.config import DataConfig
from arm_rl.core.errors import UserError
from arm_rl.core.images import Image
from arm_rl.core.placeholders import join_at_images
from arm_rl.core.session import Session
from arm_rl.core.template import Template, TemplateError
from arm_rl.core.types import ImageInfo, ImagePart, Message, Sample, Trajectory, Turn
from arm_rl.data.calls import find_argument_faults, find_turn_faults, read_calls
from arm_rl.data.lazy_rows import LazyRows, hash_row
from arm_rl.data.parquet_rows import BrokenRows, DataError, TooLong, expand_folders, read_rows
from arm_rl.data.samples import parse_messages, read_images

_NEEDED = ("messages", "images", "tools")
_ROW_GROUP = 256  # rows
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("data_source", pa.string()),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        ("tools", pa.list_(pa.string())),
    ]
)


def write_demonstrations(path: Path, demonstrations: Iterable[tuple[Sample, Session]]) -> int:
    """Write finished sessions as demonstrations, with one row group in memory at a time.

    Returns:
        The number of demonstrations.
    """
    left, number = iter(demonstrations), 0
    with replace_file(path) as temporary, pq.ParquetWriter(temporary, _SCHEMA) as writer:
        while rows := _build_rows(islice(left, _ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), row_group_size=_ROW_GROUP)
            number += len(rows)
    return number


def _build_rows(demonstrations: Iterable[tuple[Sample, Session]]) -> list[dict[str, Any]]:
    rows = []
    for sample, session in demonstrations:
        messages = (*sample.messages, *session.messages)
        by_name = {info.name: session.images[info.key] for info in session.trajectory.images}
        images = [by_name[name] for message in messages for name in message.image_names]
        rows.append(
            {
                "id": sample.id,
                "data_source": sample.track,
                "messages": [{"role": message.role, "content": _format_content(message)} for message in messages],
                "images": [{"bytes": image.data, "path": None} for image in images],
                "tools": list(sample.tools),
            }
        )
    return rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Demonstration:
    """A conversation to learn from."""

    trajectory: Trajectory
    images: dict[str, Image]  # by key


def read_demonstrations(
    files: Sequence[str],
    template: Template,
    config: DataConfig | None = None,
    *,
    max_tokens: int | None = None,
    broken: BrokenRows | None = None,
) -> LazyRows[Demonstration]:
    """All demonstrations, in order. Each is looked at here, and none is kept: it is read again when it is asked for.

    `files`, `config` and `broken` are as for `data.read_samples`; demonstrations of more than `max_tokens` are left out and counted.

    Raises:
        DataError: a file or a row that cannot be used.
    """
    config = config or DataConfig()
    broken, files = broken or BrokenRows.of(config), expand_folders(files)
    root = None if config.image_root is None else Path(config.image_root)

    def decode(path: str, number: int, row: dict[str, Any]) -> Demonstration:
        where = f"{path}: row {number}"
        shown = [Image.from_bytes(data) for data, _ in read_images(row["images"], path, root, where)]
        try:
            trajectory = _build_trajectory(where, row["messages"], shown, _parse_tools(row["tools"], where), template)
        except TemplateError as error:  # knows no rows
            raise DataError(f"{where}: {error}") from error
        return Demonstration(trajectory=trajectory, images={image.key: image for image in shown})

    demonstrations = LazyRows(files, _NEEDED, decode)
    for file, path in enumerate(files):
        for number, row in read_rows(path, _NEEDED, ("data_source",), broken):
            try:
                demonstration = decode(path, number, row)
                trajectory = demonstration.trajectory
                if max_tokens is not None and trajectory.num_tokens > max_tokens:
                    raise TooLong(f"{path}: row {number}: {trajectory.num_tokens} tokens, max_tokens is {max_tokens}")
            except UserError as error:
                broken.skip_row(error)
            else:
                track = str(row.get("data_source") or trajectory.track)
                shown = (demonstration.images[info.key].data for info in trajectory.images)
                content = hash_row([track, row["messages"], row["tools"]], shown)
                demonstrations.add(file, number, track, content=content)
    broken.report(len(demonstrations))
    return demonstrations


def _parse_tools(written: Any, where: str) -> tuple[str, ...]:
    if not isinstance(written or [], list):
        raise DataError(f"{where}: tools is {written!r:.80}; a list of names is needed")
    return tuple(written or ())


def _build_trajectory(
    where: str, written: list[dict], shown: Sequence[Image], tools: tuple[str, ...], template: Template
) -> Trajectory:
    messages, num_images = parse_messages(written, where)
    if num_images != len(shown):
        raise DataError(f"{where}: messages have {num_images} <image> for {len(shown)} images")
    names = [name for message in messages for name in message.image_names]
    by_name = dict(zip(names, shown, strict=True))
    first = next((number for number, message in enumerate(messages) if message.role == "assistant"), None)
    if first is None or messages[-1].role != "assistant":
        raise DataError(f"{where}: the messages must hold assistant turns and end with one")
    sample = Sample(id=where, track="demonstration", messages=messages[:first], label="", tools=tools)
    turns: list[Turn] = []
    for number in range(first, len(messages), 2):
        message, observation = messages[number], messages[number + 1] if number + 1 < len(messages) else None
        if message.role != "assistant" or (observation is not None and observation.role != "tool"):
            raise DataError(f"{where}: after the prompt, assistant and tool messages must take turns")
        for fault in _find_faults(message, observation, tools, template):
            raise DataError(f"{where}: messages[{number}]: {fault}")
        calls = template.tool_format.parse(message.text) is not None
        turns.append(
            Turn(
                token_ids=template.turn_ids(message.text, ended=not calls),
                logprobs=(),
                text=message.text,
                finish_reason="stop",
                observation_ids=template.observation_ids(observation, by_name, turn_ended=not calls)
                if observation is not None
                else (),
            )
        )
    return Trajectory(
        sample_id=where,
        track="demonstration",
        group_id=where,
        index=0,
        prompt_ids=template.prompt_ids(sample, by_name),
        turns=tuple(turns),
        images=tuple(ImageInfo(name=name, key=by_name[name].key) for name in names),
        end="answered",
    )


def _find_faults(
    message: Message, observation: Message | None, tools: tuple[str, ...], template: Template
) -> Iterator[str]:
    """Yield why a turn may not be learned from. A call that fails may be, where the observation tells the error."""
    yield from find_turn_faults(message.text, template.tool_format, tools)
    if observation is not None and not read_calls(message.text, template.tool_format):
        yield "the tool message that follows answers no call"
    if observation is None or not observation.text.startswith("Error"):
        parameters = {name: schema["function"].get("parameters", {}) for name, schema in template.schemas.items()}
        yield from find_argument_faults(message.text, template.tool_format, parameters)


def _format_content(message: Message) -> str:
    pieces = [""]
    for part in message.parts:
        if isinstance(part, ImagePart):
            pieces.append("")
        else:
            pieces[-1] += part
    return join_at_images(pieces)
