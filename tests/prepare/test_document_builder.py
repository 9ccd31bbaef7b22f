"""Building an index of documents: what is stored, what is refused, and what an interruption leaves."""

import fcntl
import unicodedata
from pathlib import Path

import pytest
from PIL import Image as PILImage

from arm_rl.core.errors import UserError
from arm_rl.prepare import document_builder
from arm_rl.prepare.document_builder import build_index
from arm_rl.prepare.page_sources import SourceError, natural_order
from tests.support.page_files import ReaderByShade, write_folder, write_pdf
from tests.support.scripted import noise
from tools.documents.index import MARKER, DocumentIndex, DocumentIndexError


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "index"


def rows(out: Path) -> tuple[int, int]:
    """How many texts and images lie in the tables, those that do not count too."""
    from lancedb import connect

    return connect(out).open_table("texts").count_rows(), connect(out).open_table("images").count_rows()


def shades(index: DocumentIndex, name: str) -> list[int]:
    """The first pixel of each page."""
    document = index.find(name)
    pages = index.pages(document, range(1, document.num_pages + 1))
    return [page.pil().getpixel((0, 0))[0] for page in pages]


def test_page_images_are_kept_byte_for_byte_in_natural_order(tmp_path, out):
    folder = tmp_path / "scan"
    folder.mkdir()
    names = ["page1.png", "page2.jpg", "page10.PNG", "page100.jpeg"]
    for shade, name in enumerate(names):
        PILImage.new("RGB", (30, 40), (shade, 0, 0)).save(folder / name)
    (folder / "notes.txt").write_text("not a page")
    (folder / ".hidden.png").write_bytes(b"")
    summary = build_index([folder], out, ocr="never")
    assert (summary.added, summary.num_pages, summary.num_pages_without_text) == (["scan"], 4, 4)
    index = DocumentIndex(out)
    pages = index.pages(index.find("scan"), [1, 2, 3, 4])
    assert [page.data for page in pages] == [(folder / name).read_bytes() for name in names]


def test_pages_come_in_the_order_asked_for(tmp_path, out):
    build_index([write_folder(tmp_path / "doc", [10, 20, 30])], out, ocr="never")
    index = DocumentIndex(out)
    assert [page.pil().getpixel((0, 0))[0] for page in index.pages(index.find("doc"), [3, 1])] == [30, 10]


@pytest.mark.parametrize(("long_side", "size"), [(60, (40, 60)), (59, (39, 59)), (30, (20, 30)), (0, (40, 60))])
def test_larger_page_images_are_scaled_down(tmp_path, out, long_side, size):
    folder = write_folder(tmp_path / "doc", [10])
    build_index([folder], out, ocr="never", long_side=long_side)
    index = DocumentIndex(out)
    (page,) = index.pages(index.find("doc"), [1])
    assert page.size == size
    assert (page.data == (folder / "1.png").read_bytes()) == (size == (40, 60))


