"""The index of documents, an embedded LanceDB: pages by number, and by words or meaning. arm_rl/prepare/document_builder.py builds it.

    INDEX/arm_rl_documents.json   marks the folder as one of ours: the format, and the model of the vectors
    INDEX/documents.lance         a row for each document: its name, its id, how many pages
    INDEX/texts.lance             a row for each page: the document's id, the page's number, its text, what is searched
    INDEX/images.lance            a row for each page: the document's id, the page's number, its image

A page counts once its document has a row. Names given by the policy are looked up among the names that are there; filters hold only ids
and numbers that the index made itself.
"""

import json
import threading
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

import pyarrow as pa

from arm_rl.core.atomic_file import replace_text
from arm_rl.core.errors import UserError
from arm_rl.core.images import Image
from tools.documents.embedding import TextEmbedder
from tools.documents.search_terms import query_terms

FORMAT = 1  # of the tables
MARKER = "arm_rl_documents.json"
TABLES = ("documents", "texts", "images")
DOCUMENTS = pa.schema(
    [
        ("name", pa.string()),
        ("id", pa.string()),  # of one writing of the document: hexadecimal digits
        ("num_pages", pa.int32()),
        ("num_text_pages", pa.int32()),  # pages with something to search
        ("fingerprint", pa.string()),  # of the content, and of how it was read
    ]
)
IMAGES = pa.schema([("document", pa.string()), ("number", pa.int32()), ("image", pa.binary())])
_FUSION_RANK = 60  # Cormack et al. 2009, reciprocal rank fusion: the larger, the less the first ranks stand out
_NUM_LISTED = 20

SearchMode = Literal["text", "vector", "hybrid"]


class DocumentIndexError(UserError):
    """A folder that is no index of documents, or one that cannot be used as asked; the message names it."""


class UnknownDocumentError(LookupError):
    """No document, or more than one, goes by that name; the message lists those there are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexInfo:
    """What the marker file says."""

    format: int = FORMAT
    model: str | None = None  # of the pages' vectors; None where they have none
    dimension: int = 0  # of these

    def write(self, folder: Path) -> None:
        """Marks the folder."""
        replace_text(folder / MARKER, json.dumps(asdict(self)) + "\n")


def read_info(folder: Path) -> IndexInfo:
    """Reads the marker, and nothing else.

    Raises:
        DocumentIndexError: the folder is not there, is none of ours, or was made by another version.
    """
    file = folder / MARKER
    try:
        info = IndexInfo(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        kind = "not an index of documents" if folder.is_dir() else "there is no such folder"
        raise DocumentIndexError(
            f"{folder}: {kind}: build one with: python -m jobs.prepare_data documents FILES --out {folder}"
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise DocumentIndexError(f"{file}: cannot be read: {error}") from error
    if info.format != FORMAT:
        raise DocumentIndexError(
            f"{folder}: an index of format {info.format}, and this version reads {FORMAT}: build it again"
        )
    return info


def check(folder: Path, model: str | None) -> None:
    """Checks, without opening it, that the folder holds an index that the model (None for no model) can search.

    Raises:
        DocumentIndexError: it does not.
    """
    info = read_info(folder)
    missing = [name for name in TABLES if not (folder / f"{name}.lance").is_dir()]
    if missing:
        raise DocumentIndexError(f"{folder}: {missing[0]}.lance is missing: build the index again")
    if model is not None and info.model != model:
        built = f"with {info.model!r}" if info.model else "without one"
        raise DocumentIndexError(f"{folder}: built {built}, so that model {model!r} cannot search it")


def texts_schema(dimension: int) -> pa.Schema:
    """Columns of the texts; `dimension` of their vectors is 0 where there are none."""
    columns = [
        ("document", pa.string()),  # its id
        ("number", pa.int32()),  # from 1
        ("text", pa.string()),
        ("terms", pa.string()),  # search_terms.page_terms of the text
    ]
    return pa.schema(columns + ([("vector", pa.list_(pa.float32(), dimension))] if dimension else []))


def connect(folder: Path) -> Any:
    """The database in the folder. The package takes seconds to import and starts threads, so that it is imported here."""
    import lancedb

    return lancedb.connect(str(folder))


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A document of the index."""

    name: str
    id: str
    num_pages: int
    num_text_pages: int
    fingerprint: str


def read_documents(table: Any) -> dict[str, Document]:
    """All documents by name, in order of names."""
    rows = sorted(table.to_arrow().to_pylist(), key=lambda row: row["name"])
    return {row["name"]: Document(**row) for row in rows}


