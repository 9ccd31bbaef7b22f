"""The published files become samples; what is wrong with one is named: file, row and key."""

import codecs
import json

import pytest

from arm_rl.benchmarks import BENCHMARKS
from arm_rl.benchmarks.base import ReadOptions
from arm_rl.benchmarks.files import BenchmarkError, ImageStore
from arm_rl.core import images
from tests.benchmarks import published
from tools.text.checks import CHECKS

ZOOM, PAGES = "image_zoom_in_tool", "doc_page_retrieval_by_query"
ALL_TOOLS = (ZOOM, PAGES, *CHECKS, "python_code_executor")


@pytest.fixture
def read(tmp_path):
    def read(name, path, **changes):
        reading = ReadOptions(**{"images": ImageStore(tmp_path / "kept"), "tools": ALL_TOOLS, **changes})
        return BENCHMARKS[name].read(path, reading)

    return read


def asked(item):
    return item.sample.messages[-1].text


def test_vl_rewardbench(tmp_path, read):
    ids = [
        "RLAIF-V-14",
        "RLHF-V-2",
        "hallucination_pair-401",
        "mathverse_2028",
        "mmmu_pro_test_1",
        "wildvision-battle-3",
        "LRVInstruction-000",
    ]
    items = read("vl_rewardbench", published.vl_rewardbench(tmp_path, ids))
    assert [item.row for item in items] == ids
    assert [item.categories["group"] for item in items] == [
        *["hallucination"] * 3,
        "reasoning",
        "reasoning",
        "general",
        "general",
    ]
    assert {item.sample.label for item in items} == {"1", "2"}, "the better answer is not always in the same place"
    for item in items:
        assert item.sample.texts[int(item.sample.label) - 1] == f"good of {item.row}"
        assert f"Answer {item.sample.label}: good of {item.row}" in asked(item)
        assert images.load(item.sample.images[0]).data == published.png()
        assert item.sample.tools == (ZOOM, "python_code_executor")
        assert item.sample.messages[0].image_names == ("original_image",)
    assert len(list((tmp_path / "kept").iterdir())) == 1, "equal images are kept once"


def test_vl_rewardbench_as_json_lines(tmp_path, read):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "x.png").write_bytes(published.png(9))
    row = {**published.vl_row("RLHF-V-1", query="<image>\nHow many?"), "image_path": "images/x.png"}
    del row["image"]
    (item,) = read("vl_rewardbench", published.write_jsonl(tmp_path / "data.jsonl", [row]))
    assert "<image>" not in asked(item)
    assert images.load(item.sample.images[0]).data == published.png(9)


def test_vl_rewardbench_the_same_pair_counts_once_and_another_one_of_the_same_id_too(tmp_path, read):
    row = published.vl_row("RLHF-V-1")
    other = published.vl_row("RLHF-V-1", response=["new", "other"])
    items = read("vl_rewardbench", published.write_parquet(tmp_path / "x.parquet", [row, row, other]))
    assert [item.row for item in items] == ["RLHF-V-1", "RLHF-V-1~2"]


def test_both_orders(tmp_path, read):
    first, second = read("vl_rewardbench", published.vl_rewardbench(tmp_path, ["RLHF-V-1"]), both_orders=True)
    assert (first.row, first.order) == (second.row, tuple(reversed(second.order)))
    assert {first.sample.label, second.sample.label} == {"1", "2"}
    assert first.sample.texts == tuple(reversed(second.sample.texts))
    assert first.sample.id != second.sample.id
    assert first.row_items == second.row_items == 2


def test_reward_bench_2(tmp_path, read):
    items = read("reward_bench_2", published.reward_bench_2(tmp_path), both_orders=True)
    choices = [item for item in items if item.kind == "choice"]
    assert [item.row for item in choices] == ["Factuality/0", "Factuality/1", "Math/2"]
    for item in choices:
        assert len(item.sample.texts) == item.num_options == 4
        assert item.sample.texts[int(item.sample.label) - 1].startswith("right 0")
        assert item.sample.tools == ("python_code_executor",)
        assert item.sample.images == ()
    ratings = [item for item in items if item.row == "Ties/tied:1"]
    assert [item.sample.label for item in ratings] == ["true", "true", "false", "false"]
    assert [item.sample.texts for item in ratings] == [
        ("right 0 of tied:1",),
        ("right 1 of tied:1",),
        ("wrong 0 of tied:1",),
        ("wrong 1 of tied:1",),
    ]
    assert {item.cluster for item in ratings} == {"Ties:1"}
    assert "from 1" in ratings[0].sample.messages[0].text


