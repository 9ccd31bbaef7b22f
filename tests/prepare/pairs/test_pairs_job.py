"""The command line against a small server: the files, the report, going on, and what it says when it cannot."""

import json

import pytest

from arm_rl.core import images
from arm_rl.data.samples import read_samples
from arm_rl.prepare.questions import Constraint, write_questions
from jobs import prepare_data
from tests.prepare.pairs.made_questions import image_file, other_number, question, right_answer
from tests.support.chat_server import FakeServer, text_of


@pytest.fixture
def server():
    with FakeServer(other_number) as running:
        yield running


@pytest.fixture
def run(server, tmp_path, capsys):
    def run(questions, *arguments, out="out"):
        file = tmp_path / "questions.jsonl"
        write_questions(file, questions)
        options = ["--server", server.url, "--out", str(tmp_path / out), "--retries", "0", "--concurrency", "4"]
        status = prepare_data.main(["pairs", str(file), *arguments, *options])
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run


def report(folder):
    return json.loads((folder / "report.json").read_text())


def test_answers_may_hold_the_text_of_a_placeholder(run, tmp_path):
    image = image_file(tmp_path)
    answer = "There are five birds on wire number 5, and <image> is a text."
    status, _, err = run([question(5, answer=answer, images=(image,))], "kinds=[pair]", "held_out=0")
    assert (status, err) == (0, "")
    (path,) = (tmp_path / "out").glob("*.parquet")
    (sample,) = read_samples([str(path)], ["one"])
    assert [image.name for image in sample.messages[0].parts[:1]] == ["original_image"]
    assert sample.messages[0].text.count("<image> is a text") == 2
    assert all("and <image> is a text" in text for text in sample.texts)


def test_pairs_points_and_ranks_with_images(run, server, tmp_path):
    shared, other = image_file(tmp_path), image_file(tmp_path, 1)
    asked = [question(number, images=(shared if number % 2 else other,)) for number in range(60)]
    status, out, err = run(asked, "kinds=[pair,point,rank]", "num_answers=3", "held_out=0.5")
    assert (status, err) == (0, "")
    folder = tmp_path / "out"
    assert f"and report.json are in {folder}; `python -m jobs.prepare_data audit {folder}`" in out.splitlines()[-1]
    assert len([*(folder / "images").iterdir()]) == 2, "each image once"
    found = report(folder)
    assert (found["used"], found["requests"] >= 120) == (60, True)
    assert sum(found["flaws"].values()) == 120
    assert len(found["flaws"]) > 4, "several kinds"
    files = {path.name: read_samples([str(path)], ["one"]) for path in folder.glob("*.parquet")}
    assert {*found["files"]} == {*files}
    by_question = {}
    for name, samples in files.items():
        kind = name.split("-")[0].removesuffix(".parquet")
        for sample in samples:
            id = sample.id.split("/")[0]
            by_question.setdefault(id, set()).add("held_out" in name)
            number = int(id.removeprefix("q"))
            assert images.load(sample.images[0]).data == (shared if number % 2 else other).read_bytes()
            right = (
                sample.texts[0] == asked[number].answer
                if kind == "point"
                else int(sample.label) - 1 == sample.texts.index(asked[number].answer)
            )
            assert right == (sample.label != "false")
            assert len({*sample.texts}) == {"pair": 2, "point": 1, "rank": 3}[kind]
            assert all(text in sample.messages[0].text for text in sample.texts)
            assert sample.tools == ("one",)
    assert all(len(splits) == 1 for splits in by_question.values()), "a question is in one split"
    labels = [sample.label for name, samples in files.items() if name.startswith("pair") for sample in samples]
    assert abs(labels.count("1") - labels.count("2")) <= 2
    body = server.bodies[0]
    assert [part["type"] for part in body["messages"][0]["content"]] == ["image_url", "text"]
    assert "$" not in text_of(body)


def test_it_goes_on_where_it_stopped(run, server, tmp_path):
    asked = [question(number) for number in range(8)]
    server.answer = lambda body: 500 if "wire 5?" in text_of(body) else other_number(body)
    status, out, _ = run(asked, "max_failed=0.2")
    assert status == 0
    assert "not used: the server failed: 1 (such as q5)" in out
    server.answer = lambda body: 500
    status, _, err = run([*asked, question(8), question(9)])
    assert status == 1
    assert "requests failed, more than max_failed allows" in err
    server.answer = other_number
    before = len(server.bodies)
    status, out, _ = run(asked)
    assert (status, report(tmp_path / "out")["used"]) == (0, 8)
    assert {"wire 5?" in text_of(body) for body in server.bodies[before:]} == {True}, "only what is missing"
    first = [(tmp_path / "out" / f"{kind}.parquet").read_bytes() for kind in ("pair", "point")]

    before = len(server.bodies)
    with (tmp_path / "out/replies.jsonl").open("a") as file:
        file.write('{"question": "q1", "num')  # as a kill leaves it
    assert run(asked)[0] == 0
    assert len(server.bodies) == before
    assert [(tmp_path / "out" / f"{kind}.parquet").read_bytes() for kind in ("pair", "point")] == first
    assert run(asked, "temperature=0.5")[0] == 0
    assert len(server.bodies) > before, "asked otherwise, the old replies do not count"


