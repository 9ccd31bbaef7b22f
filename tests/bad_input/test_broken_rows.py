"""Parquet files with broken rows: each row is named, or skipped and counted; and images that cannot be judged."""

import io
import json
import logging
import os
import struct
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PILImage

from arm_rl.core import images
from arm_rl.core.config import DataConfig
from arm_rl.core.images import Image, ImageError
from arm_rl.core.types import ImageRef
from arm_rl.data.demonstrations import read_demonstrations
from arm_rl.data.parquet_rows import DataError
from arm_rl.data.samples import read_samples
from jobs.command_line import run_guarded
from tests.support.scripted import ANSWER, noise

GOOD = Image.from_pil(noise(16, 16)).data
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SKIP = DataConfig(broken_rows="skip")


def row(identity, data=GOOD, path=None, **changes):
    values = {
        "data_source": "zoom",
        "prompt": [{"role": "user", "content": "<image>Which?"}],
        "images": [{"bytes": data, "path": path}],
        "reward_model": {"ground_truth": "1"},
        "extra_info": {
            "id": identity,
            "texts": ["4", "7"],
            "tools": ["zoom"],
            "expected_tools": ["zoom"],
            "target_box": [0.0, 0.0, 9.0, 9.0],
        },
    }
    extra = {**values["extra_info"], **changes.pop("extra", {})}
    return {**values, "extra_info": extra, **changes}


def write(path, rows, **options):
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return [str(path)]


ROWS = {
    "no track": ({"data_source": None}, "data_source is None; the track's name, a text without blanks"),
    "a track with a blank": ({"data_source": "a b"}, "data_source is 'a b'; the track's name"),
    "an empty track": ({"data_source": ""}, "data_source is ''"),
    "a tool that is not listed": (
        {"extra": {"tools": ["zoom", "saw"]}},
        r"extra_info.tools has 'saw', which no file .*\(zoom\)",
    ),
    "no text among the texts": (
        {"extra": {"texts": ["4", None]}},
        r"extra_info.texts is \['4', None\]; a list of texts",
    ),
    "a label beyond the answers": (
        {"reward_model": {"ground_truth": "3"}},
        "reward_model.ground_truth is 3, and .* has 2 answers",
    ),
    "a negative label": ({"reward_model": {"ground_truth": "-1"}}, "reward_model.ground_truth is '-1'"),
    "a label with words": ({"reward_model": {"ground_truth": "Answer 1"}}, "reward_model.ground_truth is 'answer 1'"),
    "a box outside": ({"extra": {"target_box": [0.0, 0.0, 2000.0, 9.0]}}, "extra_info.target_box is .*from 0 to 1000"),
    "a box without numbers": ({"extra": {"target_box": [None, 0.0, 1.0, 9.0]}}, "extra_info.target_box is "),
    "a box of NaN": ({"extra": {"target_box": [float("nan"), 0.0, 1.0, 9.0]}}, "extra_info.target_box is "),
    "the id of another": ({"extra": {"id": "0"}}, r"the id '0' stands twice, first in .*row 0"),
    "no image": ({"images": [{"bytes": None, "path": None}]}, r"images\[0\]: an image needs bytes or a path"),
    "null for an image": ({"images": [None]}, r"images\[0\]: an image needs bytes or a path, not None"),
    "empty bytes": ({"images": [{"bytes": b"", "path": None}]}, r"images\[0\]: an image needs bytes or a path"),
    "one image too many": ({"images": [{"bytes": GOOD, "path": None}] * 2}, "prompt has 1 <image> for 2 images"),
    "an absent file": (
        {"images": [{"bytes": None, "path": "gone.png"}]},
        r"images\[0\] \(gone.png\): .*gone.png: No such file",
    ),
    "a folder": ({"images": [{"bytes": None, "path": "."}]}, r"images\[0\] \(.\): the path '.' is not a file"),
    "a name too long": ({"images": [{"bytes": None, "path": "x" * 5000}]}, r"images\[0\] .*File name too long"),
    "a null in a name": ({"images": [{"bytes": None, "path": "a\0b"}]}, r"images\[0\] .*null byte"),
}


@pytest.mark.parametrize(("changes", "message"), ROWS.values(), ids=ROWS)
def test_a_row_is_named_or_skipped(tmp_path, caplog, changes, message):
    files = write(tmp_path / "d.parquet", [row("0"), row("1", **changes), row("2")])
    with pytest.raises(DataError, match=f"^{tmp_path}/d.parquet: row 1: {message}"):
        read_samples(files, ["zoom"])
    with caplog.at_level(logging.WARNING):
        kept = read_samples(files, ["zoom"], SKIP)
    assert [(sample.id, [ref.row for ref in sample.images]) for sample in kept] == [("0", [0]), ("2", [2])]
    assert caplog.messages[0].startswith(
        f"skipped 1 of 3 rows (data.broken_rows=skip):\n  {tmp_path}/d.parquet: row 1: "
    )


def encoded(pixels, kind="PNG", **options):
    buffer = io.BytesIO()
    pixels.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IEND", b"")
    )


