"""Where pages come from: PDF files, and folders of page images. A source is checked when it is opened and read page by page."""

import hashlib
import io
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image as PILImage

from arm_rl.core.errors import UserError
from arm_rl.core.images import Image, ImageError, open_image

KEPT_FORMATS = ("PNG", "JPEG")  # stored as they are; others are turned into PNG
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
OCR_SIDE = 1680  # pixels of the longer side of a PDF page that OCR reads: 144 dots an inch for a sheet of A4
_PDF_POINTS_SCALE = 2.0  # of a PDF whose size is not bounded: 144 dots an inch
_MAX_PDF_SIDE = 8000  # pixels, of such a PDF


class SourceError(UserError):
    """A document that cannot be read; the message names the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """A page as it was read."""

    image: Image  # to be kept
    text: str  # of the PDF's own layer; empty for an image
    pixels: Callable[[], PILImage.Image]  # as sharp as OCR wants it; to be called before the next page is read


class Source(Protocol):
    """A document that can be read."""

    path: Path
    name: str  # by which the tools know it
    num_pages: int

    def content_hash(self) -> str:
        """Equal for equal content, wherever it lies."""

    def pages(self, long_side: int) -> Iterator[Page]:
        """The pages in order, their longer side at most `long_side` pixels; 0 for no limit.

        Raises:
            SourceError: a page that cannot be read.
        """


def open_source(path: Path) -> Source:
    """Opens a PDF file or a folder of page images, and checks that it has pages.

    Raises:
        SourceError: it is neither, it is encrypted or broken, or it has no pages.
    """
    name = Path(os.path.abspath(path)).name
    if not name.isprintable() or not name:
        raise SourceError(
            f"{path!a}: the name is not printable text, and the tools ask for documents by name: rename it"
        )
    if path.is_dir():
        return _FolderSource(path, unicodedata.normalize("NFC", name))
    if not path.exists():
        raise SourceError(f"{path}: there is no such file or folder")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise SourceError(f"{path}: a single image; put the page images of a document into a folder, and give that")
    return _PdfSource(path, unicodedata.normalize("NFC", name))


def natural_order(names: Sequence[str]) -> list[str]:
    """Sorted with numbers by their value: page2 before page10."""
    return sorted(
        names,
        key=lambda name: (
            [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name.casefold())],
            name,
        ),
    )


class _FolderSource:
    """A folder whose images are the pages, in natural order of their names; whatever else lies in it is left alone."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        # a link that leads nowhere is a page too
        present = (entry for entry in path.iterdir() if entry.is_file() or not entry.exists())
        entries = [entry.name for entry in present if not entry.name.startswith(".")]
        images = [entry for entry in entries if Path(entry).suffix.lower() in IMAGE_SUFFIXES]
        if not images:
            num_pdfs = sum(entry.lower().endswith(".pdf") for entry in entries)
            hint = f"; the {num_pdfs} PDF files in it are documents of their own: give {path}/*.pdf" if num_pdfs else ""
            raise SourceError(f"{path}: no page images in it ({', '.join(IMAGE_SUFFIXES)}){hint}")
        self.files = [path / entry for entry in natural_order(images)]
        self.num_pages = len(self.files)
        for file in self.files:
            _check_image(file)

    def content_hash(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for file in self.files:
            digest.update(hashlib.blake2b(file.read_bytes()).digest())
        return digest.hexdigest()

    def pages(self, long_side: int) -> Iterator[Page]:
        for file in self.files:
            yield _read_image(file, long_side)


def _check_image(file: Path) -> None:
    """Reads the header."""
    try:
        with open_image(file) as image:
            num_frames = getattr(image, "n_frames", 1)
    except Exception as error:  # Pillow raises what it likes for a broken file
        raise SourceError(f"{file}: not a readable image: {error}") from error
    if num_frames != 1 and file.suffix.lower() in (".tif", ".tiff"):
        raise SourceError(f"{file}: {num_frames} images in one file; one for each page is needed")


def _read_image(file: Path, long_side: int) -> Page:
    image = Image.from_bytes(file.read_bytes())
    try:
        pixels = image.pil()  # decoded whole, so that no tool meets a broken page later
        kept = open_image(image.data).format in KEPT_FORMATS
    except ImageError as error:
        raise SourceError(f"{file}: {error}") from error
    if long_side and max(pixels.size) > long_side:
        small = pixels.copy()
        small.thumbnail((long_side, long_side), PILImage.Resampling.LANCZOS)
        image = encode_jpeg(small)
    elif not kept:
        image = Image.from_pil(pixels)
    return Page(image=image, text="", pixels=lambda: pixels)


def encode_jpeg(pixels: PILImage.Image) -> Image:
    """Encode as JPEG, which makes scans much smaller than PNG; without subsampling, which blurs thin coloured print."""
    buffer = io.BytesIO()
    pixels.convert("RGB").save(buffer, format="JPEG", quality=90, subsampling=0)
    return Image.from_bytes(buffer.getvalue())


class _PdfSource:
    """A PDF file. PDFium is not made for threads: one source is read at a time."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        document = _open_pdf(path)
        try:
            self.num_pages = len(document)
        finally:
            document.close()

    def content_hash(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()

    def pages(self, long_side: int) -> Iterator[Page]:
        document = _open_pdf(self.path)
        try:
            document.init_forms()  # filled-in fields are drawn too
            for number in range(self.num_pages):
                yield self._read_page(document, number, long_side)
        finally:
            document.close()

    def _read_page(self, document: Any, number: int, long_side: int) -> Page:
        from pypdfium2 import PdfiumError

        try:
            page = document[number]
            image = encode_jpeg(_render_page(page, long_side))
            text = page.get_textpage().get_text_bounded()
        except (PdfiumError, ValueError) as error:
            raise SourceError(f"{self.path}: page {number + 1} cannot be rendered: {error}") from error
        return Page(image=image, text=text, pixels=lambda: _render_page(page, OCR_SIDE))


def _render_page(page: Any, long_side: int) -> PILImage.Image:
    longest = max(*page.get_size(), 1.0)  # points, 72 an inch
    scale = long_side / longest if long_side else min(_PDF_POINTS_SCALE, _MAX_PDF_SIDE / longest)
    return page.render(scale=scale).to_pil()


def _open_pdf(path: Path) -> Any:
    import pypdfium2

    try:
        return pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        if error.err_code == pypdfium2.raw.FPDF_ERR_PASSWORD:
            raise SourceError(f"{path}: encrypted; save it without a password first") from error
        # PDFium does not tell these apart.
        raise SourceError(f"{path}: not a readable PDF file, or one without pages: {error}") from error
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from error
