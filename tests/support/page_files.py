"""Small documents for tests: PDF files written by hand, folders of page images, and a reader that stands in for OCR."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image as PILImage

from tools.base import ToolContext

NOWHERE = ToolContext(images={}, texts={}, image_names=[])  # document tools see nothing of the session

_TRAILER_OF_LOCKED = (
    f"/Encrypt << /Filter /Standard /V 1 /R 2 /P -44 /O <{'41' * 32}> /U <{'42' * 32}> >> /ID [<00> <00>]"
)


def write_pdf(path: Path, pages: Sequence[Sequence[str]], *, locked: bool = False) -> Path:
    """A PDF with a page for each list of lines, and a text layer; its page is 200 x 300 points."""
    kids = " ".join(f"{4 + 2 * index} 0 R" for index in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for index, lines in enumerate(pages):
        content = "BT /F1 12 Tf 14 TL 20 270 Td " + " ".join(f"({line}) Tj T*" for line in lines) + " ET"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 300] /Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * index} 0 R >>"
        )
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    written, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(written))
        written += f"{number} 0 obj\n{content}\nendobj\n".encode("latin-1")
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    trailer = f"trailer << /Size {len(objects) + 1} /Root 1 0 R {_TRAILER_OF_LOCKED if locked else ''} >>"
    end = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}{trailer}\nstartxref\n{len(written)}\n%%EOF"
    path.write_bytes(written + end.encode("latin-1"))
    return path


def write_folder(path: Path, shades: Sequence[int], size: tuple[int, int] = (40, 60)) -> Path:
    """A folder with a plain grey page for each shade: 1.png, 2.png, ..."""
    path.mkdir(parents=True)
    for number, shade in enumerate(shades, start=1):
        PILImage.new("RGB", size, (shade, shade, shade)).save(path / f"{number}.png")
    return path


class ReaderByShade:
    """In OCR's place: the text of a grey page is that of its shade."""

    def __init__(self, texts: dict[int, str]) -> None:
        self.texts = texts
        self.num_read = 0

    def __call__(self, *, threads: int) -> "ReaderByShade":
        """In the place of the class, too."""
        return self

    def read(self, pixels: PILImage.Image) -> str:
        """The text."""
        self.num_read += 1
        return self.texts[pixels.getpixel((0, 0))[0]]
