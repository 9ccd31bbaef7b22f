"""The audit: what is in a file, and each kind of thing that is wrong or suspicious, found where it was put and nowhere else."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PILImage
from PIL import ImageDraw

from arm_rl.core.images import Image
from jobs.prepare_data import main
from tests.support.scripted import ANSWER, ZOOM, call, raw_call

CHECK = "check_whether_response_word_count_in_range"
TOOLS = ["--tools", "configs/tools/image_zoom.yaml", "configs/tools/text_checks.yaml"]


def picture(seed, size=160):
    """A picture of some rectangles, another one for each seed."""
    drawn = PILImage.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(drawn)
    for number in range(6):
        x, y = (seed * 37 + number * 53) % (size - 60), (seed * 71 + number * 29) % (size - 60)
        pen.rectangle(
            [x, y, x + 20 + (seed * 13 + number * 7) % 40, y + 15 + (seed * 5 + number * 11) % 40],
            fill=(seed * 40 % 256, number * 40, 90),
        )
    return drawn


def encoded(drawn, kind="PNG", **options):
    buffer = io.BytesIO()
    drawn.save(buffer, format=kind, **options)
    return buffer.getvalue()


def row(number, *, image=None, text=None, label=None, texts=("a cat", "a dog"), **extra):
    return {
        "data_source": "zoom",
        "prompt": [{"role": "user", "content": text or f"<image>What is it, number {number}?"}],
        "images": [{"bytes": encoded(picture(number)) if image is None else image, "path": None}],
        "reward_model": {"ground_truth": label or str(1 + number % 2)},
        "extra_info": {"id": f"s{number}", "texts": list(texts), **extra},
    }


@pytest.fixture
def audit(tmp_path, capsys):
    """Audits rows, and held-out ones; gives the status, the report, and the text."""

    def audit(rows, held_out=(), *options, kind="parquet"):
        files = []
        for name, found in (("train", rows), ("held", held_out)):
            if found:
                files.append(tmp_path / f"{name}.{kind}")
                pq.write_table(pa.Table.from_pylist([*found]), files[-1])
        report = tmp_path / "report.json"
        command = [
            "audit",
            str(files[0]),
            *(["--held-out", str(files[1])] if held_out else []),
            "--json",
            str(report),
            *options,
        ]
        status = main(command)
        said = capsys.readouterr()
        return status, json.loads(report.read_text()), said.out + said.err

    return audit


def kinds(report):
    return {finding["what"]: finding["number"] for finding in report["findings"]}


def test_good_data_has_nothing_wrong(audit):
    status, report, said = audit(
        [row(number) for number in range(40)], [row(number) for number in range(40, 60)], *TOOLS
    )
    assert (status, report["findings"], report["ok"]) == (0, [], True)
    train, held = report["files"].values()
    assert (train["rows"], held["rows"], train["broken"], train["tracks"]) == (40, 20, 0, {"zoom": 40})
    assert train["labels"] == {"1": 20, "2": 20}
    assert (train["images"], train["different images"]) == (40, 40)
    assert "done: nothing is wrong; 0 suspicious" in said


def test_leaks_are_found_by_text_and_image(audit):
    """Word for word; with other blanks, case and a recompressed image; and an image under another question."""
    train = [row(number) for number in range(6)]
    held = [
        row(0),
        row(11, image=encoded(picture(1), "JPEG", quality=70), text="<image>what  is it, number 1?"),
        row(12, image=encoded(picture(2).resize((100, 100)))),
        row(13),
        row(14, text="<image>What is it, number 3?"),  # the same words about something else
    ]
    status, report, said = audit(train, held)
    leaks = [(one["level"], one["what"], one["number"], one["examples"]) for one in report["findings"]]
    assert leaks == [
        ("wrong", "leak", 1, ["train.parquet: s0 = held.parquet: s0"]),
        ("suspicious", "near leak", 1, ["train.parquet: s1 = held.parquet: s11"]),
        ("suspicious", "image leak", 1, ["train.parquet: s2 = held.parquet: s12"]),
    ]
    assert (status, report["ok"]) == (1, False)
    assert "error: 1 things are wrong" in said
    status, report, _ = audit(train, held[1:])
    assert (status, kinds(report)) == (0, {"near leak": 1, "image leak": 1})
    assert audit(train, held[1:], "--strict")[0] == 1


def test_between_training_files_nothing_leaks(tmp_path, capsys):
    for name in ("a", "b"):
        pq.write_table(pa.Table.from_pylist([row(0), row(1)]), tmp_path / f"{name}.parquet")
    assert main(["audit", str(tmp_path)]) == 0


def test_copies_and_contradictions(audit):
    rows = [row(0), {**row(0), "extra_info": {"id": "copy", "texts": ["a cat", "a dog"]}}, row(2)]
    status, report, _ = audit(rows)
    assert (status, kinds(report)) == (0, {"duplicate": 1})
    rows[1]["reward_model"] = {"ground_truth": "2"}
    status, report, _ = audit(rows)
    assert (status, kinds(report)) == (1, {"contradiction": 1, "duplicate": 1})
    rows[1]["extra_info"]["texts"] = ["a dog", "a cat"]
    status, report, _ = audit(rows)
    assert (status, kinds(report)) == (0, {"duplicate": 1}), "the answers are in the other order: so is the label"


@pytest.mark.parametrize(
    ("label_of", "texts_of", "found"),
    [
        (lambda n: "1" if n % 8 else "2", lambda n: ("a", "b"), {"label balance"}),
        (lambda n: "true", lambda n: (), {"label balance"}),
        (lambda n: "12"[n % 2], lambda n: ("longer", "no") if n % 2 == 0 else ("no", "longer"), {"length bias"}),
        (lambda n: "12"[n % 2], lambda n: ("longer", "no") if n % 4 < 2 else ("no", "longer"), set()),
        (lambda n: "1234"[n % 4], lambda n: ("a", "b", "c", "d"), set()),
        (lambda n: "12"[n % 2], lambda n: ("a", "b", "c", "d"), {"label balance"}),
    ],
    ids=["place", "verdict", "length", "no bias", "four places", "two of four places"],
)
def test_what_gives_the_answer_away(audit, label_of, texts_of, found):
    rows = [row(number, label=label_of(number), texts=texts_of(number)) for number in range(64)]
    status, report, _ = audit(rows)
    assert (status, set(kinds(report))) == (0, found)


def test_broken_rows_are_named(audit):
    rows = [row(0), row(1, image=b"not an image"), row(2, text="<image><image>")]
    status, report, said = audit(rows)
    assert (status, kinds(report)) == (1, {"broken": 2})
    assert "train.parquet: row 1: not a readable image" in said
    assert "row 2: the messages have 2 <image> for 1 images" in said


def test_tools_that_cannot_be_used(audit):
    rows = [
        row(0, expected_tools=[ZOOM], tools=[ZOOM, CHECK]),
        row(1, texts=(), expected_tools=[CHECK], tools=[]),
        row(2, expected_tools=["saw"], tools=[]),
        {**row(3, text="No image?", expected_tools=[ZOOM], tools=[]), "images": []},
    ]
    status, report, said = audit(rows, (), *TOOLS)
    assert (status, kinds(report)) == (1, {"tools": 3})
    assert (
        "s1: extra_info.expected_tools: check_whether_response_word_count_in_range needs a text of the memory" in said
    )
    assert "s2: extra_info.expected_tools: 'saw', which no tool file lists" in said
    assert "s3: extra_info.expected_tools: image_zoom_in_tool needs an image, and there is none" in said


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([call(), "observation_1: <image>", ANSWER], None),
        ([call(), "observation_1: <image>", call(image="observation_1"), "no", ANSWER], None),
        ([call(image="observation_1"), "no", ANSWER], "there is no image 'observation_1' by then (original_image)"),
        ([call(box=[1, 2]), "no", ANSWER], "arguments.bbox_2d: [1, 2] is too short"),
        ([call(name="saw"), "no", ANSWER], "a call of 'saw', which no tool file lists"),
        (["<tool_call>{</tool_call>", "no", ANSWER], "the call is not valid JSON"),
        ([call() + raw_call("{}")[len("<think>look closer</think>") :], "no", ANSWER], "2 calls in one turn"),
        ([call() + "So:", "no", ANSWER], "text after a call, which ends its turn: 'So:'"),
        ([call(name=CHECK, box=None, image=None), "no", ANSWER], f"a call of '{CHECK}', which is not offered ({ZOOM})"),
        ([call(box=["1", "2", "30", "40"]), "no", ANSWER], "arguments.bbox_2d[0]: '1' is not of type"),
        (
            [raw_call('{"name": "image_zoom_in_tool", "parameters": {}}'), "no", ANSWER],
            "no 'arguments', but 'parameters'",
        ),
        (
            [raw_call('{"name": "image_zoom_in_tool", "arguments": "{}"}'), "no", ANSWER],
            "the arguments are not a JSON object but a text",
        ),
        ([ANSWER, "no", ANSWER], "a tool message answers no call"),
    ],
)
def test_calls_of_demonstrations(audit, turns, message):
    written = [{"role": "user", "content": "<image>?"}]
    written += [{"role": "tool" if number % 2 else "assistant", "content": text} for number, text in enumerate(turns)]
    shown = [
        {"bytes": encoded(picture(seed)), "path": None}
        for seed in range(sum(one["content"].count("<image>") for one in written))
    ]
    status, report, said = audit(
        [{"id": "d", "data_source": "zoom", "messages": written, "images": shown, "tools": [ZOOM]}], (), *TOOLS
    )
    assert (status, [*kinds(report)]) == ((0, []) if message is None else (1, ["tools"]))
    assert message is None or message in said


def test_calls_are_looked_at_without_tool_files(audit):
    """By what the rows themselves offer."""
    written = [{"role": "user", "content": "Which?"}]
    written += [{"role": "assistant", "content": call(name="saw")}, {"role": "tool", "content": "no"}]
    written += [{"role": "assistant", "content": ANSWER}]
    status, report, said = audit([{"id": "d", "messages": written, "images": [], "tools": [ZOOM]}])
    assert (status, kinds(report)) == (1, {"tools": 1})
    assert f"d: a call of 'saw', which is not offered ({ZOOM})" in said


def test_a_prompt_that_ends_with_an_assistant_message(audit):
    said_before = row(0)
    said_before["prompt"].append({"role": "assistant", "content": "It is a cat."})
    status, report, said = audit([said_before, row(1)])
    assert (status, kinds(report)) == (1, {"tools": 1})
    assert "s0: the prompt ends with an assistant message" in said


def test_tokens_are_those_that_training_counts(audit, judge_folder, template):
    from arm_rl.data.samples import read_samples

    rows = [row(number, text="<image>" + "Which digit? " * (1 + number), tools=[ZOOM]) for number in range(5)]
    options = [
        "--tools",
        "configs/tools/digits.yaml",
        "--model",
        str(judge_folder),
        "--system-prompt",
        "configs/prompts/digits.txt",
    ]
    _, report, _ = audit(rows, (), *options)
    tokens = next(iter(report["files"].values()))["prompt tokens"]
    path = next(iter(report["files"]))
    (longest,) = [sample for sample in read_samples([path], [ZOOM]) if sample.id == "s4"]
    length = len(template.prompt_ids(longest, {"original_image": Image.from_pil(picture(4))}))
    assert tokens["p100"] == length
    status, report, said = audit(rows, (), *options, "--max-prompt-tokens", str(length - 1))
    assert (status, kinds(report)) == (0, {"too long": 1})
    assert f"s4: {length} tokens" in said


def test_a_file_that_cannot_be_read_is_named(tmp_path, capsys):
    (tmp_path / "a.parquet").write_text("no")
    assert main(["audit", str(tmp_path / "a.parquet")]) == 1
    assert "a.parquet: not a readable parquet file" in capsys.readouterr().err


def test_shards_read_with_ray_tell_the_same(local_ray, tmp_path, capsys, judge_folder):
    """Leaks across the shards, broken rows, tokens; and the error of a shard that cannot be read."""
    shards = [[row(number) for number in range(start, start + 8)] for start in (0, 8, 16)]
    shards[1].append({**row(99), "images": []})
    for number, rows in enumerate(shards):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{number}.parquet")
    held = tmp_path / "held" / "held.parquet"
    held.parent.mkdir()
    pq.write_table(pa.Table.from_pylist([row(3), row(20)]), held)
    reports = []
    for name, options in (("plain", []), ("ray", ["--ray"])):
        report = tmp_path / f"{name}.json"
        options = [*options, "--model", str(judge_folder), *TOOLS, "--json", str(report)]
        assert main(["audit", str(tmp_path), "--held-out", str(held), *options]) == 1
        reports.append(json.loads(report.read_text()))
    assert reports[0] == reports[1]
    assert kinds(reports[0]) == {"broken": 1, "leak": 2}
    capsys.readouterr()
    (tmp_path / "2.parquet").write_text("no")
    assert main(["audit", str(tmp_path), "--ray"]) == 1
    assert "2.parquet: not a readable parquet file" in capsys.readouterr().err
