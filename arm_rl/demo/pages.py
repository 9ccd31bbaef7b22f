"""The track `pages`: a digit on a page of a document, named by its number. Nothing of it is in the prompt; the page has to be fetched."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from arm_rl.demo import phrases, scenes
from arm_rl.demo.tasks import Look

NUM_PAGES = 8  # of each document
# by number: no page of the one is in the other
DOCUMENTS = {"train": tuple(range(1, 17)), "held_out": tuple(range(17, 25))}
ALL_DOCUMENTS = DOCUMENTS["train"] + DOCUMENTS["held_out"]

Place = tuple[int, int]  # number of a document, and of a page in it, from 1

_CLAIMS = [
    (right, wrong, first) for right in scenes.CLASSES for wrong in scenes.CLASSES if wrong != right for first in (0, 1)
]


@dataclass(frozen=True, kw_only=True, slots=True)
class PagesTask:
    """A page and the question about it."""

    key: tuple[int, ...]  # seed and index
    split: scenes.Split
    place: Place  # of the asked page
    claims: tuple[int, int]
    label: str

    @property
    def question(self) -> str:
        """Which digit is on the page."""
        return question(self.place)

    @property
    def view(self) -> None:
        """The prompt shows nothing."""

    @property
    def image(self) -> None:
        """The prompt shows nothing."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The claims."""
        return tuple(map(str, self.claims))

    @property
    def target_box(self) -> None:
        """A page is not a part of an image."""

    @property
    def immediate_thought(self) -> None:
        """None: the prompt shows nothing."""

    def right_look(self, rng: np.random.Generator) -> Look:
        """Return a look at the asked page."""
        return self._look(self.place)

    def wrong_look(self, rng: np.random.Generator, *, near: bool) -> Look:
        """Return a look at another page of the same document, or at any other page."""
        document, page = self.place
        if near:
            return self._look((document, _draw_other(page, range(1, NUM_PAGES + 1), rng)))
        return self._look(
            (_draw_other(document, _documents_of_split(self.split), rng), int(rng.integers(1, NUM_PAGES + 1)))
        )

    def _look(self, place: Place) -> Look:
        """Whoever sees a page believes it is the right one."""
        tile = self._tile(place)
        choice = self.claims.index(tile.digit) + 1 if tile.digit in self.claims else None
        thought = phrases.conclusion(tile.digit)
        return Look(
            tool=Pages.tool,
            arguments=arguments(place),
            text=caption(place),
            view=draw_page(tile),
            thought=thought,
            choice=choice,
        )

    def _tile(self, place: Place) -> scenes.Tile:
        """In pre-training every lesson has documents of its own, so that there is nothing to remember."""
        if self.split != "pretrain":
            return page_tile(self.key[0], place)
        rng = np.random.default_rng([*self.key, 23, *place])
        right = self.claims[int(self.label) - 1]
        return _draw_tile(right if place == self.place else int(rng.choice(scenes.CLASSES)), "pretrain", rng)


