"""Published data sets as questions, from small files in exactly their formats; and the demos' tasks at any size."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arm_rl.core.images import Image
from arm_rl.data.samples import read_samples
from arm_rl.demo.demos import DIGITS
from arm_rl.prepare.document_builder import build_index
from arm_rl.prepare.questions import Constraint, Question, read_questions
from jobs.prepare_data import main
from tests.support.scripted import ZOOM, noise
from tools import load_tools

PICTURES = [Image.from_pil(noise(16, 16, seed)) for seed in range(3)]


@pytest.fixture
def made(tmp_path, capsys):
    """Runs the command on a file; gives the questions and what was said."""

    def made(source, name):
        out = tmp_path / "out" / "questions.jsonl"
        assert main(["questions", source, str(tmp_path / name), "--out", str(out)]) == 0
        return [*read_questions(out)], capsys.readouterr().out

    return made


def turns(human, gpt):
    return [{"from": "human", "value": human}, {"from": "gpt", "value": gpt}]


def test_llava_critic(tmp_path, made):
    """As on the hub: a comparison in brackets; of several wordings, and with a tie, a pointwise row and a broken image."""
    asked = "<image>\nCompare.\nQuestion: [What is [this]?]\n{0}: [A red cat.]\n{1}: [A dog.\nReally.]\n\nASSISTANT:\n"
    first, second = ("The first response", "The second response"), ("Response 1", "Response 2")
    rows = [
        {
            "id": "a",
            "source": "vlfeedback",
            "conversations": turns(asked.format(*first), "... The better response: [second]"),
        },
        {
            "id": "b",
            "source": "vlfeedback",
            "conversations": turns(asked.format(*second), "The better response: [1]. Because ..."),
        },
        {"id": "c", "source": "vlfeedback", "conversations": turns(asked.format(*second), "Both are equally good.")},
        {
            "id": "d",
            "source": "svit",
            "conversations": turns("Text Caption: a cat\nFrom 0 to 100 ...", "Final Score: 80"),
        },
        {"id": "e", "source": "svit", "conversations": turns(asked.format(*first), "The better response: [first]")},
    ]
    for row, data in zip(rows, [PICTURES[0].data] * 4 + [b"broken"], strict=True):
        row["image"] = {"bytes": data, "path": "0.jpg"}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train-00000.parquet")
    questions, said = made("llava_critic", "train-00000.parquet")
    assert [(one.question, one.answer, one.track) for one in questions] == [
        ("What is [this]?", "A dog.\nReally.", "perception"),
        ("What is [this]?", "A red cat.", "perception"),
    ]
    assert questions[0].images == questions[1].images, "one content, one file"
    assert questions[0].images[0].read_bytes() == PICTURES[0].data
    assert questions[0].source == "llava_critic/vlfeedback"
    for reason in ("no response was found better", "not a comparison of two responses", "its image cannot be read"):
        assert f"1 rows: {reason}" in said
    assert "done: 2 questions" in said


def test_files_of_one_name_give_ids_of_their_own(tmp_path, capsys):
    files = []
    for folder in ("geo", "chart"):
        (tmp_path / folder).mkdir()
        files.append(str(tmp_path / folder / "data.json"))
        (tmp_path / folder / "data.json").write_text(json.dumps([{"instruction": "Say it.", "response": folder}]))
    assert main(["questions", "mm_ifengine", *files, "--out", str(tmp_path / "q.jsonl")]) == 0
    ids = [one.id for one in read_questions(tmp_path / "q.jsonl")]
    assert ids == ["mm_ifengine-geo/data-0", "mm_ifengine-chart/data-0"]


def test_deepeyes(tmp_path, made):
    """verl's columns; the words on how to think and call go, the options stay."""
    how = (
        "\nThink first, call **image_zoom_in_tool** if needed, then answer. "
        "Format strictly as:  <think>...</think>  <answer>...</answer> "
    )
    rows = [
        {
            "data_source": "vstar",
            "prompt": [
                {"role": "system", "content": "You help."},
                {"role": "user", "content": f"<image>\nWhich colour?\nA. red{how}"},
            ],
            "images": [{"bytes": PICTURES[number].data, "path": None}],
            "ability": "visual_toolbox_v2",
            "env_name": "visual_toolbox_v2",
            "reward_model": {"ground_truth": "A. red", "style": "model"},
            "extra_info": {"answer": "A. red", "index": str(number), "question": question, "split": "train"},
        }
        for number, question in enumerate([None, "Which colour?"])
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    questions, _ = made("deepeyes", "data.parquet")
    assert [(one.question, one.answer, one.tools, one.source) for one in questions] == [
        ("Which colour?\nA. red", "A. red", (ZOOM,), "deepeyes/vstar"),
        ("Which colour?", "A. red", (ZOOM,), "deepeyes/vstar"),
    ]
    assert [one.images[0].read_bytes() for one in questions] == [PICTURES[0].data, PICTURES[1].data]


def test_mm_ifengine(tmp_path, made):
    """ShareGPT's shape with and without preferences, and constraints with their checkers, spelt as they are published."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(PICTURES[0].data)
    judge = {
        "method": "rule_based",
        "verify_funcs": [
            {"func": "check_whether_response_paragraph_number_in_range", "params": [3, 3]},
            {"func": "check_whether_each_keyword_in_list_metioned_in_range", "params": [["cat"], 1, 2]},
            {"func": "check_something_else", "params": []},
        ],
    }
    rows = [
        {"conversations": turns("<image>\nDescribe it.", "A cat."), "images": ["images/a.jpg"]},
        {
            "conversations": turns("<image>\nDescribe it.", "")[:1],
            "images": ["images/a.jpg"],
            "chosen": {"from": "gpt", "value": "Better."},
            "rejected": {"from": "gpt", "value": "Worse."},
        },
        {
            "instruction": "Describe it in three paragraphs.",
            "image": "images/a.jpg",
            "response": "One.\n\nTwo.\n\nThree.",
            "constraints": [
                {"key": "length", "value": "Three paragraphs.", "judge": judge},
                {"key": "tone", "value": "Be kind.", "judge": {"method": "direct_gpt", "verify_funcs": []}},
            ],
        },
        {"instruction": "Nobody answered.", "image": "images/a.jpg"},
    ]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    (tmp_path / "text.json").write_text(json.dumps([{**rows[0], "images": "images/a.jpg"}]))
    ((one,), _) = made("mm_ifengine", "text.json")
    assert one.images[0].read_bytes() == PICTURES[0].data, "the path of one image as a text"
    questions, said = made("mm_ifengine", "data.json")
    assert [(one.question, one.answer) for one in questions[:2]] == [
        ("Describe it.", "A cat."),
        ("Describe it.", "Better."),
    ]
    paragraphs, keywords = (
        "check_whether_response_paragraph_number_in_range",
        "check_whether_each_keyword_in_list_mentioned_in_range",
    )
    assert questions[2].constraints == (
        Constraint(instruction="Three paragraphs.", tool=paragraphs, arguments={"lower_bound": 3, "upper_bound": 3}),
        Constraint(
            instruction="Three paragraphs.",
            tool=keywords,
            arguments={"keywords": ["cat"], "lower_bound_times": 1, "upper_bound_times": 2},
        ),
    )
    assert questions[2].tools == (paragraphs, keywords)
    assert "1 rows: no instruction, or no answer to it" in said


def test_mp_docvqa(tmp_path, made):
    """The documents can be indexed as they come out."""
    (tmp_path / "images").mkdir()
    for page in range(3):
        noise(40, 60, page).save(tmp_path / "images" / f"doc1_p{page}.jpg")
    common = {"doc_id": "doc1", "page_ids": ["doc1_p0", "doc1_p1"], "answer_page_idx": 1, "data_split": "val"}
    rows = [
        {**common, "questionId": 7, "question": "What is the total?", "answers": ["$5", "5"]},
        {
            **common,
            "questionId": 8,
            "question": "Which year?",
            "answers": ["1999"],
            "page_ids": ["doc1_p2"],
            "answer_page_idx": 0,
        },
        {**common, "questionId": 9, "question": "Who?", "answers": []},
        {**common, "questionId": 10, "question": "Where?", "answers": ["here"], "page_ids": ["doc1_p9"]},
    ]
    (tmp_path / "val.json").write_text(json.dumps({"dataset_name": "MP-DocVQA", "dataset_split": "val", "data": rows}))
    questions, said = made("mp_docvqa", "val.json")
    assert [(one.id, one.question, one.answer, one.document, one.images) for one in questions] == [
        ("mp_docvqa-7", "What is the total?", "$5", "doc1", ()),
        ("mp_docvqa-8", "Which year?", "1999", "doc1-doc1_p2", ()),
    ]
    assert "1 rows: no answer is published (the test split)" in said
    assert "1 rows: a page of its document is missing" in said
    documents = tmp_path / "out" / "documents"
    assert [file.name for file in sorted((documents / "doc1").iterdir())] == ["0001.jpg", "0002.jpg"]
    summary = build_index(sorted(documents.iterdir()), tmp_path / "index", ocr="never")
    assert summary.num_pages == 3
    assert {*summary.added} == {question.document for question in questions}


def test_questions_of_ones_own(tmp_path, made):
    (tmp_path / "a.png").write_bytes(PICTURES[0].data)
    (tmp_path / "q.jsonl").write_text(
        json.dumps({"id": "1", "track": "t", "question": "?", "answer": "!", "images": ["a.png"]})
    )
    (question,), _ = made("jsonl", "q.jsonl")
    assert question == Question(id="1", track="t", question="?", answer="!", images=(question.images[0],))
    assert question.images[0].resolve() == tmp_path / "a.png"


@pytest.mark.parametrize(
    ("source", "name", "text", "message"),
    [
        ("mp_docvqa", "a.json", "[]", "a.json: not a JSON object with data"),
        ("mm_ifengine", "a.json", "[", "a.json: not a readable JSON file"),
        (
            "mm_ifengine",
            "a.json",
            '[{"instruction": "?"}]',
            "no question could be made: 1 rows: no instruction, or no answer to it",
        ),
        ("deepeyes", "a.parquet", "no", "a.parquet: not a readable parquet file"),
        ("jsonl", "a.jsonl", "{", "a.jsonl: line 1: not valid JSON"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, capsys, source, name, text, message):
    (tmp_path / name).write_text(text)
    assert main(["questions", source, str(tmp_path / name), "--out", str(tmp_path / "q.jsonl")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "q.jsonl").exists()


def test_synthetic_data_is_the_demos(tmp_path):
    assert main(["synthetic", "--out", str(tmp_path / "a"), "--train", "300", "--held-out", "4", "--seed", "1"]) == 0
    assert main(["synthetic", "--out", str(tmp_path / "b"), "--train", "300", "--held-out", "4", "--seed", "1"]) == 0
    assert (tmp_path / "a" / "train.parquet").read_bytes() == (tmp_path / "b" / "train.parquet").read_bytes()
    tools = load_tools([str(tmp_path / "a" / "tools.yaml")])
    samples = read_samples([str(tmp_path / "a" / "train.parquet")], list(tools))
    assert len(samples) == 300
    assert {sample.track for sample in samples} == {track.name for track in DIGITS.tracks}
