"""Paragraphs, sentences and words: of prose, Markdown and several languages; and that no text takes more than linear work."""

import pytest
from hypothesis import given, strategies

import tools.text.sentences
from tools.text.sentences import WINDOW, num_words, paragraphs, sentences, sentences_by_paragraph, strip_markdown

TEXTS = strategies.one_of(
    strategies.text(),
    strategies.text(alphabet="ab A1.!?。“”「」()（）\"'*_`#>-|[]<\n\t…é他\u0301\u200b\ud800😀"),
    strategies.lists(
        strategies.sampled_from(
            ["Dr. ", "e.g. ", "\n\n", "\n- ", "1. ", "**", "```\n", "好。", "(a.) ", "end. ", "Und ", "3.14", "”", "# "]
        )
    ).map("".join),
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        (" \n\t\n", []),
        ("One.\n\nTwo.", ["One.", "Two."]),
        ("One.\nStill one.", ["One.\nStill one."]),
        ("\n\nOne.\r\n \t\r\n\r\nTwo.\n", ["One.", "Two."]),
        ("# Title\n\nText.", ["# Title", "Text."]),
        ("One.\n\n---\n\n***\n\nTwo.", ["One.", "Two."]),  # rules are none
        ("- a\n- b\n- c", ["- a\n- b\n- c"]),
        ("- a\n\n- b", ["- a", "- b"]),
        ("第一段。\n\n第二段。", ["第一段。", "第二段。"]),
        ("```\nx\n\ny\n```", ["```\nx\n\ny\n```"]),
        ("```\nx\n\ny", ["```\nx", "y"]),  # never closed
    ],
)
def test_blank_lines_separate_paragraphs(text, found):
    assert paragraphs(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ("!!! ... ???", []),
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Really?! Yes.", ["Really?!", "Yes."]),
        (
            "Dr. Smith paid 3.14, e.g. for U.S. goods. He left.",
            ["Dr. Smith paid 3.14, e.g. for U.S. goods.", "He left."],
        ),
        ("Dr. Who is here, i.e. The Doctor. Yes.", ["Dr. Who is here, i.e. The Doctor.", "Yes."]),
        ("See approx. 5 of Prof. So. He does.", ["See approx. 5 of Prof. So.", "He does."]),
        ("It ended... Then it began.", ["It ended...", "Then it began."]),
        ("It ended… Then it began.", ["It ended...", "Then it began."]),
        ("Wait... what?", ["Wait... what?"]),
        ('"Really?!" she said. "Yes."', ['"Really?!" she said.', '"Yes."']),
        ("He asked “Why? Who?” and left.", ["He asked “Why? Who?” and left."]),
        ("(A whole one.) Another.", ["(A whole one.)", "Another."]),
        ("Some (see p. 3) text. End", ["Some (see p. 3) text.", "End"]),
        ("Use ASP.NET or Node.js. Done.", ["Use ASP.NET or Node.js.", "Done."]),
        (
            "Use ASP.NET Core or System.Out here, at www.Example.com too.",
            ["Use ASP.NET Core or System.Out here, at www.Example.com too."],
        ),
        ("The cat sat.The dog ran.", ["The cat sat.", "The dog ran."]),
        ("It rained in Rome.The streets were wet.", ["It rained in Rome.", "The streets were wet."]),
        ("Кошка спала.Собака бежала.", ["Кошка спала.", "Собака бежала."]),
        ("The temp. was 5. It rose.", ["The temp. was 5.", "It rose."]),
        ("The dept. of the Univ. is open. Come in.", ["The dept. of the Univ. is open.", "Come in."]),
        ("Это т.е. пример. Да.", ["Это т.е. пример.", "Да."]),
        ("i like it. it is good.", ["i like it.", "it is good."]),
        ("I like it. iPhones are nice.", ["I like it.", "iPhones are nice."]),
        ("Wrapped\nline. Next", ["Wrapped line.", "Next"]),
        ("# Title\nText.", ["# Title", "Text."]),
        ("Title\n=====\nText.", ["Title", "Text."]),
        ("**Title**\nText.", ["Title", "Text."]),
        ("Fruit:\n- an apple\n- a pear. Ripe.", ["Fruit:", "- an apple", "- a pear.", "Ripe."]),
        ("1. First.\n2. Second", ["1. First.", "2. Second"]),
        ("1. First. 2. Second.", ["1. First.", "2. Second."]),
        ("| a | b |\n|---|---|\n| 1 | 2 |", ["a b", "1 2"]),
        ("**Bold.** *Slanted.* `x`", ["Bold.", "Slanted.", "x"]),
        ("你好。今天很好！是吗？", ["你好。", "今天很好！", "是吗？"]),
        ("他问：“真的吗？”然后走了。好。", ["他问：“真的吗？”然后走了。", "好。"]),
        ("“好。”“走吧。”", ["“好。”", "“走吧。”"]),
        ("「本当ですか？」と聞いた。はい。", ["「本当ですか？」と聞いた。", "はい。"]),
        ("一、首先。\n二、其次。", ["一、首先。", "二、其次。"]),
        ("Am 3. Oktober kam der Dr. und das war es. Ende.", ["Am 3. Oktober kam der Dr. und das war es.", "Ende."]),
        ("يوم جميل؟ نعم.", ["يوم جميل؟", "نعم."]),
        ("यह है। वह है।", ["यह है।", "वह है।"]),
    ],
)
def test_sentences(text, found):
    assert sentences(text) == found


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", 0),
        ("!? — * 😀 &", 0),
        ("one two  three\nfour", 4),
        ("well-known don't rock’n’roll", 3),
        ("1,000.5 3.14 12:30 2024-05-01 50% $3", 6),
        ("e.g. U.S. Node.js C++ AT&T snake_case", 6),
        ("and/or this—that word--word", 6),
        ("see https://example.com/a?b=c,d now", 3),
        ("今天天气很好。", 6),
        ("用Python写3个", 5),
        ("カタカナ", 4),
        ("안녕하세요 반갑습니다", 2),
        ("यह हिन्दी है", 3),
        ("cafe\u0301 café", 2),
        ("# A title\n\n1. one\n2. two\n- three\n> four", 6),
        ("**bo**ld _it_ `code` [link](https://example.com/x) ![image](a.png)", 5),
        ("| a | b |\n|---|---|\n| 1 | 2 |", 4),
        ("2 * 3 * 4", 3),
    ],
)
def test_words(text, number):
    assert num_words(text) == number