class Pages:
    """Documents of pages, each with one engraved digit."""

    name = "pages"
    ability = "long documents"
    tool = "doc_page_retrieval_by_index"

    def task(self, seed: int, split: scenes.Split, index: int) -> PagesTask:
        """Every 24 tasks in a row hold each pair of claims once in each order."""
        stream = ("train", "held_out", "pretrain").index(split)
        block, number = divmod(index, len(_CLAIMS))
        right, wrong, first = _CLAIMS[
            np.random.default_rng([seed, stream, 21, block]).permutation(len(_CLAIMS))[number]
        ]
        rng = np.random.default_rng([seed, stream, 20, index])
        if split == "pretrain":
            places = [(document, page) for document in ALL_DOCUMENTS for page in range(1, NUM_PAGES + 1)]
        else:
            places = _pages_with_digit(seed, split, right)
        place = places[int(rng.integers(len(places)))]
        claims = (right, wrong) if first == 0 else (wrong, right)
        return PagesTask(key=(seed, index), split=split, place=place, claims=claims, label="1" if first == 0 else "2")

    def stray_look(self, rng: np.random.Generator) -> Look:
        """Return a look at any page that a judge in training can know of."""
        place = int(rng.choice(DOCUMENTS["train"])), int(rng.integers(1, NUM_PAGES + 1))
        tile = _draw_tile(int(rng.choice(scenes.CLASSES)), "pretrain", rng)
        return Look(
            tool=self.tool,
            arguments=arguments(place),
            text=caption(place),
            view=draw_page(tile),
            thought=phrases.UNCLEAR,
        )

    def prepare(self, folder: Path, seed: int) -> None:
        """Writes the documents' pages and their index."""
        # brings a data base along, which the other tracks do without
        from arm_rl.prepare.document_builder import build_index

        write_documents(folder / "documents", seed)
        build_index(sorted((folder / "documents").iterdir()), folder / "index", ocr="never")

    def requests(self) -> list[str]:
        """One: documents and pages are words."""
        return [phrases.request(question((1, 1)), (0, 1))]

    def turns(self) -> list[str]:
        """A page."""
        return [phrases.call_turn(self.tool, arguments((1, 1)))]

    def observations(self) -> list[str]:
        """What stands below a page."""
        return [caption((1, 1))]

    def free_words(self) -> Sequence[str]:
        """Return none: a call has one right place."""
        return ()

    def words(self) -> Sequence[str]:
        """Documents, and digits."""
        return [*(_file_name(document) for document in ALL_DOCUMENTS), *map(str, range(10))]


def question(place: Place) -> str:
    """The question about one page."""
    document, page = place
    return f"Which digit is on page {page} of {_file_name(document)}?"


def arguments(place: Place) -> dict[str, object]:
    """Of a call that fetches a page."""
    document, page = place
    return {"filename": _file_name(document), "image_idx": page}


def caption(place: Place) -> str:
    """What the tool says of a page."""
    document, page = place
    return f"Page {page} of {NUM_PAGES} of {_file_name(document)}."


@functools.cache
def page_tile(seed: int, place: Place) -> scenes.Tile:
    """What is on a page. A document has each digit equally often."""
    document, page = place
    digits = np.random.default_rng([seed, 22, document]).permutation(
        np.repeat(scenes.CLASSES, NUM_PAGES // len(scenes.CLASSES))
    )
    split: scenes.Split = "train" if document in DOCUMENTS["train"] else "held_out"
    return _draw_tile(int(digits[page - 1]), split, np.random.default_rng([seed, 24, document, page]))


def draw_page(tile: scenes.Tile) -> np.ndarray:
    """A page's pixels, (CELL, CELL, 3), uint8: drawn as a crop of a scene, so that reading it is the same skill."""
    return scenes.draw_cell(scenes.Scene(tiles=(tile,), claims=(0, 1), label="1"), tile.row, tile.column)


def write_documents(folder: Path, seed: int) -> None:
    """Each document as a folder of page images."""
    for document in ALL_DOCUMENTS:
        pages = folder / _file_name(document)
        pages.mkdir(parents=True, exist_ok=True)
        for page in range(1, NUM_PAGES + 1):
            PILImage.fromarray(draw_page(page_tile(seed, (document, page)))).save(pages / f"{page:04}.png")


@functools.cache
def _pages_with_digit(seed: int, split: scenes.Split, digit: int) -> list[Place]:
    """Return the pages of a split with a digit on them."""
    places = [(document, page) for document in _documents_of_split(split) for page in range(1, NUM_PAGES + 1)]
    return [place for place in places if page_tile(seed, place).digit == digit]


def _documents_of_split(split: scenes.Split) -> tuple[int, ...]:
    return DOCUMENTS.get(split, ALL_DOCUMENTS)


def _draw_tile(digit: int, split: scenes.Split, rng: np.random.Generator) -> scenes.Tile:
    row, column = divmod(int(rng.integers(scenes.GRID**2)), scenes.GRID)
    color = str(rng.choice(list(scenes.COLORS)))
    return scenes.Tile(
        color=color, row=row, column=column, digit=digit, image=int(rng.choice(scenes.digit_images(split, digit)))
    )


def _draw_other(one: int, all_of_them: Sequence[int], rng: np.random.Generator) -> int:
    return int(rng.choice([other for other in all_of_them if other != one]))


def _file_name(document: int) -> str:
    return f"doc_{document}"
