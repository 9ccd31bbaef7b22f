"""Which flawed answers can be used, and what is said against the others."""

import pytest

from arm_rl.core.config_file import load
from arm_rl.prepare.pairs.config import PairsConfig
from arm_rl.prepare.pairs.sieve import ConstraintError, answer_fault, extract_answer, question_fault
from arm_rl.prepare.questions import Constraint
from tests.prepare.pairs.made_questions import question

CONFIG = PairsConfig(flaws={"x": "y"}, max_similarity=0.97, giveaways=("incorrect", "as an AI"))
RIGHT = "There are three birds on the wire, and a fourth one is landing."
WORDS = Constraint(
    instruction="Use 3 to 5 words.",
    tool="check_whether_response_word_count_in_range",
    arguments={"lower_bound": 3, "upper_bound": 5},
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer> four </answer>", "four"),
        ("<think>not <answer>one</answer></think> <answer>two\nlines</answer>", "two\nlines"),
        ("four", None),
        ("<answer></answer>", None),
        ("<answer>four", None),
    ],
)
def test_the_answer_of_a_reply(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("flawed", "reason"),
    [
        ("There are three birds on the wire, and a fifth one is landing.", None),
        ("there are three  birds on the wire, and a fourth one is landing.", "too like the right answer"),
        ("There are three birds on the wire, and a fourth one is landing!", "too like the right answer"),
        ("There are six birds on the tree, and a seventh one is leaving.", "too like another flawed answer"),
        ("Three.", "of another length than the right answer"),
        (f"{RIGHT} {RIGHT}", "of another length than the right answer"),
        ("There are five birds on the wire; this answer is incorrect on purpose.", "it gives itself away"),
        ("There are five birds in <image>, and a fourth one is landing.", None),
    ],
)
def test_what_is_said_against_an_answer(flawed, reason):
    others = ["There are six birds on the tree, and a seventh one is leaving"]
    assert answer_fault(flawed, question(0, answer=RIGHT), others, None, CONFIG) == reason


def test_short_answers_that_differ_are_used():
    for right, flawed in (("4", "7"), ("1,200", "1,201"), ("-5", "5"), ("C", "C++"), ("yes", "no")):
        assert answer_fault(flawed, question(0, answer=right), [], None, CONFIG) is None


def test_a_giveaway_that_the_right_answer_holds_too_is_none():
    right = "The second statement is incorrect, the others hold."
    assert (
        answer_fault("The third statement is incorrect, the others hold.", question(0, answer=right), [], None, CONFIG)
        is None
    )


def test_a_constraint_must_be_broken_and_the_right_answer_must_keep_it():
    asked = question(0, answer="Four birds are there.", constraints=(WORDS,))
    assert question_fault(asked) is None
    assert (
        answer_fault("Three birds are there.", asked, [], WORDS, CONFIG)
        == "it keeps the constraint that it should break"
    )
    assert answer_fault("Four birds are there on the wire.", asked, [], WORDS, CONFIG) is None
    assert question_fault(question(0, answer="Four.", constraints=(WORDS,))) == "the right answer breaks a constraint"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tool": "count"}, "there is no checker 'count'"),
        ({"arguments": {"lower_bound": 3}}, "'upper_bound' is a required property"),
    ],
)
def test_a_constraint_that_cannot_be_checked_is_the_user_s(changes, message):
    values = {"instruction": WORDS.instruction, "tool": WORDS.tool, "arguments": WORDS.arguments}
    with pytest.raises(ConstraintError, match=f"question q0: constraints: .*{message}"):
        question_fault(question(0, constraints=(Constraint(**{**values, **changes}),)))


def test_placeholders_must_fit_the_images(tmp_path):
    assert (
        question_fault(question(0, question="<image> What?"))
        == "the question holds another number of <image> than it has images"
    )
    assert question_fault(question(0, question=r"What is \<image>?", answer="<image>")) is None


def test_the_shipped_configuration_loads():
    config = load(PairsConfig, "configs/prepare/pairs.yaml")
    assert len(config.flaws) > 3
    assert config.read_prompt().is_valid()
