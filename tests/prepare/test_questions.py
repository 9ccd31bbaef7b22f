"""The file of questions: what is written comes back, and what is wrong is named with its line."""

import codecs
import json
from pathlib import Path

import pytest

from arm_rl.prepare.questions import Constraint, Question, QuestionError, read_questions, write_questions

WHOLE = {"id": "a", "track": "t", "question": "What?", "answer": "This."}


def test_what_is_written_comes_back(tmp_path):
    questions = [
        Question(id="a", track="t", question="What?\n", answer="Étoile"),
        Question(
            id="b",
            track="t",
            question="How long?",
            answer="So.",
            images=(tmp_path / "images/x.png", Path("/elsewhere/y.png")),
            tools=("one",),
            document="report",
            constraints=(Constraint(instruction="Briefly.", tool="check", arguments={"upper_bound": 3}),),
            source="here",
        ),
        Question(id="c", track="t", question="?", answer="!", tools=()),
    ]
    file = tmp_path / "questions.jsonl"
    assert write_questions(file, questions) == 3
    assert list(read_questions(file)) == questions
    assert json.loads(file.read_text().splitlines()[1])["images"] == ["images/x.png", "/elsewhere/y.png"]
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "a JSON object is needed"),
        (json.dumps({**WHOLE, "answer": " "}), "answer: a text is needed"),
        (json.dumps({**WHOLE, "track": "two words"}), "track: a name without blanks"),
        (json.dumps({**WHOLE, "image": "x"}), "image: unknown key; known are answer, constraints"),
        (json.dumps({**WHOLE, "images": "x.png"}), "images: a list of texts"),
        (json.dumps({**WHOLE, "document": 3}), "document: a name is needed"),
        (json.dumps({**WHOLE, "constraints": [{"tool": "x"}]}), "constraints\\[0\\]: an object with an instruction"),
        (json.dumps(WHOLE | {"id": "first"}), "the id 'first' stands twice, first in line 1"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, line, message):
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps(WHOLE | {"id": "first"}) + "\n\n" + line + "\n")
    with pytest.raises(QuestionError, match=f"line 3: .*{message}" if "twice" not in message else f"line 3: {message}"):
        list(read_questions(file))


def test_a_byte_order_mark_and_half_characters_are_no_obstacle(tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_bytes(codecs.BOM_UTF8 + json.dumps(WHOLE | {"question": "a\ud800?"}).encode() + b"\r\n")
    (question,) = read_questions(file)
    assert question.question == "a??"
    write_questions(tmp_path / "again.jsonl", [question])


def test_another_encoding_is_named_with_its_line(tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_bytes(json.dumps(WHOLE).encode() + b'\n{"id": "\xe9"}\n')
    with pytest.raises(QuestionError, match=r"questions.jsonl: line 2: not UTF-8 text \(byte 0xe9 at column 9\)"):
        list(read_questions(file))
    file.write_bytes(json.dumps(WHOLE).encode("utf-16"))
    with pytest.raises(QuestionError, match=r"line 1: not UTF-8 text \(the file is UTF-16\)"):
        list(read_questions(file))


def test_an_empty_file_holds_nothing(tmp_path):
    (tmp_path / "q.jsonl").write_text("\n")
    with pytest.raises(QuestionError, match="there are no questions"):
        list(read_questions(tmp_path / "q.jsonl"))
