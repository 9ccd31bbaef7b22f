r"""`<image>` in a text of data stands for an image. Where the text itself is meant, it is written `\<image>`.

Of the backslashes before an `<image>`, two stand for one, and an odd one makes the `<image>` text.
"""

import re
from collections.abc import Sequence

IMAGE = "<image>"
_PLACE = re.compile(r"(\\*)<image>")
_TRAILING = re.compile(r"(\\*)\Z")


def count_images(text: str) -> int:
    """Return the number of images that a text shows."""
    return sum(len(place[1]) % 2 == 0 for place in _PLACE.finditer(text))


def split_at_images(text: str) -> list[str]:
    """Return the texts before, between and after the images, without escapes: one more than there are images."""
    pieces, end = [""], 0
    for place in _PLACE.finditer(text):
        pieces[-1] += text[end : place.start()] + place[1][: len(place[1]) // 2]
        if len(place[1]) % 2:
            pieces[-1] += IMAGE
        else:
            pieces.append("")
        end = place.end()
    pieces[-1] += text[end:]
    return pieces


def join_at_images(pieces: Sequence[str]) -> str:
    """Return the text that `split_at_images` splits into these pieces."""
    *before, last = map(escape_images, pieces)
    return "".join(_TRAILING.sub(r"\1\1", piece, count=1) + IMAGE for piece in before) + last


def escape_images(text: str) -> str:
    """Return a text as it is written in data, where its own `<image>` stands for no image."""
    return _PLACE.sub(lambda place: place[1] * 2 + "\\" + IMAGE, text)