@pytest.mark.parametrize("suffix", ["bmp", "tif", "webp"])
def test_other_formats_become_png(tmp_path, out, suffix):
    (tmp_path / "doc").mkdir()
    noise(30, 40).save(tmp_path / "doc" / f"1.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    build_index([tmp_path / "doc"], out, ocr="never")
    index = DocumentIndex(out)
    (page,) = index.pages(index.find("doc"), [1])
    assert page.data.startswith(b"\x89PNG")
    assert page.pil().tobytes() == noise(30, 40).tobytes()


def test_pdf_pages_are_rendered_and_their_own_text_is_searched(tmp_path, out):
    pdf = write_pdf(tmp_path / "report.pdf", [["annual report", "of the company"], ["revenue and costs", "by country"]])
    summary = build_index([pdf], out, ocr="never", long_side=150)
    assert (summary.num_pages, summary.num_pages_by_ocr, summary.num_pages_without_text) == (2, 0, 0)
    index = DocumentIndex(out)
    document = index.find("report.pdf")
    assert index.search(document, "revenue", 5) == [2]
    pages = index.pages(document, [1, 2])
    assert [page.size for page in pages] == [(100, 150), (100, 150)]
    assert all(min(page.pil().convert("L").tobytes()) < 100 for page in pages)  # there is ink


def test_pdf_without_a_limit_is_rendered_at_twice_its_size(tmp_path, out):
    build_index([write_pdf(tmp_path / "a.pdf", [["x"]])], out, ocr="never", long_side=0)
    index = DocumentIndex(out)
    assert index.pages(index.find("a"), [1])[0].size == (400, 600)


@pytest.mark.parametrize(("ocr", "read"), [("never", 0), ("auto", 1), ("always", 2)])
def test_ocr_reads_where_there_is_no_text_of_its_own(tmp_path, out, monkeypatch, ocr, read):
    pdf = write_pdf(tmp_path / "mixed.pdf", [["printed text of a page"], ["12"]])
    reader = ReaderByShade({255: "scanned words"})
    monkeypatch.setattr(document_builder, "TextReader", reader)
    summary = build_index([pdf], out, ocr=ocr)
    assert summary.num_pages_by_ocr == reader.num_read == read
    index = DocumentIndex(out)
    document = index.find("mixed.pdf")
    assert index.search(document, "scanned", 5) == {"never": [], "auto": [2], "always": [1, 2]}[ocr]
    assert index.search(document, "printed", 5) == ([] if ocr == "always" else [1])


def test_ocr_reads_a_page_sharper_than_it_is_kept(tmp_path, out, monkeypatch):
    seen = []

    class Reader(ReaderByShade):
        def read(self, pixels):
            seen.append(pixels.size)
            return ""

    monkeypatch.setattr(document_builder, "TextReader", Reader({}))
    sources = [write_pdf(tmp_path / "a.pdf", [[""]]), write_folder(tmp_path / "b", [7], size=(200, 300))]
    build_index(sources, out, long_side=90)
    assert seen == [(1120, 1680), (200, 300)]


def test_a_second_run_leaves_what_is_unchanged(tmp_path, out):
    sources = [write_folder(tmp_path / "a", [1, 2]), write_pdf(tmp_path / "b.pdf", [["some words here"]])]
    build_index(sources, out, ocr="never")
    written = []
    summary = build_index(
        [*sources, write_folder(tmp_path / "c", [3])],
        out,
        ocr="never",
        on_page=lambda progress: written.append(progress),
    )
    assert (summary.unchanged, summary.added, summary.replaced, summary.num_pages) == (["a", "b.pdf"], ["c"], [], 1)
    assert [(progress.document, progress.pages_done, progress.num_pages) for progress in written] == [("c", 4, 4)]
    assert list(DocumentIndex(out).documents) == ["a", "b.pdf", "c"]


def test_changed_content_replaces_a_document_and_leaves_no_page_behind(tmp_path, out):
    build_index([write_folder(tmp_path / "a", [1, 2, 3]), write_folder(tmp_path / "b", [9])], out, ocr="never")
    before = DocumentIndex(out)
    summary = build_index([write_folder(tmp_path / "elsewhere" / "a", [4, 5])], out, ocr="never")
    assert (summary.replaced, summary.added) == (["a"], [])
    assert (shades(DocumentIndex(out), "a"), shades(DocumentIndex(out), "b")) == ([4, 5], [9])
    assert rows(out) == (3, 3)
    assert shades(before, "a") == [1, 2, 3]  # a reader that was open still reads what it opened


@pytest.mark.parametrize("change", [{"ocr": "auto"}, {"long_side": 30}])
def test_another_way_of_reading_replaces_a_document(tmp_path, out, monkeypatch, change):
    monkeypatch.setattr(document_builder, "TextReader", ReaderByShade({1: "one"}))
    folder = write_folder(tmp_path / "a", [1])
    build_index([folder], out, ocr="never")
    assert build_index([folder], out, **{"ocr": "never", **change}).replaced == ["a"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_whole_documents_and_the_next_run_goes_on(tmp_path, out, monkeypatch, interruption):
    monkeypatch.setattr(document_builder, "_PAGES_AT_A_TIME", 1)  # pages of the broken-off document are in the tables
    sources = [write_folder(tmp_path / name, [1, 2, 3]) for name in ("a", "b", "c")]

    def stop(progress):
        if progress.pages_done == 5:
            raise interruption

    with pytest.raises(interruption):
        build_index(sources, out, ocr="never", on_page=stop)
    assert list(DocumentIndex(out).documents) == ["a"]
    summary = build_index(sources, out, ocr="never")
    assert (summary.unchanged, summary.added) == (["a"], ["b", "c"])
    assert rows(out) == (9, 9)
    assert shades(DocumentIndex(out), "b") == [1, 2, 3]


def test_a_kill_leaves_pages_that_do_not_count(tmp_path, out, monkeypatch):
    monkeypatch.setattr(document_builder, "_PAGES_AT_A_TIME", 1)
    # as if there had been no time for it
    monkeypatch.setattr(document_builder._IndexWriter, "finish", lambda self: None)
    pdf = write_pdf(tmp_path / "a.pdf", [["apples and pears"], ["pears and plums"]])
    build_index([pdf], out, ocr="never")
    half = write_pdf(tmp_path / "half.pdf", [["apples again"], ["more apples"]])

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index([half], out, ocr="never", on_page=stop)
    assert rows(out)[0] == 3
    index = DocumentIndex(out)
    assert list(index.documents) == ["a.pdf"]
    assert index.search(index.find("a"), "apples", 5) == [1]  # found before the search was brought up to date
    monkeypatch.undo()
    build_index([half], out, ocr="never")
    assert rows(out) == (4, 4)


def test_a_build_killed_before_its_marker_begins_anew(tmp_path, out):
    folder = write_folder(tmp_path / "a", [1])
    build_index([folder], out, ocr="never")
    (out / MARKER).unlink()
    assert build_index([folder], out, ocr="never").added == ["a"]
    assert rows(out) == (1, 1)


def broken_sources(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """Paths that cannot be read, and what the message says of them."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "pdfs").mkdir()
    (tmp_path / "pdfs" / "x.pdf").write_bytes(b"")
    (tmp_path / "text.pdf").write_text("just a text")
    write_folder(tmp_path / "bad_image", [1, 2])
    (tmp_path / "bad_image" / "3.png").write_text("no image")
    write_folder(tmp_path / "tiff", [1])
    noise(9, 9).save(tmp_path / "tiff" / "2.tif", save_all=True, append_images=[noise(9, 9)])
    return {
        "encrypted": (write_pdf(tmp_path / "locked.pdf", [["secret"]], locked=True), r"locked\.pdf: encrypted"),
        "broken": (tmp_path / "text.pdf", r"text\.pdf: not a readable PDF"),
        "no pages": (write_pdf(tmp_path / "none.pdf", []), r"none\.pdf: not a readable PDF file, or one without pages"),
        "empty": (tmp_path / "empty", r"empty: no page images"),
        "PDFs inside": (tmp_path / "pdfs", r"pdfs: no page images.*\*\.pdf"),
        "absent": (tmp_path / "absent.pdf", r"absent\.pdf: there is no such file"),
        "one image": (tmp_path / "bad_image" / "1.png", r"1\.png: a single image; put"),
        "bad image": (tmp_path / "bad_image", r"3\.png: not a readable image"),
        "frames": (tmp_path / "tiff", r"2\.tif: 2 images in one file"),
    }


def test_what_cannot_be_read_is_refused_at_the_door_and_all_of_it_is_named(tmp_path, out):
    broken = broken_sources(tmp_path)
    good = write_folder(tmp_path / "good", [1])
    with pytest.raises(SourceError) as raised:
        build_index([good, *(path for path, _ in broken.values())], out, ocr="never")
    lines = str(raised.value).splitlines()
    assert len(lines) == len(broken)
    for line, (_, message) in zip(lines, broken.values(), strict=True):
        with pytest.raises(SourceError, match=message):
            raise SourceError(line)
    assert not out.exists()


def test_what_cannot_be_read_is_skipped_where_that_is_wanted(tmp_path, out):
    broken = broken_sources(tmp_path)
    sources = [*(path for path, _ in broken.values()), write_folder(tmp_path / "good", [1])]
    summary = build_index(sources, out, ocr="never", skip_unreadable=True)
    assert summary.added == ["good"]
    assert list(summary.skipped) == [str(path) for path, _ in broken.values()]
    with pytest.raises(SourceError, match="encrypted"):
        build_index([broken["encrypted"][0]], out, ocr="never", skip_unreadable=True)  # nothing is left


def test_a_page_that_breaks_off_names_its_file_and_keeps_the_documents_before(tmp_path, out):
    good, bad = write_folder(tmp_path / "good", [1]), tmp_path / "bad"
    bad.mkdir()
    noise(300, 300).save(bad / "1.png")
    whole = (bad / "1.png").read_bytes()
    (bad / "1.png").write_bytes(whole[: len(whole) // 2])  # its header is fine
    with pytest.raises(SourceError, match=r"bad/1\.png"):
        build_index([good, bad], out, ocr="never")
    assert list(DocumentIndex(out).documents) == ["good"]
    summary = build_index([good, bad], out, ocr="never", skip_unreadable=True)
    assert (summary.unchanged, list(summary.skipped)) == (["good"], [str(bad)])


def test_two_documents_of_one_name_are_refused(tmp_path, out):
    with pytest.raises(SourceError, match=r"two documents of the name 'a'"):
        build_index(
            [write_folder(tmp_path / "x" / "a", [1]), write_folder(tmp_path / "y" / "a", [2])], out, ocr="never"
        )
    assert not out.exists()


def test_names_are_composed(tmp_path, out):
    name = "r\u00e9sum\u00e9"
    build_index([write_folder(tmp_path / unicodedata.normalize("NFD", name), [5])], out, ocr="never")
    index = DocumentIndex(out)
    assert list(index.documents) == [name]
    assert index.find(unicodedata.normalize("NFD", name)).num_pages == 1


@pytest.mark.parametrize(
    ("options", "message"), [({"ocr": "sometimes"}, "ocr: one of"), ({"long_side": 5}, "long_side: 0, or at least 28")]
)
def test_wrong_options_are_refused(tmp_path, out, options, message):
    with pytest.raises(UserError, match=message):
        build_index([write_folder(tmp_path / "a", [1])], out, **{"ocr": "never", **options})


def test_a_folder_with_something_else_is_not_written_into(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(DocumentIndexError, match="there is something else"):
        build_index([write_folder(tmp_path / "a", [1])], tmp_path / "home", ocr="never")
    assert [entry.name for entry in (tmp_path / "home").iterdir()] == ["letter.txt"]


def test_one_build_at_a_time(tmp_path, out):
    folder = write_folder(tmp_path / "a", [1])
    build_index([folder], out, ocr="never")
    with (out / ".building").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DocumentIndexError, match="another build"):
            build_index([folder], out, ocr="never")
    assert build_index([folder], out, ocr="never").unchanged == ["a"]


def test_natural_order():
    assert natural_order(["b1", "a10", "a2", "A1", "10", "9", "a2b3", "a2b12", "007"]) == [
        "007",
        "9",
        "10",
        "A1",
        "a2",
        "a2b3",
        "a2b12",
        "a10",
        "b1",
    ]