def test_what_cannot_be_used_is_asked_again_and_then_left_out(run, server, tmp_path):
    def stubborn(body):
        text = text_of(body)
        if "wire 0?" in text:
            return f"<answer>{right_answer(body)}</answer>"
        if "wire 1?" in text and len([one for one in server.bodies if "wire 1?" in text_of(one)]) < 3:
            return "I would rather not."
        return other_number(body)

    server.answer = stubborn
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    status, _, _ = run([*(question(number) for number in range(4)), question(4, images=(broken,))])
    assert status == 0
    found = report(tmp_path / "out")
    assert found["used"] == 3
    assert found["not_used"] == {
        "too like the right answer": {"questions": 1, "such_as": ["q0"]},
        "an image cannot be read": {"questions": 1, "such_as": ["q4"]},
    }
    assert found["replies_refused"]["the reply holds no <answer>"] == 2
    flaws = [
        text_of(body).split("The flaw: ")[1].split("\n")[0] for body in server.bodies if "wire 0?" in text_of(body)
    ]
    assert len({*flaws}) == 3, "each attempt has another flaw"


def test_a_constraint_is_what_the_flawed_answer_breaks(run, server, tmp_path):
    words = "check_whether_response_word_count_in_range"
    asked = question(
        0,
        answer="Four birds are there.",
        constraints=(
            Constraint(instruction="Use 3 to 5 words.", tool=words, arguments={"lower_bound": 3, "upper_bound": 5}),
        ),
        document="wires",
    )
    server.answer = lambda body: "<answer>Four birds are there on it.</answer>"
    assert run([asked], "kinds=[pair]")[0] == 0
    assert "The flaw: this instruction is not kept, by little: Use 3 to 5 words." in text_of(server.bodies[0])
    (sample,) = read_samples([str(tmp_path / "out/pair.parquet")], [words])
    assert sample.expected_tools == (words, "doc_page_retrieval_by_query", "doc_page_retrieval_by_index")
    assert "Use 3 to 5 words.\n\nThe document is named wires." in sample.messages[0].text


def test_answers_that_length_tells_apart_are_said_so(run, server, tmp_path):
    server.answer = lambda body: (
        f"<answer>{right_answer(body).replace('There are', 'In fact there are')} It is so.</answer>"
    )
    asked = [question(number) for number in range(60)]
    status, out, _ = run(asked, "kinds=[pair]", "max_length_ratio=3", "max_dropped=0.2")
    assert status == 0
    assert "MORE THAN CHANCE" in out
    found = report(tmp_path / "out")["files"]["pair.parquet"]
    assert (found["at_chance"], found["right_answer_is_longest"], found["questions_dropped_for_balance"]) == (
        False,
        0.0,
        12,
    )


def test_replies_of_another_seed_or_model_are_not_mixed_in(run, server):
    assert run([question(number) for number in range(8)])[0] == 0
    before = len(server.bodies)
    status, _, err = run([question(number) for number in range(8)], "seed=1")
    assert status == 1
    assert "seed: 1 now, 0 before; " in err
    assert "choose another --out, or remove that folder" in err
    status, _, err = run([question(number) for number in range(8)], "--served-model", "another")
    assert status == 1
    assert "--served-model: 'another' now, " in err
    assert len(server.bodies) == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["kinds=[pairs]"], "kinds: some of pair, point, rank"),
        (["num_answer=3"], "num_answer: unknown key in configs/prepare/pairs.yaml; did you mean num_answers?"),
        (["prompt=configs/prompts/judge.txt"], "it must hold $question, $answer and $flaw"),
        (["max_similarity=2"], "max_similarity: from 0 to 1, not 2.0"),
        (["none.jsonl"], "none.jsonl: No such file"),
    ],
)
def test_what_cannot_be_followed_is_said(run, overrides, message):
    status, _, err = run([question(0)], *overrides)
    assert status == 1
    assert message in err


def test_a_server_that_does_not_know_the_model_ends_the_run_at_once(run, server):
    server.answer = lambda body: 404
    status, _, err = run([question(number) for number in range(30)], "max_failed=1")
    assert status == 1
    assert "404" in err
    assert len(server.bodies) <= 4
