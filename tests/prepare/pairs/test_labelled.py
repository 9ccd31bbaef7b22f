"""Answers that are labelled already become training data by one command: LLaVA-Critic as it is published, and one's own."""

import json

import pytest

from arm_rl.core import images
from arm_rl.core.images import Image
from arm_rl.data.samples import read_samples
from arm_rl.prepare.pairs.choices import Choice, level_labels
from arm_rl.prepare.questions import Question
from jobs.prepare_data import main
from tests.support.llava_critic_file import compared, scored, write_json, write_parquet
from tests.support.scripted import noise

PICTURES = [Image.from_pil(noise(16, 16, seed)).data for seed in range(4)]
ANIMALS = ("cat", "dog", "cow", "hen", "fox", "owl", "bee", "ant")


def a_pair(number: int):
    """A comparison whose answers are alike in length and form; every other first response is the better one."""
    right, wrong = ANIMALS[number % 8], ANIMALS[(number + 1 + number // 8 % 7) % 8]
    better = ("first", "second")[number % 2]
    first, second = (f"It is a {right}.", f"It is a {wrong}.")[:: 1 if better == "first" else -1]
    return compared(f"Which animal is it in picture {number}?", first, second, better)


@pytest.fixture
def run(tmp_path, capsys):
    """Run the command and return its status, its output, its errors and the folder."""

    def run(*arguments, source="llava_critic", out="out"):
        status = main(["labelled", source, *map(str, arguments), "--out", str(tmp_path / out)])
        shown = capsys.readouterr()
        return status, shown.out, shown.err, tmp_path / out

    return run


@pytest.mark.parametrize("write", [write_parquet, write_json])
def test_both_parts_become_training_data_without_a_language_model(run, tmp_path, write):
    rows = [a_pair(number) for number in range(60)]
    captions = [scored(f"Picture {number} shows a tree.", 90 if number % 3 else 10) for number in range(30)]
    captions.append(scored("Perhaps a tree.", 60))
    ending = ".parquet" if write is write_parquet else ".json"
    for folder, part in (("pairwise", rows), ("pointwise", captions)):
        shown = [PICTURES[number % 4] for number in range(len(part))]
        write(tmp_path / "hub" / folder / f"train-{folder}{ending}", part, shown)
    status, out, err, folder = run(tmp_path / "hub")
    assert (status, err) == (0, "")
    assert "skipped: 1 rows: a score between wrong_to and right_from" in out
    assert f"done: pair.parquet, point.parquet and report.json are in {folder}" in out
    pairs = read_samples([str(folder / "pair.parquet")], ["one"])
    assert len(pairs) == 60
    for sample in pairs:
        number = int(sample.id.split("/")[0].rsplit("-", 1)[1])
        assert sample.texts[int(sample.label) - 1] == f"It is a {ANIMALS[number % 8]}.", "the critic's verdict"
        assert images.load(sample.images[0]).data == PICTURES[number % 4]
        assert f"Which animal is it in picture {number}?" in sample.messages[0].text
    labels = [sample.label for sample in pairs]
    assert labels.count("1") == labels.count("2")
    points = read_samples([str(folder / "point.parquet")], ["one"])
    assert sorted(sample.label for sample in points) == ["false"] * 10 + ["true"] * 10, "as many of each"
    assert all("Describe the image." in sample.messages[0].text for sample in points)
    assert len([*(folder / "images").iterdir()]) == 4, "each image once"
    found = json.loads((folder / "report.json").read_text())
    assert (found["compared"], found["scored"]) == (60, 30)
    assert found["files"]["pair.parquet"]["rows"] == 60


def test_equal_arguments_give_equal_files_and_parts_share_no_image(run, tmp_path):
    many = [Image.from_pil(noise(16, 16, seed)).data for seed in range(12)]
    file = write_parquet(tmp_path / "train.parquet", [a_pair(n) for n in range(48)], [many[n % 12] for n in range(48)])
    keys = (file, "held_out=0.5", "max_questions=24", "seed=3")
    assert run(*keys, out="a")[0] == run(*keys, out="b")[0] == 0
    kept = {}
    for name in ("pair.parquet", "pair-held_out.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        kept[name] = read_samples([str(tmp_path / "a" / name)], ["one"])
    assert sum(map(len, kept.values())) == 24
    shown = [{images.load(sample.images[0]).key for sample in samples} for samples in kept.values()]
    assert shown[0].isdisjoint(shown[1])


def test_what_length_tells_apart_is_left_out_and_said(run, tmp_path):
    rows = [a_pair(number) for number in range(60)]
    for number in range(60):
        rows.append(compared(f"Question {number}?", "Yes.", "Yes, and much more besides than anyone asked.", "second"))
    file = write_parquet(tmp_path / "train.parquet", rows, [PICTURES[n % 4] for n in range(120)])
    status, out, _, folder = run(file, "max_dropped=0.7")
    assert status == 0
    assert "questions left out whose answers place, length and form told apart" in out
    assert json.loads((folder / "report.json").read_text())["files"]["pair.parquet"]["rows"] < 120


ARENA = (
    "<image>\n<|User Prompt|>\nWhere is it?\n\n<|The Start of Assistant A's Answer|>\nHere.\n<|The End of Assistant A's Answer|>\n\n"
    "<|The Start of Assistant B's Answer|>\nThere.\n<|The End of Assistant B's Answer|>"
)
BENCH = (
    "<image>\n[Question]\nWhere is it?\n\n[Assistant 1]\nHere.\n\n[End of Assistant 1]\n\n[Assistant 2]\nThere.\n\n"
    "[End of Assistant 2]\n\n[System]\nGive two scores."
)


@pytest.mark.parametrize(
    ("human", "said", "better"),
    [
        (ARENA, "... [[B>>A]]", "There."),
        (ARENA, "At first [[B>A]], but in the end [[A>B]]", "Here."),
        (ARENA, "[[A=B]]", None),
        (BENCH, "8 9.5\nThe second one says more.", "There."),
        (BENCH, "7 7\nAlike.", None),
    ],
)
def test_other_shapes_of_a_comparison(run, tmp_path, human, said, better):
    turns = [{"from": "human", "value": human}, {"from": "gpt", "value": said}]
    file = write_parquet(tmp_path / "a.parquet", [{"source": "x", "conversations": turns}], PICTURES[:1])
    status, _, err, folder = run(file)
    if better is None:
        assert status == 1
        assert "no row can be used: 1 rows: no response was found better" in err
        assert not (folder / "pair.parquet").exists()
        return
    (sample,) = read_samples([str(folder / "pair.parquet")], ["one"])
    assert sample.texts[int(sample.label) - 1] == better
    assert {*sample.texts} == {"Here.", "There."}


def test_answers_of_ones_own(run, tmp_path):
    (tmp_path / "a.png").write_bytes(PICTURES[0])
    rows = [
        {"question": "What is it?", "images": ["a.png"], "chosen": "A cat.", "rejected": "A dog."},
        {"question": "What is it?", "images": ["a.png"], "answer": "A cat.", "right": True},
        {"question": "What is it?", "images": ["a.png"], "answer": "A dog.", "right": False},
        {"question": "What is it?", "chosen": "A cat.", "rejected": "A cat."},
        {"question": "What is it?", "chosen": "A cat <image>.", "rejected": "A dog."},
    ]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    status, out, _, folder = run(file, source="jsonl")
    assert status == 0
    assert "skipped: 1 rows: both answers are the same" in out
    assert "skipped: 1 rows: a text holds <image>" in out
    assert len(read_samples([str(folder / "pair.parquet")], ["one"])) == 1
    assert {sample.label for sample in read_samples([str(folder / "point.parquet")], ["one"])} == {"true", "false"}


def test_rejected_answers_of_mm_ifengine(run, tmp_path):
    turn = {"conversations": [{"from": "human", "value": "Describe it."}]}
    rows = [
        {**turn, "chosen": {"from": "gpt", "value": "Better."}, "rejected": {"from": "gpt", "value": "Worse."}},
        {**turn, "chosen": {"from": "gpt", "value": "Alone."}},
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    status, out, _, folder = run(tmp_path / "a.json", source="mm_ifengine")
    assert status == 0
    assert "skipped: 1 rows: no other answer was rejected" in out
    (sample,) = read_samples([str(folder / "pair.parquet")], ["one"])
    assert {*sample.texts} == {"Better.", "Worse."}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "?", "chosen": "a"}, "mine.jsonl: row 0: rejected: a text is needed, not None"),
        ({"question": "?", "answer": "a"}, "mine.jsonl: row 0: right: true or false is needed, not None"),
        ({"question": 1, "answer": "a", "right": True}, "mine.jsonl: row 0: question: a text is needed, not 1"),
    ],
)
def test_a_row_that_says_too_little_is_named(run, tmp_path, row, message):
    (tmp_path / "mine.jsonl").write_text(json.dumps(row))
    status, _, err, _ = run(tmp_path / "mine.jsonl", source="jsonl")
    assert status == 1
    assert message in err


def test_wrong_arguments_are_refused(run, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "a folder without files that end with .parquet" in run(tmp_path / "empty")[2]
    assert "wrong_to: below right_from (0.8)" in run(tmp_path / "empty", "wrong_to=0.9")[2]


def test_labels_are_levelled_within_each_track():
    def choice(track, number, label):
        question = Question(id=f"{track}{number}", track=track, question="?", answer="!")
        return Choice(question=question, answers=("!",), label=label)

    choices = [choice("a", n, "true" if n < 7 else "false") for n in range(10)] + [choice("b", 0, "true")]
    level = level_labels(choices, seed=0)
    assert [one.question.track for one in level] == ["a"] * 6
    assert sum(one.label == "true" for one in level) == 3
    assert level == level_labels(choices, seed=0)