def test_vstar(tmp_path, read):
    items = read("vstar", published.vstar(tmp_path))
    assert [(item.row, item.sample.label) for item in items[:2]] == [
        ("direct_attributes/0", "A"),
        ("relative_position/1", "B"),
    ]
    assert items[0].sample.texts == ("rubber", "cotton", "kevlar", "leather")
    assert asked(items[0]).startswith("Question: What is the material of glove 0?\n\nOptions:\nA. rubber\nB. cotton\n")
    assert "given choices directly" not in asked(items[0])
    assert images.load(items[3].sample.images[0]).size == (90, 60)


@pytest.mark.parametrize("form", ["tsv", "parquet", "parquet with bytes"])
def test_hrbench(tmp_path, read, form):
    rows = published.hrbench_rows()
    if form == "tsv":
        path = published.hrbench(tmp_path, rows)
    else:
        changed = [
            {**row, "image": {"bytes": published.png(number // 4), "path": None}} for number, row in enumerate(rows)
        ]
        path = published.write_parquet(
            tmp_path / "hr_bench_4k.parquet", changed if form == "parquet with bytes" else rows
        )
    items = read("hrbench_4k", path)
    assert [item.sample.label for item in items] == list("ABCD") * 2
    assert all(item.sample.texts["ABCD".index(item.sample.label)].endswith("w") for item in items)
    assert [item.categories["cycle"] for item in items[:4]] == ["cycle_0", "cycle_1", "cycle_2", "cycle_3"]
    assert len({item.cluster for item in items}) == 2
    assert images.load(items[5].sample.images[0]).data == published.png(1)
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_armbench_vl(tmp_path, read):
    items = {item.row: item for item in read("armbench_vl", published.armbench_vl(tmp_path / "bench"))}
    assert {key: (item.kind, item.sample.label, item.categories["way"]) for key, item in items.items()} == {
        "fine_grained_perception/0": ("choice", "2", "2-way"),
        "fine_grained_perception/relpos-cb8b258c": ("choice", "3", "4-way"),
        "multimodal_long_document/0": ("truth", "true", "pointwise"),
        "multimodal_long_document/1": ("choice", "1", "2-way"),
        "multimodal_instruction_following/7": ("truth", "false", "pointwise"),
    }
    assert items["fine_grained_perception/0"].sample.tools == (ZOOM, "python_code_executor")
    document = items["multimodal_long_document/0"]
    assert document.sample.tools == (ZOOM, PAGES, "python_code_executor")
    assert "The document is named report." in asked(document)
    instruction = items["multimodal_instruction_following/7"]
    assert instruction.sample.tools == (ZOOM, *CHECKS, "python_code_executor")
    assert "Constraint: At most two sentences." in asked(instruction)
    assert instruction.sample.texts == ("answer 0 of 7",)
    assert not any("<image>" in asked(item) for item in items.values())


def test_armbench_vl_one_track_in_both_orders(tmp_path, read):
    path = published.armbench_vl(tmp_path / "bench") / "fine_grained_perception.jsonl"
    items = read("armbench_vl", path, both_orders=True)
    assert [(item.sample.label, item.order) for item in items] == [("2", (0, 1)), ("1", (1, 0)), ("3", (0, 1, 2, 3))]


BROKEN = [
    (
        "vl_rewardbench",
        "x.jsonl",
        [published.vl_row("a", image_path="/etc/passwd")],
        "row 0: image_path: a path below the benchmark's folder",
    ),
    (
        "vl_rewardbench",
        "x.jsonl",
        [published.vl_row("a", image_path="a/../../x.png")],
        "row 0: image_path: a path below the benchmark's",
    ),
    (
        "vl_rewardbench",
        "x.jsonl",
        [{**published.vl_row("a"), "image": None, "human_ranking": [0, 2]}],
        "row 0: human_ranking: ",
    ),
    (
        "vl_rewardbench",
        "x.parquet",
        [published.vl_row("a", image={"bytes": b"no image", "path": ""})],
        "row 0: image: not a readable image",
    ),
    (
        "vl_rewardbench",
        "x.parquet",
        [published.vl_row("a"), published.vl_row("b", query=None)],
        "row 1: query: is missing; found: id, ",
    ),
    (
        "vl_rewardbench",
        "x.jsonl",
        [{"id": "a", "query": "?", "response": ["one"]}],
        "row 0: response: a list of 2 or more texts",
    ),
    ("vl_rewardbench", "x.csv", [], "x.csv: a file that ends in .parquet or .jsonl is needed"),
    (
        "reward_bench_2",
        "x.jsonl",
        [published.rb2_row("3", "Ties")],
        "row 0: id: of Ties is written ref:N or tied:N, not '3'",
    ),
    (
        "reward_bench_2",
        "x.jsonl",
        [published.rb2_row("tied:3", "Ties")],
        "row 0: num_correct: 1 of 4 answers cannot be right in a tied row",
    ),
    (
        "reward_bench_2",
        "x.jsonl",
        [published.rb2_row("ref:3", "Ties", num_correct=True)],
        "row 0: num_correct: a whole number",
    ),
    ("reward_bench_2", "x.jsonl", [published.rb2_row("1", "Math")] * 2, "row 1: id: '1' stands twice in Math"),
    ("reward_bench_2", "x.jsonl", [], "x.jsonl: there are no rows"),
    (
        "vstar",
        "x.jsonl",
        [{"text": "Which?", "label": "A", "category": "c", "question_id": 1, "image": "x.jpg"}],
        "row 0: text: two or more lines",
    ),
    (
        "vstar",
        "x.jsonl",
        [{"text": "Q\n(A) a\n(B) b", "label": "C", "category": "c", "question_id": 1}],
        "row 0: label: one of A, B, not 'C'",
    ),
    (
        "vstar",
        "x.jsonl",
        [{"text": "Q\n(A) a\n(B) b", "label": "A", "category": "c", "question_id": 1, "image": "none.jpg"}],
        "row 0: image: there is no image 'none.jpg' in ",
    ),
    ("armbench_vl", "x.jsonl", [], "fine_grained_perception.jsonl, multimodal_long_document.jsonl or "),
    (
        "armbench_vl",
        "fine_grained_perception.jsonl",
        [published.arm_row(0, "best-of-9", 1)],
        "row 0: rm_tag: one of single_rm, ",
    ),
    (
        "armbench_vl",
        "fine_grained_perception.jsonl",
        [published.arm_row(0, "4-way-pair_rm", 1, preds=["a"])],
        "row 0: preds: a list of 4 or more",
    ),
    (
        "armbench_vl",
        "fine_grained_perception.jsonl",
        [published.arm_row(0, "pair_rm", 3)],
        "row 0: gt: the number of the better answer, 1 to 2, not 3",
    ),
    (
        "armbench_vl",
        "fine_grained_perception.jsonl",
        [published.arm_row(0, "single_rm", 1)],
        "row 0: gt: True or False, not 1",
    ),
    (
        "armbench_vl",
        "multimodal_instruction_following.jsonl",
        [published.arm_row(0, "single_rm", True, constraints=["x"])],
        "row 0: constraints: ",
    ),
]


@pytest.mark.parametrize(("name", "file", "rows", "message"), BROKEN)
def test_what_is_wrong_is_named(tmp_path, read, name, file, rows, message):
    write = published.write_parquet if file.endswith("parquet") else published.write_jsonl
    (tmp_path / "scene.png").write_bytes(published.png())
    if name == "vl_rewardbench" and file.endswith("jsonl"):
        rows = [{"image_path": "scene.png", **row, "image": None} for row in rows]
    path = write(tmp_path / file, rows)
    with pytest.raises(BenchmarkError) as raised:
        read(name, path)
    assert message in str(raised.value)
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize(("name", "make"), [("vstar", published.vstar), ("hrbench_4k", published.hrbench)])
def test_a_byte_order_mark_and_another_encoding(tmp_path, read, name, make):
    path = make(tmp_path)
    items = read(name, path)
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert read(name, path) == items
    path.write_bytes(path.read_bytes() + b"\xe9\n")
    with pytest.raises(BenchmarkError, match=rf"{path.name}: line \d+: not UTF-8 text \(byte 0xe9"):
        read(name, path)


def test_a_broken_line_a_broken_tsv_and_no_file(tmp_path, read):
    path = published.vstar(tmp_path)
    with path.open("a") as file:
        file.write('{"text": \n')
    with pytest.raises(BenchmarkError, match="row 4: not valid JSON"):
        read("vstar", path)
    tsv = published.hrbench(tmp_path)
    lines = tsv.read_text().splitlines()
    tsv.write_text("\n".join([*lines[:3], lines[3] + "\tmore"]))
    with pytest.raises(BenchmarkError, match="row 2: more fields than the first line names"):
        read("hrbench_4k", tsv)
    rows = published.hrbench_rows(1)
    rows[2]["image"] = "not base64!"
    with pytest.raises(BenchmarkError, match="row 2: image: an image as base64 is needed, not 'not base64!'"):
        read("hrbench_4k", published.hrbench(tmp_path, rows))
    with pytest.raises(BenchmarkError, match="No such file"):
        read("vstar", tmp_path / "none.jsonl")
    (tmp_path / "x.parquet").write_text(json.dumps({}))
    with pytest.raises(BenchmarkError, match="not a readable parquet file"):
        read("reward_bench_2", tmp_path / "x.parquet")
