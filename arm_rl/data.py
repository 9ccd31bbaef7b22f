"""Preference data: parquet rows with verl's columns to samples, and the cursor that deals them out.

Columns: `data_source` (the track), `prompt` (messages; `<image>` where an image stands), `images` (structs of `bytes` or `path`),
`reward_model.ground_truth` (the label), and `extra_info` with what else is known: `id`, `texts` (candidate answers), `tools` (offered; by
default all), `expected_tools`, `target_box`. Image bytes are not read here: a sample only says where they lie.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from arm_rl.core.errors import UserError
from arm_rl.core.seeding import derive
from arm_rl.core.types import ImagePart, ImageRef, Message, Role, Sample

REQUIRED = ("data_source", "prompt", "reward_model")
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
_PLACEHOLDER = re.compile("(<image>)")


class DataError(UserError):
    """Data that cannot be used; the message names the file and the row."""


def read_samples(files: Sequence[str], all_tools: Sequence[str]) -> list[Sample]:
    """All samples of the files, in order.

    Args:
        files: parquet files.
        all_tools: offered by a row that does not say which.

    Raises:
        DataError: a file or a row that cannot be used.
    """
    samples = [sample for file in files for sample in _read_file(file, tuple(all_tools))]
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise DataError(f"{', '.join(files)}: the id {sample.id!r} stands twice (extra_info.id must be unique)")
        seen.add(sample.id)
    return samples


def _read_file(path: str, all_tools: tuple[str, ...]) -> list[Sample]:
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: not a readable parquet file: {error}") from error
    missing = [column for column in REQUIRED if column not in file.schema_arrow.names]
    if missing:
        raise DataError(f"{path}: the column {missing[0]!r} is missing; found: {', '.join(file.schema_arrow.names)}")
    leaves = [file.schema.column(number).path for number in range(len(file.schema))]
    image_bytes = [leaf for leaf in leaves if leaf.startswith("images.") and leaf.endswith(".bytes")]
    if any(leaf.startswith("images.") and leaf not in image_bytes for leaf in leaves):  # else nothing would tell how many there are
        leaves = [leaf for leaf in leaves if leaf not in image_bytes]  # image bytes stay in the file
    rows = file.read(columns=leaves).to_pylist()
    if not rows:
        raise DataError(f"{path}: there are no rows")
    return [_sample(path, number, row, all_tools) for number, row in enumerate(rows)]


def _sample(path: str, number: int, row: dict[str, Any], all_tools: tuple[str, ...]) -> Sample:
    where = f"{path}: row {number}"
    extra = _struct(row, "extra_info", where)
    num_images = len(row.get("images") or ())
    messages, num_placeholders = parse_messages(row["prompt"], where)
    if num_placeholders != num_images:
        raise DataError(f"{where}: prompt has {num_placeholders} <image> for {num_images} images")
    label = str(_struct(row, "reward_model", where).get("ground_truth", "")).strip().lower()
    if label not in ("true", "false") and not re.fullmatch("[1-9][0-9]?", label):
        raise DataError(f"{where}: reward_model.ground_truth is {label!r}; the number of the better answer, or true or false, is needed")
    tools = extra.get("tools")
    box = extra.get("target_box")
    if box is not None and len(box) != 4:
        raise DataError(f"{where}: extra_info.target_box has {len(box)} numbers instead of 4")
    for name in ("texts", "tools", "expected_tools"):
        if not isinstance(extra.get(name) or [], list):
            raise DataError(f"{where}: extra_info.{name} is {extra[name]!r}; a list is needed")
    return Sample(
        id=f"{Path(path).stem}-{number}" if extra.get("id") is None else str(extra["id"]),
        track=str(row["data_source"]),
        messages=messages,
        images=tuple(ImageRef(path=path, row=number, index=index) for index in range(num_images)),
        texts=tuple(extra.get("texts") or ()),
        label=label,
        tools=all_tools if tools is None else tuple(tools),
        expected_tools=tuple(extra.get("expected_tools") or ()),
        target_box=None if box is None else (box[0], box[1], box[2], box[3]),
    )


def _struct(row: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    value = row.get(name) or {}
    if not isinstance(value, dict):
        raise DataError(f"{where}: {name} is {value!r:.80}; a struct with named fields is needed")
    return value


def parse_messages(written: Any, where: str) -> tuple[tuple[Message, ...], int]:
    """Messages with `<image>` placeholders to messages with named images, and the number of images.

    Images before the first answer are named `original_image`, `original_image_2`, ...; those in tool messages `observation_1`, ...

    Raises:
        DataError: not a list of {role, content} with known roles.
    """
    if not isinstance(written, list) or not written:
        raise DataError(f"{where}: a non-empty list of messages is needed")
    messages: list[Message] = []
    originals = observations = 0
    for message in written:
        if not isinstance(message, dict) or message.get("role") not in ROLES or not isinstance(message.get("content"), str):
            raise DataError(f"{where}: a message needs a role ({', '.join(ROLES)}) and a text as content, not {message!r:.80}")
        parts: list[str | ImagePart] = []
        for piece in filter(None, _PLACEHOLDER.split(message["content"])):
            if piece != "<image>":
                parts.append(piece)
            elif message["role"] == "tool":
                observations += 1
                parts.append(ImagePart(name=f"observation_{observations}"))
            else:
                originals += 1
                parts.append(ImagePart(name="original_image" if originals == 1 else f"original_image_{originals}"))
        messages.append(Message(role=message["role"], parts=tuple(parts)))
    return tuple(messages), originals + observations


@dataclass(slots=True)
class Cursor:
    """Deals samples out, epoch after epoch, each in an order of its own that depends on the seed only."""

    samples: Sequence[Sample]
    seed: int
    epoch: int = 0
    position: int = 0  # samples of the epoch dealt out so far

    def __post_init__(self) -> None:
        if not self.samples:
            raise DataError("there are no samples to deal out")

    def take(self, number: int) -> list[Sample]:
        """The next samples; an epoch that ends in between is followed by the next one."""
        taken: list[Sample] = []
        while len(taken) < number:
            order = np.random.default_rng(derive(self.seed, "epoch", self.epoch)).permutation(len(self.samples))
            chosen = order[self.position : self.position + number - len(taken)]
            taken += [self.samples[index] for index in chosen]
            self.position += len(chosen)
            if self.position == len(self.samples):
                self.epoch, self.position = self.epoch + 1, 0
        return taken

    def state(self) -> dict[str, int]:
        """Where it stands, for a checkpoint."""
        return {"epoch": self.epoch, "position": self.position}

    def restore(self, state: dict[str, int]) -> None:
        """Goes on from a checkpoint's state.

        Raises:
            DataError: it was written with more samples than there are now.
        """
        if state["position"] >= len(self.samples):
            raise DataError(f"the checkpoint had dealt out {state['position']} samples of an epoch, and now there are {len(self.samples)}")
        self.epoch, self.position = state["epoch"], state["position"]