def test_plain_text_keeps_what_only_looks_like_a_mark():
    assert strip_markdown("2*3*4 snake_case __init__ 5 * 6 a < b") == "2*3*4 snake_case init 5 * 6 a < b"


@given(TEXTS)
def test_counts_agree_on_any_text(text):
    by_paragraph = sentences_by_paragraph(text)
    assert len(by_paragraph) == len(paragraphs(text))
    assert sentences(text) == [sentence for paragraph in by_paragraph for sentence in paragraph]
    assert all(any(character.isalnum() for character in sentence) for sentence in sentences(text))
    assert num_words(text) == sum(map(num_words, paragraphs(text)))
    assert paragraphs(text) == [part for paragraph in paragraphs(text) for part in paragraphs(paragraph)]


@given(TEXTS, TEXTS)
def test_paragraphs_add_up(one, other):
    if "```" not in one and "~~~" not in one:
        assert paragraphs(f"{one}\n\n{other}") == paragraphs(one) + paragraphs(other)


@given(strategies.text(alphabet="ab.!? \n-*“”()"))
def test_no_letter_is_lost_between_sentences(text):
    assert "".join(filter(str.isalpha, " ".join(sentences(text)))) == "".join(filter(str.isalpha, text))


@pytest.mark.parametrize("unit", ["“", "“a. ", "（a。", "Hello there. ", "word ", "a", "(a.) ", "\n", "- a\n", "! "])
def test_the_segmenter_gets_a_number_of_characters_that_is_linear(unit, monkeypatch):
    given_characters = []

    def counted(language, text):
        given_characters.append(len(text))
        return segment(language, text)

    segment = tools.text.sentences.segment
    monkeypatch.setattr(tools.text.sentences, "segment", counted)
    text = unit * (100_000 // len(unit))
    sentences(text)
    assert max(given_characters, default=0) <= WINDOW
    assert sum(given_characters) <= 2 * len(text) + WINDOW


def test_a_panic_of_the_segmenter_ends_only_the_call(monkeypatch):
    class PanicException(BaseException):
        pass

    def panics(language, text):
        raise PanicException("panicked")

    monkeypatch.setattr(tools.text.sentences, "segment", panics)
    with pytest.raises(RuntimeError, match="sentencex panicked"):
        sentences("One. Two.")


@pytest.mark.parametrize("space", ["\u00a0", "\u2028", "\u202f", "\u3000", "\x1c", "\x85"])
def test_white_space_of_any_kind_is_a_space(space):
    assert sentences(f"Vitamin D{space}. Go{space}on. Done{space}!") == sentences("Vitamin D . Go on. Done !")


def test_sentences_that_do_not_fit_the_window_are_read_whole():
    long = "word " * WINDOW + "end."
    assert sentences(f"First. {long} Last.") == ["First.", long, "Last."]
    many = ["A short sentence of the middle."] * WINDOW
    assert sentences(" ".join(many)) == many
