"""`<image>` in texts of data: images, and the text itself."""

import pytest
from hypothesis import given, strategies

from arm_rl.core.placeholders import count_images, escape_images, join_at_images, split_at_images

TEXTS = strategies.lists(strategies.sampled_from(["<image>", "\\", "a", "<", "image>"]), max_size=8).map("".join)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", [""]),
        ("a <image> b", ["a ", " b"]),
        ("<image><image>", ["", "", ""]),
        (r"a \<image> b", ["a <image> b"]),
        (r"a \\<image> b", ["a \\", " b"]),
        (r"a \\\<image> b", [r"a \<image> b"]),
        (r"\frac{a}", [r"\frac{a}"]),
    ],
)
def test_a_text_is_split_at_its_images(text, pieces):
    assert split_at_images(text) == pieces
    assert count_images(text) == len(pieces) - 1


@given(strategies.lists(TEXTS, min_size=1, max_size=4))
def test_pieces_come_back(pieces):
    assert split_at_images(join_at_images(pieces)) == pieces
    assert count_images(join_at_images(pieces)) == len(pieces) - 1


@given(TEXTS)
def test_an_escaped_text_shows_no_image(text):
    assert split_at_images(escape_images(text)) == [text]
    assert join_at_images(split_at_images(text)) == text
