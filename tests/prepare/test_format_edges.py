"""Formats of training data at their edges: odd calls, encodings and texts, and what other trainers read of what is written."""

import codecs
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arm_rl.core.images import load as load_image
from arm_rl.data.samples import read_samples
from jobs.prepare_data import main
from tests.prepare.test_conversion import PICTURES, read

SUFFIX_KINDS = {"out.json": "sharegpt", "out.jsonl": "openai", "out.parquet": "verl"}


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("", "{}"),
        (" ", "{}"),
        (None, "{}"),
        ({"n": 1}, '{"n": 1}'),
        ('{"n": 1}', '{"n": 1}'),
        ({"ü": [1]}, '{"ü": [1]}'),
    ],
)
def test_arguments_are_read_as_they_are_meant(tmp_path, given, written):
    made = [{"id": "call_0", "type": "function", "function": {"name": "zoom", "arguments": given}}]
    line = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": None, "tool_calls": made}]}
    (tmp_path / "in.jsonl").write_text(json.dumps(line))
    assert main(["convert", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl")]) == 0
    (call_,) = json.loads((tmp_path / "out.jsonl").read_text())["messages"][1]["tool_calls"]
    assert call_["function"] == {"name": "zoom", "arguments": written}


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"tool_calls": [{"function": {"name": "a", "parameters": {}}}]}, "'a' has no 'arguments', but 'parameters'"),
        (
            {"tool_calls": [{"function": {"name": "a", "arguments": [1]}}]},
            r"the arguments of 'a' are \[1\]; a JSON object",
        ),
        ({"tool_calls": [{"function": {"arguments": "{}"}}]}, "a function with a name"),
        ({"function_call": {"name": "a", "arguments": "{}"}}, "'function_call', the older form of 'tool_calls'"),
    ],
)
def test_a_call_that_is_misspelt_is_refused_with_its_word(tmp_path, capsys, message, told):
    line = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": None, **message}]}
    (tmp_path / "in.jsonl").write_text(json.dumps(line))
    assert main(["convert", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl")]) == 1
    assert re.search(told, capsys.readouterr().err)


def test_the_text_of_a_placeholder_goes_through_the_formats(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(PICTURES[0].data)
    parts = [
        {"type": "text", "text": "\\"},
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "text", "text": r"Is \<image> <image>?"},
    ]
    line = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "Write <image>."}]}
    (tmp_path / "in.jsonl").write_text(json.dumps(line))
    assert main(["convert", str(tmp_path / "in.jsonl"), str(tmp_path / "a.parquet")]) == 0
    assert main(["convert", str(tmp_path / "a.parquet"), str(tmp_path / "out.jsonl"), "--images", "files"]) == 0
    written = json.loads((tmp_path / "out.jsonl").read_text())["messages"]
    assert written[0]["content"][0] == parts[0]
    assert written[0]["content"][2] == parts[2]
    assert written[1]["content"] == "Write <image>."
    capsys.readouterr()
    assert main(["convert", str(tmp_path / "a.parquet"), str(tmp_path / "out.json")]) == 1
    assert "row 0: a text holds <image>, which LLaMA-Factory would read as an image" in capsys.readouterr().err


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("in.json", '[{"conversations": [{"from": "human", "value": "é\\ud800?"}, {"from": "gpt", "value": "!"}]}]'),
        (
            "in.jsonl",
            '{"messages": [{"role": "user", "content": "é\\ud800?"}, {"role": "assistant", "content": "!"}]}\r\n',
        ),
    ],
)
def test_marks_and_half_characters_are_no_obstacle(tmp_path, name, text, mark):
    (tmp_path / name).write_bytes(mark + text.encode())
    for out in ("out.json", "out.jsonl", "out.parquet"):
        assert main(["convert", str(tmp_path / name), str(tmp_path / out)]) == 0
        ((user, _),) = [one.messages for one in read(tmp_path / out, SUFFIX_KINDS[out])]
        assert user == ("user", "é??")


@pytest.mark.parametrize("name", ["in.json", "in.jsonl"])
def test_another_encoding_is_named_with_its_line(tmp_path, capsys, name):
    text = '[\n{"conversations": [{"from": "human", "value": "é"}]}]' if name == "in.json" else '\n{"messages": "é"}\n'
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    assert main(["convert", str(tmp_path / name), str(tmp_path / "out.parquet")]) == 1
    assert re.search(
        rf"error: \S+{name}: line 2: not UTF-8 text \(byte 0xe9 at column \d+\): save the file as UTF-8",
        capsys.readouterr().err,
    )


def test_images_as_files_are_read_by_verl(tmp_path):
    """As its data set does: bytes are opened where the key is there, and else the address under `image`."""
    row = {
        "data_source": "zoom",
        "prompt": [{"role": "user", "content": "<image>?"}],
        "images": [{"bytes": PICTURES[0].data, "path": None}],
        "reward_model": {"ground_truth": "1"},
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "in.parquet")
    assert main(["convert", str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"), "--images", "files"]) == 0
    (entry,) = pq.read_table(tmp_path / "out.parquet").to_pylist()[0]["images"]
    assert "bytes" not in entry
    assert entry["image"].startswith("file:///")
    assert Path(entry["image"].removeprefix("file://")).read_bytes() == PICTURES[0].data
    assert not Path(entry["path"]).is_absolute()
    (sample,) = read_samples([str(tmp_path / "out.parquet")], ())
    assert load_image(sample.images[0]) == PICTURES[0]
    del row["images"][0]["bytes"], row["images"][0]["path"]
    row["images"][0]["image"] = entry["image"]
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "verl.parquet")
    (sample,) = read_samples([str(tmp_path / "verl.parquet")], ())
    assert load_image(sample.images[0]) == PICTURES[0]
    assert read(tmp_path / "verl.parquet", "verl")[0].images == (PICTURES[0],)


def test_what_llama_factory_needs_to_know_is_printed(tmp_path, capsys):
    user, answer = {"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}
    rows = [
        {"messages": [{"role": "system", "content": "Be brief."}, user, answer], "images": []},
        {"messages": [user], "images": []},
        {"messages": [user, answer, answer, answer], "images": []},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"messages": row["messages"]}) + "\n" for row in rows))
    assert main(["convert", str(tmp_path / "in.jsonl"), str(tmp_path / "mine.json")]) == 0
    told = capsys.readouterr().out
    entry = json.loads(next(line for line in told.splitlines() if "dataset_info" in line).partition(": ")[2])
    columns = {"messages": "conversations", "images": "images", "system": "system"}
    assert entry == {"mine": {"file_name": "mine.json", "formatting": "sharegpt", "columns": columns}}
    assert "warning: LLaMA-Factory skips 2 rows" in told
    (tmp_path / "in.jsonl").write_text(json.dumps({"messages": [user, answer]}))
    assert main(["convert", str(tmp_path / "in.jsonl"), str(tmp_path / "mine.json")]) == 0
    assert "warning" not in capsys.readouterr().out
