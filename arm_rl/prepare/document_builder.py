"""Builds the index of documents that the retrieval tools read: pages rendered, their text read, stored document by document."""

import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa

from arm_rl.prepare.page_sources import Page, Source, SourceError, open_source
from tools.documents.embedding import TextEmbedder
from tools.documents.index import (
    DOCUMENTS,
    IMAGES,
    MARKER,
    TABLES,
    DocumentIndexError,
    IndexInfo,
    connect,
    read_documents,
    read_info,
    texts_schema,
)
from tools.documents.search_terms import page_terms
from tools.ocr import TextReader

OcrMode = Literal["auto", "always", "never"]

_MIN_LAYER_CHARACTERS = 8  # letters and digits; a text layer with fewer, such as a page number alone, counts as none
_PAGES_AT_A_TIME = 64  # in memory; as many are a fragment of the images' table
_KEPT = timedelta(hours=1)  # versions of a table that a reader may still have open
_LOCK = ".building"


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildProgress:
    """How far a build is, after every page."""

    document: str
    pages_done: int  # those of unchanged documents are done from the start
    num_pages: int


@dataclass(kw_only=True, slots=True)
class BuildSummary:
    """What a build did; documents by name."""

    index: Path
    added: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)  # were there with another content, or read in another way
    unchanged: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  # what could not be read, and why
    num_pages: int = 0  # written now
    num_pages_by_ocr: int = 0
    num_pages_without_text: int = 0


def build_index(
    sources: Sequence[Path],
    out: Path,
    *,
    ocr: OcrMode = "auto",
    long_side: int = 1120,
    model: str | None = None,
    threads: int | None = None,
    skip_unreadable: bool = False,
    on_page: Callable[[BuildProgress], None] | None = None,
) -> BuildSummary:
    """Adds documents to the index at `out`, which is made where there is none.

    What is in the index with the same content, read in the same way, is left as it is. A document counts once it is whole: where a build
    is interrupted, the next one goes on with the document that it was at.

    Args:
        sources: PDF files, and folders of page images. A document is known by the name of its file or folder.
        ocr: whether text is read from the page's image: where the PDF has none of its own, always, or never.
        long_side: pixels; PDF pages are rendered to it, larger page images are scaled down to it, others are stored byte for byte. 0
            stores images as they are and renders PDFs at 144 dots an inch.
        model: a sentence-transformers model, for the search by meaning.
        threads: for OCR; all cores by default.
        skip_unreadable: leaves out what cannot be read, where it would else be an error.

    Raises:
        UserError: a source that cannot be read, two of one name, or an `out` that cannot be used; nothing but whole documents was written.
    """
    if ocr not in get_args(OcrMode):
        raise SourceError(f"ocr: one of {', '.join(get_args(OcrMode))}, not {ocr!r}")
    if long_side and long_side < 28:
        raise SourceError(f"long_side: 0, or at least 28 pixels, not {long_side}")
    summary = BuildSummary(index=out)
    opened = _open_all(sources, summary if skip_unreadable else None)
    reader = None if ocr == "never" else TextReader(threads=threads or os.cpu_count() or 1)
    embedder = None if model is None else TextEmbedder(model)
    with _lock_folder(out):
        writer = _IndexWriter(out, embedder)
        builder = _Builder(writer, summary, ocr, reader, long_side, on_page)
        builder.run(opened, skip_unreadable)
    return summary


def _open_all(paths: Sequence[Path], skipping: BuildSummary | None) -> list[Source]:
    """All sources, or all that is wrong with them in one error."""
    found: dict[str, Source] = {}
    errors: list[str] = []
    for path in paths:
        try:
            source = open_source(path)
        except SourceError as error:
            if skipping is None:
                errors.append(str(error))
            else:
                skipping.skipped[str(path)] = str(error)
            continue
        if source.name in found:
            errors.append(
                f"{path} and {found[source.name].path}: two documents of the name {source.name!r}; rename one"
            )
        found[source.name] = source
    if errors:
        raise SourceError("\n".join(errors))
    if not found:
        raise SourceError(
            "no document to read: "
            + ("; ".join(skipping.skipped.values()) if skipping and skipping.skipped else "no file given")
        )
    return list(found.values())


