"""Verdicts, as a judge of ours writes them and as other models do."""

import pytest

from arm_rl.benchmarks.verdicts import answer_text, read_verdict


def answered(text):
    return f"<think>Answer 2 is better? B? True?</think><answer>{text}</answer>"


CASES = [
    ("choice", answered("Overall Judgment: Answer 1 is better."), "1"),
    ("choice", answered("2"), "2"),
    ("choice", answered(" Answer 2. "), "2"),
    ("choice", "I weighed both.\n\n**Overall Judgment**: **Answer 2 is slightly better**.", "2"),
    ("choice", "Answer 1 is better in style. Overall Judgment: Answer 2 is better.", "2"),
    ("choice", "Overall: Answer 1 is superior", "1"),
    ("choice", answered("Answer 3 is better"), None),
    ("choice", answered("Answer 0 is better"), None),
    ("choice", answered("Overall Judgment: True"), None),
    ("choice", answered("both are good"), None),
    ("choice", "<think>Answer 2 is better</think>", None),
    ("choice", "", None),
    ("truth", answered("Overall Judgment: True"), "true"),
    ("truth", answered("Overall Judgment: FALSE."), "false"),
    ("truth", "It breaks the limit, so false.", "false"),
    ("truth", answered("Overall Judgment: Answer 1 is better"), None),
    ("truth", answered("untrue"), None),
    ("letter", answered("B"), "B"),
    ("letter", answered("(C) kevlar"), "C"),
    ("letter", answered("D. leather"), "D"),
    ("letter", "The answer is **B**.", "B"),
    ("letter", "A glove of leather; the correct option is (D).", "D"),
    ("letter", answered("Answer: C"), "C"),
    ("letter", answered("E"), None),
    ("letter", answered("A glove is seen"), None),
    ("letter", answered("cotton"), None),
    ("letter", answered("I choose C"), "C"),
    ("letter", answered("I think it is option b."), "B"),
    ("letter", answered(r"\boxed{B}"), "B"),
    ("letter", answered(r"So it is \(\boxed{\text{D}}\)"), "D"),
    ("letter", answered(r"\boxed{(C)}"), "C"),
    ("letter", "The glove shines like leather, so D.", "D"),
    ("letter", answered("B or C"), "B"),
    ("letter", answered("Either B or C"), None),
    ("letter", answered("the answer is a glove"), None),
    ("letter", answered("A cat, I'm sure"), None),
    ("rating", answered("7"), "7"),
    ("rating", answered("Rating: 10/10"), "10"),
    ("rating", "It has 2 flaws. Rating: 8 / 10", "8"),
    ("rating", answered("0"), None),
    ("rating", answered("11"), None),
    ("rating", answered("7.5"), None),
    ("rating", answered("good"), None),
]


@pytest.mark.parametrize(("kind", "text", "verdict"), CASES)
def test_a_verdict_is_read(kind, text, verdict):
    assert read_verdict(kind, text, {"choice": 2, "letter": 4}.get(kind, 0)) == verdict


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("kevlar", "C"),
        ("It is made of Kevlar.", "C"),
        ("The material is light blue cotton", "B"),
        ("cotton", "A"),
        ("cotton or kevlar", None),
        ("B. kevlar", "B"),
        ("The cottonwood", None),
        ("wool", None),
    ],
)
def test_an_options_own_text_is_read(text, letter):
    assert read_verdict("letter", answered(text), 4, ["cotton", "light-blue cotton", "Kevlar", ""]) == letter


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>a</think><answer> b </answer>", "b"),
        ("<answer>a</answer><answer>b</answer>", "b"),
        ("<think>a</think> b", "b"),
        ("<think>a</think><answer>cut off", "cut off"),
        ("plain", "plain"),
    ],
)
def test_the_answer_without_the_thoughts(text, answer):
    assert answer_text(text) == answer
