"""Pages of documents as observations: those that match a query, side by side, or one by its number."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args

from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont
from pydantic import Field

from arm_rl.core.errors import UserError
from arm_rl.core.images import Image
from arm_rl.core.session import ToolResult
from tools.base import ArgumentError, Execution, Tool, ToolContext
from tools.documents.embedding import TextEmbedder
from tools.documents.index import Document, LazyIndex, SearchMode, UnknownDocumentError
from tools.documents.search_terms import query_terms

FileName = Annotated[str, Field(description="Name of the document, such as report.pdf.")]

_GAP = 8  # pixels between pages
_CAPTION = 32  # pixels above a page, for its number
_BACKGROUND, _INK = (208, 208, 208), (0, 0, 0)


class DocumentByQueryTool(Tool):
    """Searches a document's pages and shows the best side by side, in the order of the document, each under its number.

    A document in which nothing matches is a result like any other (`ok`): that the words are not there is evidence too.
    """

    name = "doc_page_retrieval_by_query"
    description = (
        "Searches a document and shows the pages that match the query best, side by side, with their page numbers."
    )
    execution = Execution(isolation="thread")

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Arguments:
        """What to look for, and where."""

        filename: FileName
        query: Annotated[str, Field(description="What to look for: words that stand on the page.")]

    def __init__(
        self,
        *,
        index: str,
        top_k: int = 5,
        long_side: int = 1120,
        model: str | None = None,
        search: SearchMode | None = None,
    ) -> None:
        self.top_k = _require_at_least("top_k", top_k, 1)  # pages shown
        self.long_side = _require_at_least("long_side", long_side, 28)  # pixels of each page's longer side, at most
        self.mode: SearchMode = search or ("hybrid" if model else "text")
        if self.mode not in get_args(SearchMode):
            raise UserError(f"search: one of {', '.join(get_args(SearchMode))}, not {self.mode!r}")
        if self.mode != "text" and model is None:
            raise UserError(f"search: {self.mode} needs a model, the one that the index was built with")
        embedder = None if model is None or self.mode == "text" else TextEmbedder(model)
        self._index = LazyIndex(Path(index), embedder)

    def run(self, arguments: Arguments, context: ToolContext) -> ToolResult:
        """One image with the pages, and a text with their numbers."""
        if not query_terms(arguments.query):
            raise ArgumentError("query: a word to look for is needed")
        index = self._index.get()
        document = _find(self._index, arguments.filename)
        if not document.num_text_pages:
            text = f"Error: {document.name} has no text that could be searched. {_describe_length(document)}"
            return ToolResult(status="failed", text=text)
        ranked = index.search(document, arguments.query, self.top_k, self.mode)
        if not ranked:
            return ToolResult(
                status="ok", text=f"No page of {document.name} matches the query. {_describe_length(document)}"
            )
        numbers = sorted(ranked)
        pages = [_shrink(page.pil(), self.long_side) for page in index.pages(document, numbers)]
        shown = ", ".join(str(number) for number in numbers)
        best = f" The best match is page {ranked[0]}." if len(ranked) > 1 else ""
        text = f"Pages of {document.name} that match the query, from left to right: {shown}.{best} {_describe_length(document)}"
        return ToolResult(status="ok", text=text, images=(_encode_jpeg(join_side_by_side(pages, numbers)),))


class DocumentByIndexTool(Tool):
    """Shows one page."""

    name = "doc_page_retrieval_by_index"
    description = "Shows one page of a document by its number."
    execution = Execution(isolation="thread")

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Arguments:
        """Which page."""

        filename: FileName
        image_idx: Annotated[int, Field(description="Number of the page; the first is 1.")]

    def __init__(self, *, index: str, long_side: int = 1120) -> None:
        # pixels of the page's longer side, at most; 0 shows it as it is stored
        self.long_side = _require_at_least("long_side", long_side, 0)
        self._index = LazyIndex(Path(index))

    def run(self, arguments: Arguments, context: ToolContext) -> ToolResult:
        """The page, as an image; byte for byte what is stored where it is not too large."""
        document = _find(self._index, arguments.filename)
        number = arguments.image_idx
        if not 1 <= number <= document.num_pages:
            raise ArgumentError(
                f"image_idx: {document.name} has pages 1 to {document.num_pages}, and no page {number!s:.20}"
            )
        (page,) = self._index.get().pages(document, [number])
        if self.long_side and max(page.size) > self.long_side:
            page = _encode_jpeg(_shrink(page.pil(), self.long_side))
        return ToolResult(
            status="ok", text=f"Page {number} of {document.num_pages} of {document.name}.", images=(page,)
        )


def _require_at_least(key: str, value: int, least: int) -> int:
    if value < least:
        raise UserError(f"{key}: at least {least}, not {value}")
    return value


def _find(index: LazyIndex, name: str) -> Document:
    try:
        return index.get().find(name)
    except UnknownDocumentError as error:
        raise ArgumentError(f"filename: {error}") from error


def _describe_length(document: Document) -> str:
    return f"The document has {document.num_pages} page{'s' if document.num_pages > 1 else ''}."


def _shrink(page: PILImage.Image, long_side: int) -> PILImage.Image:
    """Scale a page down so that its longer side has at most `long_side` pixels."""
    factor = long_side / max(page.size)
    if factor >= 1:
        return page
    size = (max(round(page.width * factor), 1), max(round(page.height * factor), 1))
    return page.resize(size, PILImage.Resampling.BICUBIC, reducing_gap=2.0)


def join_side_by_side(pages: Sequence[PILImage.Image], numbers: Sequence[int]) -> PILImage.Image:
    """Paste pages from left to right on grey, tops aligned, each with its number above."""
    font = ImageFont.load_default(size=_CAPTION - 8)
    width = sum(page.width for page in pages) + _GAP * (len(pages) + 1)
    strip = PILImage.new("RGB", (width, max(page.height for page in pages) + _CAPTION + _GAP), _BACKGROUND)
    draw = ImageDraw.Draw(strip)
    left = _GAP
    for page, number in zip(pages, numbers, strict=True):
        draw.text((left + page.width / 2, _CAPTION / 2), str(number), fill=_INK, font=font, anchor="mm")
        strip.paste(page, (left, _CAPTION))
        left += page.width + _GAP
    return strip


def _encode_jpeg(pixels: PILImage.Image) -> Image:
    """Encode as JPEG without subsampling: five pages as PNG would take four times as long to write."""
    buffer = io.BytesIO()
    pixels.save(buffer, format="JPEG", quality=90, subsampling=0)
    return Image.from_bytes(buffer.getvalue())
