"""What both sides of the benchmarks against TRL work on: the judge's folder, the data and the limits. Read by TRL's environment too."""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image as PILImage

from arm_rl.core.images import Image
from arm_rl.core.parsing import parse_judgment

TOOL = "image_zoom_in_tool"
MIN_SIDE = 28  # pixels of a crop, as in the demo's tool file
RIGHT_FORM, RIGHT_JUDGMENT = 0.3, 0.7  # TRL's reward: as our side's `accuracy`


@dataclass(frozen=True, kw_only=True)
class TrlTask:
    """Judge, data and limits of one comparison, the same for both sides."""

    model: str  # folder of the judge
    data: str  # parquet file of the samples
    system_prompt: str  # its text
    notice: str  # ends the tool's observation: the second turn has to answer
    num_samples: int  # of a step
    group_size: int  # trajectories of a sample
    turn_tokens: int  # sampled in a turn at most
    response_tokens: int  # after the prompt at most, the observation counted
    num_threads: int  # of TRL's process
    micro_batch: int  # trajectories of one of TRL's forward and backward passes
    seed: int = 0

    @property
    def num_trajectories(self) -> int:
        """Number of trajectories of a step."""
        return self.num_samples * self.group_size

    def write(self, path: Path) -> Path:
        """Write the task to a file and return its path."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2))
        return path

    @classmethod
    def read(cls, path: Path) -> "TrlTask":
        """Read a file that `write` made."""
        return cls(**json.loads(path.read_text()))


def copy_judge(source: Path, target: Path, *, view: tuple[int, int] | None = None) -> Path:
    """Copies a judge's folder; its processor then shows images of `view` = (fewest, most) pixels."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_file():
            shutil.copy(path, target / path.name)
    if view is not None:
        _set_view(target / "preprocessor_config.json", (), view)
        _set_view(target / "processor_config.json", ("image_processor",), view)
    return target


def _set_view(path: Path, section: tuple[str, ...], view: tuple[int, int]) -> None:
    if not path.is_file():
        return
    written = json.loads(path.read_text())
    part = written
    for name in section:
        part = part[name]
    part["size"] = {"shortest_edge": view[0], "longest_edge": view[1]}
    path.write_text(json.dumps(written, indent=2))


def enlarge_images(path: Path, side: int) -> None:
    """Makes all images of a parquet file squares of `side` pixels."""
    table = pq.read_table(path)
    images = [
        [{"bytes": _enlarged(one["bytes"], side), "path": None} for one in row]
        for row in table.column("images").to_pylist()
    ]
    number = table.schema.get_field_index("images")
    field = table.schema.field(number)
    pq.write_table(table.set_column(number, field, pa.array(images, type=field.type)), path, row_group_size=16)


def _enlarged(data: bytes, side: int) -> bytes:
    image = Image.from_bytes(data).pil()
    return Image.from_pil(image.resize((side, side), PILImage.Resampling.BICUBIC)).data


def crop_box(box: list[float], width: int, height: int) -> tuple[int, int, int, int]:
    """The pixels of a box that is written in thousandths.

    Raises:
        ValueError: not a box.
    """
    x1, y1, x2, y2 = (min(max(float(value), 0.0), 1000.0) for value in box)
    if x1 >= x2 or y1 >= y2:
        raise ValueError(f"bbox_2d: needs x1 < x2 and y1 < y2, not {box}")
    left, top = int(x1 * width / 1000), int(y1 * height / 1000)
    right, bottom = max(int(x2 * width / 1000), left + MIN_SIDE), max(int(y2 * height / 1000), top + MIN_SIDE)
    return left, top, right, bottom


def reward(completion: list[dict[str, Any]], label: str) -> float:
    """Of one session, from its last turn as TRL reads it: what follows the thought."""
    text = completion[-1].get("content")
    judgment = parse_judgment(text) if isinstance(text, str) else None
    return 0.0 if judgment is None else RIGHT_FORM + RIGHT_JUDGMENT * (judgment == label)
