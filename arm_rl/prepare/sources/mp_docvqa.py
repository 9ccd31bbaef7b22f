"""MP-DocVQA (task 4 of DocVQA on the RRC portal): questions about documents of up to 20 scanned pages.

JSON with `data`: objects of `questionId`, `question`, `doc_id`, `page_ids`, `answers`, `answer_page_idx` and `data_split`; pages are
`images/PAGE_ID.jpg` beside it. The pages of a document are gathered in `documents/DOC_ID` beside the questions' images, one file a page in
order, as `prepare_data documents` wants them.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arm_rl.core.parsing import parse_json
from arm_rl.core.text_file import EncodingError, read_text
from arm_rl.data.image_store import ImageFolder
from arm_rl.data.parquet_rows import DataError
from arm_rl.prepare.questions import Question
from arm_rl.prepare.sources.skipped import SkippedRow

_TOOLS = ("doc_page_retrieval_by_query", "doc_page_retrieval_by_index")


def read(path: Path, images: ImageFolder, name: str) -> Iterator[Question | SkippedRow]:
    """The questions of a file; the pages of their documents are linked, or copied.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        rows = parse_json(read_text(path))["data"]
    except EncodingError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a JSON object with data: {error}") from error
    documents: dict[str, tuple[str, ...]] = {}
    for row in rows:
        answers, pages, document = row.get("answers") or (), tuple(row.get("page_ids") or ()), str(row["doc_id"])
        files = [path.parent / "images" / f"{page}.jpg" for page in pages]
        if not answers or not str(answers[0]).strip():
            yield SkippedRow("no answer is published (the test split)")
        elif not pages or not all(file.is_file() for file in files):
            yield SkippedRow("a page of its document is missing")
        else:
            if pages != documents.setdefault(document, pages):  # questions show windows of a longer document
                document = f"{document}-{pages[0]}"
                documents.setdefault(document, pages)
            _link_pages(files, images.folder.parent / "documents" / document)
            yield _make_question(row, document)


def _make_question(row: dict[str, Any], document: str) -> Question:
    return Question(
        id=f"mp_docvqa-{row['questionId']}",
        track="documents",
        question=str(row["question"]).strip(),
        answer=str(row["answers"][0]).strip(),
        tools=_TOOLS,
        document=document,
        source=f"mp_docvqa/{row.get('data_split') or ''}".rstrip("/"),
    )


def _link_pages(files: list[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(files, 1):
        target = folder / f"{number:04}.jpg"
        if not target.exists():
            try:
                os.link(file, target)
            except OSError:  # on another disk
                shutil.copyfile(file, target)
