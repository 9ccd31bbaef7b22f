"""The command line that prepares data: what it writes, what it says and how it ends."""

import pytest
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from jobs import prepare_data
from tests.support.page_files import write_folder, write_pdf
from tools.documents.index import DocumentIndex


def test_documents_are_indexed_and_the_last_line_says_where(tmp_path, capsys):
    pdf = write_pdf(tmp_path / "report.pdf", [["first page of the report"], ["second page: revenue"]])
    scan = tmp_path / "scan.pdf"  # as a scanner makes it: no text of its own
    pages = [PILImage.new("RGB", (60, 90), (shade, shade, shade)) for shade in (200, 250)]
    pages[0].save(scan, save_all=True, append_images=pages[1:])
    folder = write_folder(tmp_path / "folder", [30, 60, 90])
    out = tmp_path / "index"
    command = ["documents", str(pdf), str(scan), str(folder), "--out", str(out), "--ocr", "never"]
    assert prepare_data.main(command) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[-2] == "5 of the 7 pages written have no text: no query finds them"
    assert lines[-1] == f"done: the index is in {out}: documents 3 added; 7 pages written, 0 of them read by OCR"
    index = DocumentIndex(out)
    assert {name: document.num_pages for name, document in index.documents.items()} == {
        "folder": 3,
        "report.pdf": 2,
        "scan.pdf": 2,
    }
    assert index.search(index.find("report"), "revenue", 3) == [2]

    assert prepare_data.main(command) == 0
    assert "documents 3 unchanged; 0 pages written" in capsys.readouterr().out


def test_scanned_pages_are_read_by_ocr(tmp_path, capsys):
    pages = [PILImage.new("L", (420, 120), 255) for _ in range(2)]
    for page, text in zip(pages, ("Annual report", "Revenue by country"), strict=True):
        ImageDraw.Draw(page).text((20, 30), text, font=ImageFont.load_default(size=32), fill=0)
    pages[0].save(tmp_path / "scan.pdf", save_all=True, append_images=pages[1:])
    assert (
        prepare_data.main(["documents", str(tmp_path / "scan.pdf"), "--out", str(tmp_path / "index"), "--threads", "1"])
        == 0
    )
    assert (
        capsys.readouterr()
        .out.strip()
        .splitlines()[-1]
        .endswith("documents 1 added; 2 pages written, 2 of them read by OCR")
    )
    index = DocumentIndex(tmp_path / "index")
    assert index.search(index.find("scan"), "revenues", 3) == [2]


def test_an_error_is_one_line_with_the_file(tmp_path, capsys):
    (tmp_path / "x.pdf").write_text("no PDF")
    assert prepare_data.main(["documents", str(tmp_path / "x.pdf"), "--out", str(tmp_path / "index")]) == 1
    shown = capsys.readouterr()
    assert shown.err.strip().splitlines()[-1].startswith(f"error: {tmp_path / 'x.pdf'}: not a readable PDF file")
    assert shown.err.strip().endswith("; --skip leaves out documents that cannot be read")
    assert "done" not in shown.out
    assert not (tmp_path / "index").exists()


def test_what_is_skipped_is_said_with_its_reason(tmp_path, capsys):
    locked = write_pdf(tmp_path / "locked.pdf", [["secret"]], locked=True)
    folder = write_folder(tmp_path / "folder", [30])
    options = ["--out", str(tmp_path / "index"), "--ocr", "never", "--skip"]
    assert prepare_data.main(["documents", str(locked), str(folder), *options]) == 0
    shown = capsys.readouterr().out
    assert f"skipped: {locked}: encrypted" in shown
    assert "documents 1 added, 1 skipped" in shown


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["documents", "a.pdf"],
        ["documents", "--out", "x"],
        ["nothing"],
        ["documents", "a", "--out", "x", "--ocr", "y"],
    ],
)
def test_a_wrong_command_line_ends_with_usage(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        prepare_data.main(arguments)
    assert ended.value.code == 2
    assert "usage: python -m jobs.prepare_data" in capsys.readouterr().err


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit):
        prepare_data.main(["--help"])
    shown = capsys.readouterr().out
    assert all(add.__name__.removeprefix("add_").removesuffix("_command") in shown for add in prepare_data.COMMANDS)
