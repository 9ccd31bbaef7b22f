"""Preference data: parquet rows with verl's columns to samples, and the cursor that deals them out.

Columns: `data_source` (the track), `prompt` (messages; `<image>` where an image stands), `images` (structs of `bytes` or `path`),
`reward_model.ground_truth` (the label), and `extra_info` with what else is known: `id`, `texts` (candidate answers), `tools` (offered; by
default all), `expected_tools`, `target_box`. Images are checked here and not kept: a sample says where they lie, and
is itself read when it is asked for.
"""

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arm_rl.core import images
from arm_rl.core.config import DataConfig
from arm_rl.core.errors import UserError
from arm_rl.core.images import Image, ImageError
from arm_rl.core.placeholders import count_images, split_at_images
from arm_rl.core.types import ImagePart, ImageRef, Message, Role, Sample
from arm_rl.data.epoch_order import Order
from arm_rl.data.lazy_rows import LazyRows, hash_row
from arm_rl.data.parquet_rows import BrokenRows, DataError, TooLong, expand_folders, read_rows

REQUIRED = ("data_source", "prompt", "reward_model")
OPTIONAL = ("images", "extra_info")
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")

# of a sample with its images by name; raises a UserError that says why not
Check = Callable[[Sample, Mapping[str, Image]], None]


def read_samples(
    files: Sequence[str],
    all_tools: Sequence[str],
    config: DataConfig | None = None,
    *,
    check: Check | None = None,
    broken: BrokenRows | None = None,
) -> LazyRows[Sample]:
    """All samples of the files, in order. Every row and every image is looked at here, and none is kept: a sample is read when asked for.

    Args:
        files: parquet files; a folder stands for those in it.
        all_tools: those that there are; offered by a row that does not say which.
        config: what becomes of broken rows, and where images may lie; its `train` and `held_out` are not read here.
        check: what else a sample must stand.
        broken: counts the rows that are left out.

    Raises:
        DataError: a file or a row that cannot be used.
    """
    config = config or DataConfig()
    broken, files = broken or BrokenRows.of(config), expand_folders(files)
    root = None if config.image_root is None else Path(config.image_root)
    reading = _RowContext(tuple(all_tools), root, file_names(files))
    samples = LazyRows(files, (*REQUIRED, "extra_info"), reading.reread, large_columns=("images",))
    ids = array("Q")
    for file, path in enumerate(files):
        for number, row in read_rows(path, REQUIRED, OPTIONAL, broken):
            where = f"{path}: row {number}"
            try:
                shown = read_images(row.get("images"), path, reading.root, where)
                sample = reading.parse_sample(path, number, row, [place for _, place in shown])
                if check is not None:
                    _apply_check(check, sample, [data for data, _ in shown], where)
            except UserError as error:
                broken.skip_row(error)
            else:
                values = [sample.id, *(row.get(name) for name in (*REQUIRED, "extra_info"))]
                samples.add(
                    file,
                    number,
                    sample.track,
                    content=hash_row(values, (data for data, _ in shown)),
                    large=any(place is not None for _, place in shown),
                )
                ids.append(int.from_bytes(hashlib.blake2b(sample.id.encode(), digest_size=8).digest()))
    _skip_duplicates(samples, np.frombuffer(ids, np.uint64), broken)
    broken.report(len(samples))
    return samples


def _skip_duplicates(samples: LazyRows[Sample], ids: np.ndarray, broken: BrokenRows) -> None:
    """Skip all but the first sample of an id; ids are compared by hashes of 64 bits, which rarely collide."""
    order = np.argsort(ids, kind="stable")
    doubles = np.flatnonzero(ids[order[1:]] == ids[order[:-1]]) + 1
    for place in doubles[np.argsort(order[doubles])]:
        first = order[np.searchsorted(ids, ids[order[place]], sorter=order)]
        where, told = samples.location(order[place]), samples.location(first)
        identity = samples[int(first)].id
        broken.skip_row(
            DataError(f"{where}: the id {identity!r} stands twice, first in {told} (extra_info.id must be unique)")
        )
    samples.remove({int(place) for place in order[doubles]})


def _apply_check(check: Check, sample: Sample, shown: Sequence[bytes], where: str) -> None:
    names = [name for message in sample.messages for name in message.image_names]
    try:
        check(sample, dict(zip(names, map(Image.from_bytes, shown), strict=True)))
    except UserError as error:  # knows no rows
        raise (TooLong if isinstance(error, TooLong) else DataError)(f"{where}: {error}") from error