def flipped(data):
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 255]) + data[len(data) // 2 + 1 :]


LARGE = noise(90, 90)
IMAGES = {
    "a text named .png": (b"no image at all", "none of the formats that are known"),
    "a page of HTML": (b"<!DOCTYPE html><title>404</title>", "none of the formats"),
    "a PDF": (b"%PDF-1.4\n", "none of the formats"),
    "an SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "none of the formats"),
    "a PNG cut short": (encoded(LARGE)[:-3000], "[Tt]runcated"),
    "a PNG with a flipped bit": (flipped(encoded(LARGE)), "broken PNG file"),
    "a JPEG cut short": (encoded(LARGE, "JPEG")[:-700], "truncated"),
    "a JPEG without its last bytes": (encoded(LARGE, "JPEG")[:-2], "truncated"),
    "a BMP cut short": (encoded(LARGE, "BMP")[:-700], "truncated"),
    "a WebP cut short": (encoded(LARGE, "WEBP")[:-700], "decoder"),
    "no width": (png_header(0, 5), "none of the formats"),
    "no area": (png_header(0, 0), "none of the formats"),
    "a decompression bomb": (png_header(50_000, 50_000), "2500000000 pixels.*bomb"),
    "50,000 px wide": (
        encoded(PILImage.new("L", (50_000, 20))),
        "50000 x 20 px: one side may be at most 200 times the other",
    ),
    "50,000 px high": (encoded(PILImage.new("L", (20, 50_000))), "20 x 50000 px: one side may be at most 200 times"),
}


@pytest.mark.parametrize("as_file", [False, True], ids=["bytes", "file"])
@pytest.mark.parametrize(("data", "message"), IMAGES.values(), ids=IMAGES)
def test_an_image_is_named_or_its_row_skipped(tmp_path, template, data, message, as_file):
    (tmp_path / "broken.png").write_bytes(data)
    broken = {"data": None, "path": "broken.png"} if as_file else {"data": data}
    files = write(tmp_path / "d.parquet", [row("0"), row("1", **broken)])
    place = r"images\[0\]" + (r" \(broken.png\)" if as_file else "")
    with pytest.raises(DataError, match=f"^{tmp_path}/d.parquet: row 1: {place}: .*{message}"):
        read_samples(files, ["zoom"])
    assert [sample.id for sample in read_samples(files, ["zoom"], SKIP)] == ["0"]
    spoken = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": ANSWER}]
    taught = [
        {"messages": spoken, "images": one["images"], "tools": ["image_zoom_in_tool"]}
        for one in (row("0"), row("1", **broken))
    ]
    files = write(tmp_path / "demonstrations.parquet", taught)
    with pytest.raises(DataError, match=f"^{tmp_path}/demonstrations.parquet: row 1: {place}: .*{message}"):
        read_demonstrations(files, template)
    assert len(read_demonstrations(files, template, SKIP)) == 1


MOVING = encoded(noise(9, 9), "GIF", save_all=True, append_images=[noise(9, 9, 1)])
UNUSUAL = {
    "animated": MOVING,
    "wide": encoded(PILImage.new("L", (50_000, 300))),
    "one pixel": encoded(noise(1, 1)),
    "WebP": encoded(LARGE, "WEBP"),
}


@pytest.mark.parametrize("data", UNUSUAL.values(), ids=UNUSUAL)
def test_an_unusual_image_is_taken_and_shown(tmp_path, template, data):
    (sample,) = read_samples(write(tmp_path / "d.parquet", [row("0", data)]), ["zoom"])
    image = images.load(sample.images[0])
    assert template.view.resize(image).size == template.view.resized_size(*image.size)


PATHS = {
    "up and away": "../secret.png",
    "up and back down": "sub/../../secret.png",
    "absolute": "{outside}/secret.png",
    "a link to a file": "link.png",
    "a link to a folder": "linked/secret.png",
    "the password file": "../../../../../../../../etc/passwd",
    "a device": "/dev/zero",
}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_path_cannot_leave_its_root(tmp_path, path):
    """The default root is the data file's folder; a wider one is the user's to give."""
    inside, outside = tmp_path / "data", tmp_path
    (inside / "sub").mkdir(parents=True)
    (outside / "secret.png").write_bytes(GOOD)
    (inside / "link.png").symlink_to(outside / "secret.png")
    (inside / "linked").symlink_to(outside)
    path = path.format(outside=outside)
    files = write(inside / "d.parquet", [row("0", None, path)])
    with pytest.raises(
        DataError, match=r"row 0: images\[0\] .*leads out of .*/data, which images may not leave \(data.image_root\)"
    ):
        read_samples(files, ["zoom"])
    with pytest.raises(ImageError, match="leads out of"):
        images.load(ImageRef(path=files[0], row=0))
    wider = DataConfig(image_root=str(outside))
    if path.endswith("secret.png") or path == "link.png":
        (sample,) = read_samples(files, ["zoom"], wider)
        assert images.load(sample.images[0]).data == GOOD
    else:
        with pytest.raises(DataError, match="leads out of"):
            read_samples(files, ["zoom"], wider)


def test_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match="the path 'pipe.png' is not a file"):
        read_samples(write(tmp_path / "d.parquet", [row("0", None, "pipe.png")]), ["zoom"])


