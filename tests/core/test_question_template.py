"""The wording of questions: the shipped files, and files that cannot be used."""

import pytest

from arm_rl.core.config import ConfigError, TemplateConfig
from arm_rl.core.question_template import read_phrase
from arm_rl.demo import phrases


def test_the_usual_wording_numbers_the_answers():
    phrase = read_phrase(TemplateConfig().question)
    assert phrase("Which?", ["a", "b {{ question }}"]) == "Which?\n\nAnswer 1: a\n\nAnswer 2: b {{ question }}"
    assert phrase("Right?", ["a"]) == "Right?\n\nAnswer: a"


def test_the_demos_wording_is_the_one_that_it_was_trained_on():
    phrase = read_phrase("configs/prompts/digits_question.jinja")
    assert phrase("Which digit?", ["4", "7"]) == phrases.request("Which digit?", ("4", "7"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ question }} {{ answers[0] }}", "does not show 'second_answer'"),
        ("{% for answer in answers %}{{ answer }}{% endfor %}", "does not show 'a_question'"),
        ("{{ question }} {{ answers[1] }}", "no element 1"),
        ("{{ questions }}", "'questions' is undefined"),
        ("{% for %}", "Expected"),
        ("{{ question.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, text, message):
    file = tmp_path / "question.jinja"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"template.question: {file}.*{message}"):
        read_phrase(str(file))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"template.question: .*none.jinja: No such file"):
        read_phrase(str(tmp_path / "none.jinja"))
