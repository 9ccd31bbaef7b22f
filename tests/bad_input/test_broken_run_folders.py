"""What reports, exports and servers are pointed at, and pages for the index: one line that names the file, and nothing left half-made."""

import sys

import pytest

from jobs import export, prepare_data, report, serve
from tests.support.page_files import write_folder
from tests.support.scripted import noise

LINE = '{"step": 1, "stage": "s", "reward/mean": 0.5}\n'


def run(job, monkeypatch, capsys, *arguments):
    """The last line that a job wrote."""
    monkeypatch.setattr(sys, "argv", ["job", *map(str, arguments)])
    assert job.main() == 1
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    assert "done" not in shown.out
    return shown.err


REPORTS = {
    "metrics of text": ({"metrics.jsonl": "hello\n"}, "metrics.jsonl: line 1 is no step's metrics"),
    "a broken line among others": (
        {"metrics.jsonl": LINE + "{\n" + LINE},
        "metrics.jsonl: line 2 is no step's metrics",
    ),
    "a line without a step": (
        {"metrics.jsonl": LINE + '{"stage": "s"}\n'},
        "metrics.jsonl: line 2 is no step's metrics",
    ),
    "a list for a line": ({"metrics.jsonl": "[]\n"}, "metrics.jsonl: line 1 is no step's metrics"),
    "a broken summary": ({"summary.json": "{"}, "summary.json: not a JSON file"),
    "a list for a summary": ({"summary.json": "[]"}, "summary.json: a JSON object is needed"),
    "broken trajectories": ({"trajectories/s-000001.parquet": "text"}, "s-000001.parquet: not a file of trajectories"),
    "empty trajectories": ({"trajectories/s-000001.parquet": ""}, "s-000001.parquet: not a file of trajectories"),
}


@pytest.mark.parametrize(("files", "message"), REPORTS.values(), ids=REPORTS)
def test_a_report_of_a_broken_run(tmp_path, monkeypatch, capsys, files, message):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert run(report, monkeypatch, capsys, tmp_path).startswith(f"error: {tmp_path}/")
    assert message in run(report, monkeypatch, capsys, tmp_path)
    assert not (tmp_path / "report.html").exists()


EXPORTS = {
    "no configuration": ({}, "not a run's folder: it has no config.yaml"),
    "a broken configuration": ({"config.yaml": "run: ["}, "config.yaml: not a YAML file"),
    "an empty configuration": ({"config.yaml": ""}, "a value is needed"),
    "a list for a configuration": ({"config.yaml": "- a"}, "config.yaml: a mapping of keys is needed"),
    "no checkpoint": (
        {"config.yaml": "run: {name: x}\nmodel: {path: m}\ndata: {train: [a]}"},
        "checkpoints: there is no checkpoint",
    ),
}


@pytest.mark.parametrize(("files", "message"), EXPORTS.values(), ids=EXPORTS)
def test_an_export_of_a_broken_run(tmp_path, monkeypatch, capsys, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert message in run(export, monkeypatch, capsys, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)


def test_a_server_of_a_folder_that_is_none(tmp_path, monkeypatch, capsys):
    assert f"{tmp_path}/none/config.json: No such file" in run(serve, monkeypatch, capsys, tmp_path / "none")
    (tmp_path / "config.json").write_text("{}")
    assert "no weights" in run(serve, monkeypatch, capsys, tmp_path)


def damaged_pages(tmp_path):
    folder = write_folder(tmp_path / "pages", [1, 2])
    return folder, folder / "3.png"


PAGES = {
    "a text as page": lambda path: path.write_text("no image"),
    "an empty page": lambda path: path.write_bytes(b""),
    "a page cut short": lambda path: (noise(99, 99).save(path), path.write_bytes(path.read_bytes()[:-3000])),
    "a link that leads nowhere": lambda path: path.symlink_to("gone.png"),
}


@pytest.mark.parametrize("damage", PAGES.values(), ids=PAGES)
def test_a_broken_page_is_named_and_no_document_is_added(tmp_path, capsys, damage):
    folder, page = damaged_pages(tmp_path)
    damage(page)
    assert prepare_data.main(["documents", str(folder), "--out", str(tmp_path / "index"), "--ocr", "never"]) == 1
    assert f"{page}" in capsys.readouterr().err