def many(path, **options):
    rows = [row(str(number)) | {"data_source": f"track{number}"} for number in range(30)]
    return write(path, rows, row_group_size=10, compression="none", use_dictionary=False, **options)


def test_a_corrupt_row_group_costs_its_rows_alone(tmp_path, caplog):
    files = many(tmp_path / "d.parquet", write_page_checksum=True)
    data = bytearray((tmp_path / "d.parquet").read_bytes())
    data[data.index(b"track15")] ^= 255
    (tmp_path / "d.parquet").write_bytes(data)
    with pytest.raises(DataError, match=r"d.parquet: rows 10 to 19 cannot be read: .*CRC"):
        read_samples(files, ["zoom"])
    assert [sample.id for sample in read_samples(files, ["zoom"], SKIP)] == [
        str(number) for number in (*range(10), *range(20, 30))
    ]
    assert caplog.messages[0].startswith("skipped 10 of 30 rows")


def test_a_text_that_is_not_utf_8_costs_its_row(tmp_path):
    files = many(tmp_path / "d.parquet")
    data = (tmp_path / "d.parquet").read_bytes()
    (tmp_path / "d.parquet").write_bytes(data.replace(b"track15", b"\xff\xfeack15"))
    with pytest.raises(DataError, match=r"d.parquet: row 15: a text is not UTF-8"):
        read_samples(files, ["zoom"])
    assert len(read_samples(files, ["zoom"], SKIP)) == 29


BROKEN_FILES = {
    "cut short": lambda data: data[:-100],
    "cut in the middle": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "JSON lines": lambda data: json.dumps({"data_source": "a"}).encode() + b"\n",
    "another magic": lambda data: b"PARX" + data[4:-4] + b"PARX",
    "a broken footer": lambda data: data[:-60] + b"\xff" * 40 + data[-20:],
}


@pytest.mark.parametrize("broken", BROKEN_FILES.values(), ids=BROKEN_FILES)
def test_a_file_is_named_however_broken_rows_are_taken(tmp_path, broken):
    path = tmp_path / "d.parquet"
    write(path, [row("0")])
    path.write_bytes(broken(path.read_bytes()))
    for config in (DataConfig(), SKIP):
        with pytest.raises(DataError, match=f"^{path}: not a readable parquet file: "):
            read_samples([str(path)], ["zoom"], config)


COLUMNS = {
    "images as bytes": ({"images": [GOOD]}, r"images\[0\]: an image needs bytes or a path"),
    "images as a text": ({"images": "a.png"}, "images is 'a.png'; a list of structs"),
    "bytes as a text": ({"images": [{"bytes": "abc"}]}, r"images\[0\]: bytes of an image are 'abc'; a binary column"),
    "a path as a number": ({"images": [{"path": 3}]}, r"images\[0\] \(3\): the path 3 cannot be used"),
    "a track as a number": ({"data_source": 3}, "data_source is 3; the track's name"),
    "tools as a struct": ({"extra_info": {"id": "0", "tools": {"a": 1}}}, "extra_info.tools is .*; a list of texts"),
    "a box as a text": ({"extra_info": {"id": "0", "target_box": "0,0,1,1"}}, "extra_info.target_box is '0,0,1,1'"),
    "content in parts": (
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "?"}]}]},
        "a message needs a role .* and a text as content",
    ),
}


@pytest.mark.parametrize(("changes", "message"), COLUMNS.values(), ids=COLUMNS)
def test_a_column_of_another_type_is_named(tmp_path, changes, message):
    files = write(tmp_path / "d.parquet", [row("0") | changes])
    with pytest.raises(
        DataError, match=f"^{tmp_path}/d.parquet: row 0: .*{message}|^{tmp_path}/d.parquet: row 0: {message}"
    ):
        read_samples(files, ["zoom"])
    with pytest.raises(DataError, match=f"none of the 1 rows can be used:\n  {tmp_path}/d.parquet: row 0: "):
        read_samples(files, ["zoom"], SKIP)


def test_what_was_skipped_is_said_again_in_the_last_line(tmp_path, capsys):
    files = write(
        tmp_path / "d.parquet",
        [row(str(number), extra={"tools": ["saw" if number % 2 else "zoom"]}) for number in range(40)],
    )

    def job():
        return f"done: {len(read_samples(files, ['zoom'], SKIP))} samples"

    assert run_guarded(job) == 0
    assert capsys.readouterr().out == "done: 20 samples; skipped 20 of 40 rows (data.broken_rows=skip)\n"


def test_a_file_cut_short_under_a_reader_is_an_error_and_no_crash(tmp_path):
    """Mapped into memory, it would kill the process."""
    path = tmp_path / "d.parquet"
    write(path, [row(str(number), encoded(noise(80, 80, number))) for number in range(40)], row_group_size=10)
    assert images.load(ImageRef(path=str(path), row=0)).size == (80, 80)
    os.truncate(path, 1000)
    with pytest.raises(ImageError, match="d.parquet: not a readable parquet file with images"):
        images.load(ImageRef(path=str(path), row=39))