@contextmanager
def _lock_folder(out: Path) -> Iterator[None]:
    """Make the folder and hold it against a second build."""
    if out.exists() and not (out.is_dir() and ((out / MARKER).exists() or _is_unused(out))):
        raise DocumentIndexError(f"{out}: there is something else: give a new folder, or an index of documents")
    out.mkdir(parents=True, exist_ok=True)
    with (out / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DocumentIndexError(f"{out}: another build is at work on it") from error
        yield


def _is_unused(out: Path) -> bool:
    """Empty, or left by a build that was interrupted before its first document."""
    return all(entry.name in {_LOCK, *(f"{name}.lance" for name in TABLES)} for entry in out.iterdir())


class _Builder:
    """Reads sources and hands them to the writer."""

    def __init__(
        self,
        writer: "_IndexWriter",
        summary: BuildSummary,
        ocr: OcrMode,
        reader: TextReader | None,
        long_side: int,
        on_page: Callable[[BuildProgress], None] | None,
    ) -> None:
        self.writer, self.summary = writer, summary
        self.ocr, self.reader, self.long_side, self.on_page = ocr, reader, long_side, on_page
        self.pages_done = 0

    def run(self, sources: Sequence[Source], skip_unreadable: bool) -> None:
        num_pages = sum(source.num_pages for source in sources)
        try:
            for source in sources:
                try:
                    self._add_document(source, num_pages)
                except SourceError as error:
                    if not skip_unreadable:
                        raise
                    self.summary.skipped[str(source.path)] = str(error)
        finally:
            self.writer.finish()  # what was written up to an error is whole, and stays

    def _add_document(self, source: Source, num_pages: int) -> None:
        fingerprint = self._fingerprint(source)
        before = self.writer.documents.get(source.name)
        if before is not None and before.fingerprint == fingerprint:
            self.summary.unchanged.append(source.name)
            self.pages_done += source.num_pages
            return
        counts = {"ocr": 0, "empty": 0}

        def read_pages() -> Iterator[tuple[Page, str]]:
            for page in source.pages(self.long_side):
                text, by_ocr = self._page_text(page)
                counts["ocr"] += by_ocr
                counts["empty"] += not page_terms(text)
                yield page, text
                self.pages_done += 1
                if self.on_page is not None:
                    self.on_page(BuildProgress(document=source.name, pages_done=self.pages_done, num_pages=num_pages))

        self.writer.write(source.name, fingerprint, read_pages())
        (self.summary.added if before is None else self.summary.replaced).append(source.name)
        self.summary.num_pages += source.num_pages
        self.summary.num_pages_by_ocr += counts["ocr"]
        self.summary.num_pages_without_text += counts["empty"]

    def _fingerprint(self, source: Source) -> str:
        return f"{source.content_hash()} ocr={self.ocr} long_side={self.long_side}"

    def _page_text(self, page: Page) -> tuple[str, bool]:
        """Return the page's text, and whether OCR read it."""
        enough = sum(character.isalnum() for character in page.text) >= _MIN_LAYER_CHARACTERS
        if self.reader is None or (self.ocr == "auto" and enough):
            return page.text, False
        return self.reader.read(page.pixels()) or page.text, True


class _IndexWriter:
    """Writes whole documents: first all pages under a new id, then the row that makes them count."""

    def __init__(self, out: Path, embedder: TextEmbedder | None) -> None:
        self.out, self.embedder = out, embedder
        self.database = connect(out)
        if not (out / MARKER).exists():
            self._create()
        self.info = read_info(out)
        model = None if embedder is None else embedder.model
        if self.info.model != model:
            raise DocumentIndexError(
                f"{out}: built with the model {self.info.model!r}, now {model!r}: give that one, or another folder"
            )
        self.table, self.texts, self.images = (self.database.open_table(name) for name in TABLES)
        self.documents = read_documents(self.table)
        self._drop_uncounted()  # of a build that was killed

    def _create(self) -> None:
        from lancedb.index import FTS

        dimension = 0 if self.embedder is None else self.embedder.encode(["a"]).shape[1]
        for name, schema in (("documents", DOCUMENTS), ("texts", texts_schema(dimension)), ("images", IMAGES)):
            # of a build that was interrupted before the marker stood
            shutil.rmtree(self.out / f"{name}.lance", ignore_errors=True)
            table = self.database.create_table(name, schema=schema)
            if name == "texts":  # the terms are split already; English words are also found by their other forms
                words = FTS(base_tokenizer="whitespace", stem=True, remove_stop_words=False, max_token_length=None)
                table.create_index("terms", config=words)
        IndexInfo(model=None if self.embedder is None else self.embedder.model, dimension=dimension).write(self.out)

    def write(self, name: str, fingerprint: str, pages: Iterator[tuple[Page, str]]) -> None:
        """Writes a document, in place of one of the same name."""
        document = uuid.uuid4().hex
        rows: list[dict[str, Any]] = []
        num_pages = num_text_pages = 0
        for number, (page, text) in enumerate(pages, start=1):
            terms = page_terms(text)
            rows.append(
                {"document": document, "number": number, "text": text, "terms": terms, "image": page.image.data}
            )
            num_pages, num_text_pages = number, num_text_pages + bool(terms)
            if len(rows) == _PAGES_AT_A_TIME:
                self._add(rows)
                rows = []
        self._add(rows)
        row = {
            "name": name,
            "id": document,
            "num_pages": num_pages,
            "num_text_pages": num_text_pages,
            "fingerprint": fingerprint,
        }
        counted = pa.Table.from_pylist([row], schema=DOCUMENTS)
        self.table.merge_insert("name").when_matched_update_all().when_not_matched_insert_all().execute(counted)
        self.documents = read_documents(self.table)

    def _add(self, rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        if self.embedder is not None:
            vectors = self.embedder.encode([row["text"] for row in rows])
            rows = [{**row, "vector": vector.tolist()} for row, vector in zip(rows, vectors, strict=True)]
        self.images.add(pa.Table.from_pylist(rows, schema=IMAGES))
        self.texts.add(pa.Table.from_pylist(rows, schema=texts_schema(self.info.dimension)))

    def finish(self) -> None:
        """Drops the pages of documents that were replaced, and brings the search up to date."""
        from lancedb.index import BTree

        self._drop_uncounted()
        for table in (self.texts, self.table):
            table.optimize(cleanup_older_than=_KEPT)
        self.images.create_index("document", config=BTree(), replace=True)

    def _drop_uncounted(self) -> None:
        """Drops pages that belong to no document. Only then are the images compacted, too: it writes all of them again."""
        count = {document.id for document in self.documents.values()}
        for table in (self.texts, self.images):
            held = set(table.search().select(["document"]).to_arrow()["document"].unique().to_pylist())
            if held - count:
                table.delete(f"document IN ({', '.join(repr(id) for id in sorted(held - count))})")
                table.optimize(cleanup_older_than=_KEPT)
