"""The command `documents`: an index of documents for the retrieval tools."""

import argparse
import sys
from pathlib import Path
from typing import get_args

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from arm_rl.prepare.document_builder import BuildProgress, BuildSummary, OcrMode, build_index
from arm_rl.prepare.page_sources import SourceError
from jobs.command_line import Commands


def add_documents_command(commands: Commands) -> None:
    """Add the command that builds an index of documents."""
    parser = commands.add_parser(
        "documents",
        help="an index of documents for the retrieval tools",
        description="Adds PDF files and folders of page images to an index that the tools doc_page_retrieval_by_query and "
        "doc_page_retrieval_by_index read. Documents that are in it unchanged are left as they are, so that an interrupted run goes on.",
    )
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="a PDF file, or a folder with the page images of one document",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="INDEX", help="folder of the index; made where there is none"
    )
    parser.add_argument(
        "--ocr",
        choices=get_args(OcrMode),
        default="auto",
        help="read the text from the page's image: where the PDF has none of its own (auto, the default), always, or never",
    )
    parser.add_argument(
        "--long-side",
        type=int,
        default=1120,
        metavar="PIXELS",
        help="of a page's longer side: PDFs are rendered to it, larger images scaled down (default: %(default)s; 0: kept as they are)",
    )
    parser.add_argument(
        "--model", help="a sentence-transformers model, for the search by meaning; by default only words are searched"
    )
    parser.add_argument("--threads", type=int, help="for OCR (default: all cores)")
    parser.add_argument("--skip", action="store_true", help="leave out what cannot be read, and go on")
    parser.set_defaults(run=_run_documents)


def _run_documents(arguments: argparse.Namespace) -> str:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("pages"),
        TimeRemainingColumn(),
    )
    try:
        with Bar(*columns, transient=True, disable=not sys.stdout.isatty()) as bar:
            task = bar.add_task("reading documents", total=None)
            summary = build_index(
                arguments.files,
                arguments.out,
                ocr=arguments.ocr,
                long_side=arguments.long_side,
                model=arguments.model,
                threads=arguments.threads,
                skip_unreadable=arguments.skip,
                on_page=lambda done: _show(bar, task, done),
            )
    except SourceError as error:
        if arguments.skip:
            raise
        raise SourceError(f"{error}; --skip leaves out documents that cannot be read") from error
    return format_summary(summary)


def _show(bar: Bar, task: TaskID, done: BuildProgress) -> None:
    bar.update(task, description=done.document, completed=done.pages_done, total=done.num_pages)


def format_summary(summary: BuildSummary) -> str:
    """Return a summary of a build; the last line names the index."""
    lines = [f"skipped: {reason}" for reason in summary.skipped.values()]
    if summary.num_pages_without_text:
        lines.append(
            f"{summary.num_pages_without_text} of the {summary.num_pages} pages written have no text: no query finds them"
        )
    counts = [
        ("added", summary.added),
        ("replaced", summary.replaced),
        ("unchanged", summary.unchanged),
        ("skipped", summary.skipped),
    ]
    shown = ", ".join(f"{len(names)} {what}" for what, names in counts if names)
    pages = f"{summary.num_pages} pages written, {summary.num_pages_by_ocr} of them read by OCR"
    return "\n".join([*lines, f"done: the index is in {summary.index}: documents {shown}; {pages}"])
