"""What an audit keeps of a row, and what it tells of a file."""

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import imagehash
import numpy as np

from arm_rl.core.images import Image
from arm_rl.core.placeholders import count_images
from arm_rl.core.template import Template
from arm_rl.core.types import Sample
from arm_rl.data.image_store import ImageSource
from arm_rl.data.parquet_rows import BrokenRows
from arm_rl.data.samples import parse_messages
from arm_rl.prepare.audit.calls import find_faults
from arm_rl.prepare.formats import FORMATS, guess_format
from arm_rl.prepare.records import Record

BITS = 256  # of a perceptual hash
_AT_A_TIME = 64  # rows whose images are in memory


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditRow:
    """What is kept of a row."""

    name: str  # its id, or its place among the file's good rows
    text: str  # of all that is not the policy's, in one form whatever its blanks and case
    images: tuple[str, ...]  # keys of the content of the prompt's images
    image_hashes: tuple[bytes, ...]  # perceptual hashes of these: BITS bits each
    track: str
    label: str  # empty for a demonstration
    texts: tuple[str, ...]  # the answers to judge
    num_tokens: int | None  # of the prompt
    faults: tuple[str, ...]  # tool calls that cannot be carried out


@dataclass(frozen=True, kw_only=True, slots=True)
class FileContents:
    """A file."""

    path: Path
    held_out: bool = False
    rows: list[AuditRow]
    num_broken: int
    reasons: list[str] = field(default_factory=list)  # of some broken rows

    def summary(self) -> dict[str, Any]:
        """In numbers."""
        tokens = [row.num_tokens for row in self.rows if row.num_tokens is not None]
        at = (0, 50, 90, 99, 100)
        return {
            "rows": len(self.rows),
            "broken": self.num_broken,
            "tracks": dict(Counter(row.track for row in self.rows).most_common()),
            "labels": dict(sorted(Counter(row.label for row in self.rows if row.label).items())),
            "images": sum(len(row.images) for row in self.rows),
            "different images": len({key for row in self.rows for key in row.images}),
            **(
                {"prompt tokens": {f"p{q}": int(value) for q, value in zip(at, np.percentile(tokens, at), strict=True)}}
                if tokens
                else {}
            ),
        }


def read(
    path: Path,
    *,
    read_as: str | None = None,
    image_root: Path | None = None,
    held_out: bool = False,
    schemas: Mapping[str, Any],
    template: Template | None = None,
    on_row: Callable[[], object] = lambda: None,
) -> FileContents:
    """Looks at every row and image of a file. With a template, the tokens of prompts are counted.

    Raises:
        DataError: the file cannot be read at all.
    """
    broken = BrokenRows(skip=True)
    source = ImageSource(path.parent, image_root)
    records = enumerate(FORMATS[read_as or guess_format(path)].read(path, source.read, broken))
    rows: list[AuditRow] = []
    with ThreadPoolExecutor() as pool:  # decoding and scaling leave Python's lock
        while batch := list(itertools.islice(records, _AT_A_TIME)):
            for row in pool.map(partial(_audit_row, schemas=schemas, template=template), batch):
                rows.append(row)
                on_row()
    return FileContents(path=path, held_out=held_out, rows=rows, num_broken=broken.number, reasons=broken.reasons)


def _audit_row(numbered: tuple[int, Record], *, schemas: Mapping[str, Any], template: Template | None) -> AuditRow:
    number, record = numbered
    extra = record.others.get("extra_info", {})
    name = str(extra.get("id", record.others.get("id", f"row {number}")))
    label = str(record.others.get("reward_model", {}).get("ground_truth", "")).strip().lower()
    prompt = list(itertools.takewhile(lambda message: message[0] != "assistant", record.messages))
    shown = record.images[: sum(count_images(text) for _, text in prompt)]
    return AuditRow(
        name=name,
        text=normalise_text(" ".join(text for _, text in prompt)),
        images=tuple(image.key for image in shown),
        image_hashes=tuple(perceptual_hash(image) for image in shown),
        track=str(record.others.get("data_source", "")),
        label=label,
        texts=tuple(extra.get("texts", ())),
        num_tokens=None if template is None else _count_tokens(prompt, shown, record, template),
        faults=tuple(find_faults(record, schemas)),
    )


def normalise_text(text: str) -> str:
    """Return a text without the differences that copies may have: case, blanks, and ways to write one character."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()


def perceptual_hash(image: Image) -> bytes:
    """Return a hash of `BITS` bits; similar images differ in few of them."""
    return np.packbits(imagehash.phash(image.pil(), hash_size=16).hash).tobytes()


def _count_tokens(prompt: Sequence[tuple[str, str]], shown: Sequence[Image], record: Record, template: Template) -> int:
    messages, _ = parse_messages([{"role": role, "content": text} for role, text in prompt], "a row")
    tools = (
        record.tools
        if record.tools is not None
        else record.others.get("extra_info", {}).get("tools", tuple(template.schemas))
    )
    names = [name for message in messages for name in message.image_names]
    sample = Sample(
        id="", track="", messages=messages, label="", tools=tuple(name for name in tools if name in template.schemas)
    )
    return len(template.prompt_ids(sample, dict(zip(names, shown, strict=True))))


def iterate_rows(contents: Sequence[FileContents]) -> Iterator[tuple[int, AuditRow]]:
    """Yield all rows of all files, each with the number of its file."""
    return ((number, row) for number, one in enumerate(contents) for row in one.rows)