class DocumentIndex:
    """An index, open for reading: what was in it when it was opened. Threads and processes may share it."""

    def __init__(self, folder: Path, *, embedder: TextEmbedder | None = None) -> None:
        """Opens it.

        Args:
            embedder: of queries, for the search by meaning; the one that the pages' vectors are from.

        Raises:
            DocumentIndexError: it cannot be used.
        """
        check(folder, None if embedder is None else embedder.model)
        try:
            database = connect(folder)
            # Documents first: their pages were there before they were.
            self.documents = read_documents(database.open_table("documents"))
            self._texts, self._images = database.open_table("texts"), database.open_table("images")
        except (OSError, ValueError, RuntimeError) as error:
            raise DocumentIndexError(f"{folder}: cannot be opened: {error}") from error
        self._embedder = embedder
        self._by_stem: dict[str, list[str]] = {}
        for name in self.documents:
            self._by_stem.setdefault(PurePath(name).stem, []).append(name)

    def find(self, name: str) -> Document:
        """The document of that name, with or without the extension.

        Raises:
            UnknownDocumentError: none has it, or more than one without the extension.
        """
        name = unicodedata.normalize("NFC", name)
        if name in self.documents:
            return self.documents[name]
        found = self._by_stem.get(name, [])
        if len(found) == 1:
            return self.documents[found[0]]
        if found:
            raise UnknownDocumentError(f"{name!r} may be any of {', '.join(found[:_NUM_LISTED])}")
        known = list(self.documents)
        more = f" and {len(known) - _NUM_LISTED} more" if len(known) > _NUM_LISTED else ""
        raise UnknownDocumentError(
            f"there is no document {name!r:.100}; known: {', '.join(known[:_NUM_LISTED]) or 'none'}{more}"
        )

    def pages(self, document: Document, numbers: Sequence[int]) -> list[Image]:
        """Images of pages, in the order of `numbers`; each from 1 to `document.num_pages`."""
        wanted = f"{_document_filter(document)} AND number IN ({', '.join(str(int(number)) for number in numbers)})"
        rows = self._images.search().where(wanted).select(["number", "image"]).limit(len(numbers)).to_arrow()
        found = dict(zip(rows["number"].to_pylist(), rows["image"].to_pylist(), strict=True))
        return [Image.from_bytes(found[number]) for number in numbers]

    def search(self, document: Document, query: str, k: int, mode: SearchMode = "text") -> list[int]:
        """Numbers of the pages that match best, best first; by words at most those that share one with the query."""
        if mode == "text":
            return self._search_words(document, query, k)
        if mode == "vector":
            return self._search_vectors(document, query, k)
        wide = 4 * k  # a page that is middling in both lists may be the best of all
        return fuse_rankings([self._search_words(document, query, wide), self._search_vectors(document, query, wide)])[
            :k
        ]

    def _search_words(self, document: Document, query: str, k: int) -> list[int]:
        terms = query_terms(query)
        if not terms:
            return []
        search = self._texts.search(terms, query_type="fts", fts_columns="terms").where(
            _document_filter(document), prefilter=True
        )
        rows = search.select(["number", "_score"]).limit(k).to_arrow()
        return _rank_pages(rows["number"], rows["_score"], sign=-1)

    def _search_vectors(self, document: Document, query: str, k: int) -> list[int]:
        if self._embedder is None:
            raise DocumentIndexError("a search by meaning needs a model")
        vector = self._embedder.encode([query])[0]
        search = self._texts.search(vector, vector_column_name="vector").distance_type("cosine")
        rows = (
            search.where(f"{_document_filter(document)} AND terms != ''", prefilter=True)
            .select(["number", "_distance"])
            .limit(k)
            .to_arrow()
        )
        return _rank_pages(rows["number"], rows["_distance"], sign=1)


class LazyIndex:
    """An index that is checked now and opened at its first use, by whichever thread comes first. Pickles until then."""

    _OPENING = threading.Lock()

    def __init__(self, folder: Path, embedder: TextEmbedder | None = None) -> None:
        self._folder, self._embedder = folder, embedder
        self._open: DocumentIndex | None = None
        check(folder, None if embedder is None else embedder.model)

    def get(self) -> DocumentIndex:
        """The open index."""
        if self._open is None:
            with self._OPENING:
                if self._open is None:
                    self._open = DocumentIndex(self._folder, embedder=self._embedder)
        return self._open


def fuse_rankings(rankings: Sequence[Sequence[int]]) -> list[int]:
    """Merge rankings by reciprocal rank fusion (Cormack et al. 2009); ties are in the order of pages."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, number in enumerate(ranking, start=1):
            scores[number] = scores.get(number, 0.0) + 1.0 / (_FUSION_RANK + rank)
    return sorted(scores, key=lambda number: (-scores[number], number))


def _rank_pages(numbers: pa.ChunkedArray, values: pa.ChunkedArray, *, sign: int) -> list[int]:
    """Sort page numbers by rising `sign` * value; ties are in the order of pages."""
    return [
        number
        for _, number in sorted(zip((sign * value for value in values.to_pylist()), numbers.to_pylist(), strict=True))
    ]


def _document_filter(document: Document) -> str:
    return f"document = '{document.id}'"