@dataclass(frozen=True, slots=True)
class _RowContext:
    """What a row is read with."""

    all_tools: tuple[str, ...]
    root: Path | None  # of images
    names: Mapping[str, str]  # of the files, for ids

    def reread(self, path: str, number: int, row: dict[str, Any]) -> Sample:
        """Return the sample of a row that was checked before; its images are in the row unless `images` is loaded."""
        if "images" in row:
            return self.parse_sample(
                path, number, row, [images.locate(entry, Path(path).parent, self.root) for entry in row["images"]]
            )
        num_images = sum(count_images(str(message["content"])) for message in row["prompt"])
        return self.parse_sample(path, number, row, [None] * num_images)

    def parse_sample(self, path: str, number: int, row: dict[str, Any], shown: Sequence[Path | None]) -> Sample:
        """Return the sample of a row; `shown` are the files of its images, None for images inside the row."""
        where = f"{path}: row {number}"
        extra = _get_struct(row, "extra_info", where)
        track = row["data_source"]
        if not isinstance(track, str) or not re.fullmatch(r"\S+", track):
            raise DataError(
                f"{where}: data_source is {track!r:.80}; the track's name, a text without blanks, is needed: metrics are named by it"
            )
        messages, num_placeholders = parse_messages(row["prompt"], where)
        if num_placeholders != len(shown):
            raise DataError(f"{where}: prompt has {num_placeholders} <image> for {len(shown)} images")
        if messages[-1].role == "assistant":
            raise DataError(
                f"{where}: prompt ends with an assistant message; the judge's turn follows a user's message"
            )
        texts, tools, expected = (_get_names(extra, name, where) for name in ("texts", "tools", "expected_tools"))
        unknown = [name for name in tools or () if name not in self.all_tools]
        if unknown:
            raise DataError(
                f"{where}: extra_info.tools has {unknown[0]!r}, which no file of tools.files lists ({', '.join(self.all_tools) or 'none'})"
            )
        return Sample(
            id=sample_id(self.names[path], number, extra),
            track=track,
            messages=messages,
            images=tuple(
                ImageRef(path=path, row=number, index=index) if file is None else ImageRef(path=str(file))
                for index, file in enumerate(shown)
            ),
            texts=texts or (),
            label=_parse_label(row, texts or (), where),
            tools=self.all_tools if tools is None else tools,
            expected_tools=expected or (),
            target_box=_parse_box(extra.get("target_box"), where),
        )


def _parse_label(row: dict[str, Any], texts: Sequence[str], where: str) -> str:
    label = str(_get_struct(row, "reward_model", where).get("ground_truth", "")).strip().lower()
    if label not in ("true", "false") and not re.fullmatch("[1-9][0-9]?", label):
        raise DataError(
            f"{where}: reward_model.ground_truth is {label!r}; the number of the better answer, or true or false, is needed"
        )
    if texts and label.isdecimal() and int(label) > len(texts):
        raise DataError(f"{where}: reward_model.ground_truth is {label}, and extra_info.texts has {len(texts)} answers")
    return label


def file_names(files: Iterable[str | Path]) -> dict[str, str]:
    """Return the name of each file in ids: the shortest end of its path, without its suffix, that no other file has."""
    paths = {str(file): Path(file).absolute().with_suffix("").parts for file in files}
    ends = Counter(parts[-depth:] for parts in paths.values() for depth in range(1, len(parts) + 1))
    names = {}
    for file, parts in paths.items():
        depth = next((depth for depth in range(1, len(parts)) if ends[parts[-depth:]] == 1), None)
        names[file] = file if depth is None else "/".join(parts[-depth:])
    return names


def sample_id(file_name: str, number: int, extra_info: dict[str, Any] | None) -> str:
    """Return the id of a row's sample: its own, or one of the file's name among `file_names` and the row's number."""
    own = (extra_info or {}).get("id")
    return f"{file_name}-{number}" if own is None else str(own)


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
            named = (
                f" ({entry['path']})"
                if isinstance(entry, dict) and entry.get("path") and not entry.get("bytes")
                else ""
            )
            raise DataError(f"{where}: images[{index}]{named}: {error}") from error
    return found


