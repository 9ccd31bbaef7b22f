"""Preference data: parquet rows with verl's columns to samples, and the cursor that deals them out.

Columns: `data_source` (the track), `prompt` (messages; `<image>` where an image stands), `images` (structs of `bytes` or `path`),
`reward_model.ground_truth` (the label), and `extra_info` with what else is known: `id`, `texts` (candidate answers), `tools` (offered; by
default all), `expected_tools`, `target_box`. Images are checked here and not kept: a sample only says where they lie.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arm_rl.core import images
from arm_rl.core.config import DataConfig
from arm_rl.core.errors import UserError
from arm_rl.core.images import ImageError
from arm_rl.core.seeding import derive
from arm_rl.core.types import ImagePart, ImageRef, Message, Role, Sample
from arm_rl.rows import BrokenRows, DataError, read_rows

REQUIRED = ("data_source", "prompt", "reward_model")
OPTIONAL = ("images", "extra_info")
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
_PLACEHOLDER = re.compile("(<image>)")


def read_samples(files: Sequence[str], all_tools: Sequence[str], config: DataConfig | None = None) -> list[Sample]:
    """All samples of the files, in order. Every image is looked at, and none is kept.

    Args:
        files: parquet files.
        all_tools: those that there are; offered by a row that does not say which.
        config: what becomes of broken rows, and where images may lie; its `train` and `held_out` are not read here.

    Raises:
        DataError: a file or a row that cannot be used.
    """
    config = config or DataConfig()
    broken, tools = BrokenRows.of(config), tuple(all_tools)
    root = None if config.image_root is None else Path(config.image_root)
    samples: dict[str, Sample] = {}
    places: dict[str, str] = {}  # of the ids
    for path in files:
        for number, row in read_rows(path, REQUIRED, OPTIONAL, broken):
            where = f"{path}: row {number}"
            try:
                sample = _sample(path, number, row, tools, root, where)
                if sample.id in samples:
                    raise DataError(
                        f"{where}: the id {sample.id!r} stands twice, first in {places[sample.id]} (extra_info.id must be unique)"
                    )
            except UserError as error:
                broken.leave_out(error)
            else:
                samples[sample.id], places[sample.id] = sample, where
    broken.report(len(samples))
    return list(samples.values())


def _sample(path: str, number: int, row: dict[str, Any], all_tools: tuple[str, ...], root: Path | None, where: str) -> Sample:
    extra = _struct(row, "extra_info", where)
    track = row["data_source"]
    if not isinstance(track, str) or not re.fullmatch(r"\S+", track):
        raise DataError(
            f"{where}: data_source is {track!r:.80}; the track's name, a text without blanks, is needed: metrics are named by it"
        )
    shown = read_images(row.get("images"), path, root, where)
    messages, num_placeholders = parse_messages(row["prompt"], where)
    if num_placeholders != len(shown):
        raise DataError(f"{where}: prompt has {num_placeholders} <image> for {len(shown)} images")
    texts, tools, expected = (_names(extra, name, where) for name in ("texts", "tools", "expected_tools"))
    unknown = [name for name in tools or () if name not in all_tools]
    if unknown:
        raise DataError(
            f"{where}: extra_info.tools has {unknown[0]!r}, which no file of tools.files lists ({', '.join(all_tools) or 'none'})"
        )
    label = str(_struct(row, "reward_model", where).get("ground_truth", "")).strip().lower()
    if label not in ("true", "false") and not re.fullmatch("[1-9][0-9]?", label):
        raise DataError(f"{where}: reward_model.ground_truth is {label!r}; the number of the better answer, or true or false, is needed")
    if texts and label.isdecimal() and int(label) > len(texts):
        raise DataError(f"{where}: reward_model.ground_truth is {label}, and extra_info.texts has {len(texts)} answers")
    return Sample(
        id=sample_id(path, number, extra),
        track=track,
        messages=messages,
        images=tuple(
            ImageRef(path=path, row=number, index=index) if file is None else ImageRef(path=str(file))
            for index, (_, file) in enumerate(shown)
        ),
        texts=texts or (),
        label=label,
        tools=all_tools if tools is None else tools,
        expected_tools=expected or (),
        target_box=_box(extra.get("target_box"), where),
    )


def sample_id(path: str, number: int, extra_info: dict[str, Any] | None) -> str:
    """The id of a row's sample: its own, or one of the file's name and the row's number."""
    own = (extra_info or {}).get("id")
    return f"{Path(path).stem}-{number}" if own is None else str(own)


def read_images(entries: Any, path: str, root: Path | None, where: str) -> list[tuple[bytes, Path | None]]:
    """The images of a row, checked; with the file of each that has one of its own.

    Raises:
        DataError: one is broken, is missing, or lies where it may not.
    """
    if not isinstance(entries or [], list):
        raise DataError(f"{where}: images is {entries!r:.80}; a list of structs of bytes or path is needed")
    folder, found = Path(path).parent, []
    for index, entry in enumerate(entries or ()):
        try:
            data, file = images.read_entry(entry, folder, root)
            images.check(data)
            found.append((data, file))
        except ImageError as error:
            named = f" ({entry['path']})" if isinstance(entry, dict) and entry.get("path") and not entry.get("bytes") else ""
            raise DataError(f"{where}: images[{index}]{named}: {error}") from error
    return found


def _struct(row: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    value = row.get(name) or {}
    if not isinstance(value, dict):
        raise DataError(f"{where}: {name} is {value!r:.80}; a struct with named fields is needed")
    return value


def _names(extra: dict[str, Any], name: str, where: str) -> tuple[str, ...] | None:
    value = extra.get(name)
    if value is not None and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
        raise DataError(f"{where}: extra_info.{name} is {value!r:.80}; a list of texts is needed")
    return None if value is None else tuple(value)


def _box(value: Any, where: str) -> tuple[float, float, float, float] | None:
    if value is None:
        return None
    if not (isinstance(value, list) and len(value) == 4 and all(isinstance(edge, int | float) and 0 <= edge <= 1000 for edge in value)):
        raise DataError(f"{where}: extra_info.target_box is {value!r:.80}; x1, y1, x2, y2 from 0 to 1000 are needed")
    return (value[0], value[1], value[2], value[3])


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
                parts.append(ImagePart.original(originals))
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