def _get_struct(row: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    value = row.get(name) or {}
    if not isinstance(value, dict):
        raise DataError(f"{where}: {name} is {value!r:.80}; a struct with named fields is needed")
    return value


def _get_names(extra: dict[str, Any], name: str, where: str) -> tuple[str, ...] | None:
    value = extra.get(name)
    if value is not None and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
        raise DataError(f"{where}: extra_info.{name} is {value!r:.80}; a list of texts is needed")
    return None if value is None else tuple(value)


def _parse_box(value: Any, where: str) -> tuple[float, float, float, float] | None:
    if value is None:
        return None
    if not (
        isinstance(value, list)
        and len(value) == 4
        and all(isinstance(edge, int | float) and 0 <= edge <= 1000 for edge in value)
    ):
        raise DataError(f"{where}: extra_info.target_box is {value!r:.80}; x1, y1, x2, y2 from 0 to 1000 are needed")
    return (value[0], value[1], value[2], value[3])


def parse_messages(written: Any, where: str) -> tuple[tuple[Message, ...], int]:
    r"""Return messages with named images for messages with `<image>` placeholders (`\<image>` is text), and the number of images.

    Images before the first answer are named `original_image`, `original_image_2`, ...; those in tool messages `observation_1`, ...

    Raises:
        DataError: not a list of {role, content} with known roles.
    """
    if not isinstance(written, list) or not written:
        raise DataError(f"{where}: a non-empty list of messages is needed")
    messages: list[Message] = []
    originals = observations = 0
    for message in written:
        if (
            not isinstance(message, dict)
            or message.get("role") not in ROLES
            or not isinstance(message.get("content"), str)
        ):
            raise DataError(
                f"{where}: a message needs a role ({', '.join(ROLES)}) and a text as content, not {message!r:.80}"
            )
        parts: list[str | ImagePart] = []
        for number, piece in enumerate(split_at_images(message["content"])):
            if number and message["role"] == "tool":
                observations += 1
                parts.append(ImagePart(name=f"observation_{observations}"))
            elif number:
                originals += 1
                parts.append(ImagePart.original(originals))
            if piece:
                parts.append(piece)
        messages.append(Message(role=message["role"], parts=tuple(parts)))
    return tuple(messages), originals + observations


class Cursor:
    """Deals samples out, epoch after epoch, each in an order of its own that depends on the seed only."""

    def __init__(self, samples: Sequence[Sample], seed: int, order: Order | None = None) -> None:
        """By default, an epoch deals out each sample once."""
        if not samples:
            raise DataError("there are no samples to deal out")
        self.samples, self.order = samples, order or Order(seed, len(samples))
        self.epoch = self.position = 0  # samples of the epoch dealt out so far

    @classmethod
    def from_weights(cls, samples: LazyRows[Sample], seed: int, weights: Mapping[str, float]) -> "Cursor":
        """Return a cursor that mixes the tracks by `data.weights`."""
        return cls(samples, seed, Order.from_weights(seed, samples.track_names, samples.tracks, weights))

    def sample_at(self, number: int) -> Sample:
        """Return the sample that is dealt out as number `number`, from 0 on, counted over all epochs."""
        epoch, position = divmod(number, len(self.samples))
        return self.samples[int(self.order.sample_numbers(epoch)[position])]

    def take(self, number: int) -> list[Sample]:
        """The next samples; an epoch that ends in between is followed by the next one."""
        taken: list[Sample] = []
        while len(taken) < number:
            chosen = self.order.sample_numbers(self.epoch)[self.position : self.position + number - len(taken)]
            taken += [self.samples[int(index)] for index in chosen]
            self.position += len(chosen)
            if self.position == len(self.samples):
                self.epoch, self.position = self.epoch + 1, 0
        return taken

    def state(self) -> dict[str, Any]:
        """Return the position, and the fingerprint of the data, for a checkpoint."""
        data = self.samples.fingerprint if isinstance(self.samples, LazyRows) else None
        return {"epoch": self.epoch, "position": self.position, "data": data}

    def require_same_data(self, state: Mapping[str, Any]) -> None:
        """Require that the samples are those of a checkpoint's state.

        Raises:
            DataError: If they are not.
        """
        if isinstance(self.samples, LazyRows):
            self.samples.require_same(state.get("data"))

    def restore(self, state: Mapping[str, Any]) -> None:
        """Resume from a checkpoint's state.

        Raises:
            DataError: If the state was written with other samples, or with more of them.
        """
        self.require_same_data(state)
        if state["position"] >= len(self.samples):
            raise DataError(
                f"the checkpoint had dealt out {state['position']} samples of an epoch, and now there are {len(self.samples)}"
            )
        self.epoch, self.position = state["epoch"], state["position"]
