"""The report's page behind a small server on this machine: it shows all trajectories of a run, also of one that goes on."""

import json
import logging
import threading
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tokenizers import Tokenizer

from arm_rl.core import trajectory_file
from arm_rl.report import page, run_data, selection, tokens
from arm_rl.report.contents import ContentReader
from arm_rl.report.index import Index, LogFile

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
Query = list[tuple[str, str]]


class Report:
    """What the server answers."""

    def __init__(self, folder: Path, tokenizer: Tokenizer | None = None) -> None:
        """Reads the folder's index.

        Args:
            folder: as for `write_report`.
            tokenizer: likewise.
        """
        self._folder = folder
        self._index = Index(folder=folder)
        self._contents = ContentReader(index=self._index, tokenizer=tokenizer or tokens.find_tokenizer(folder))
        self._refreshing = threading.Lock()
        self._refresh()

    def page(self, query: Query) -> str:
        """The page, with what the run has written since."""
        run = self._refresh()
        return page.live_page(run, self._index, self._contents)

    def index(self, query: Query) -> str:
        """A few numbers for each trajectory."""
        return self._index.as_json(self._index.files)

    def contents(self, query: Query) -> str:
        """The trajectories of each `row` (FILE/ROW)."""
        rows = [name.rpartition("/") for _, name in query]
        return json.dumps([self._contents.read(self._file(file), [int(row)])[0] for file, _, row in rows])

    def picture(self, query: Query) -> str:
        """The image of a `key` in a `file`; null where it was not kept."""
        asked = dict(query)
        return json.dumps(self._contents.pictures(self._file(asked["file"]), [asked["key"]]).get(asked["key"]))

    def search(self, query: Query) -> str:
        """Names of all trajectories in which a `text` stands, in whatever case."""
        text = dict(query)["text"]
        files = list(self._index.files)
        return json.dumps(
            [
                selection.name_row(file, row)
                for file in files
                for row in trajectory_file.find_rows_with_text(file.path, text)
            ]
        )

    def _file(self, name: str) -> LogFile:
        found = self._index.file(name)
        if found is None:
            raise KeyError(name)
        return found

    def _refresh(self) -> run_data.RunData:
        with self._refreshing:
            run = run_data.read(self._folder)
            self._index.refresh(run.order)
            return run


def make_server(report: Report, port: int) -> ThreadingHTTPServer:
    """A server that only this machine can reach; 0 is any free port."""
    return ThreadingHTTPServer((HOST, port), partial(_Handler, report))


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, report: Report, *arguments: Any) -> None:
        self._answers: dict[str, Callable[[Query], str]] = {
            "/": report.page,
            "/index": report.index,
            "/contents": report.contents,
            "/picture": report.picture,
            "/search": report.search,
        }
        super().__init__(*arguments)

    def do_GET(self) -> None:  # the base class's name
        asked = urlsplit(self.path)
        answer = self._answers.get(asked.path)
        host = self.headers.get("Host", "").rpartition(":")[0]
        if host not in (HOST, "localhost"):  # a page from elsewhere whose name leads here must not read a run
            self.send_error(HTTPStatus.FORBIDDEN, "only for this machine")
        elif answer is None:
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            try:
                body = answer(parse_qsl(asked.query, keep_blank_values=True)).encode()
            except (KeyError, IndexError, ValueError, FileNotFoundError) as error:  # asked for what is not there
                logger.info("%s: %r", self.path, error)
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            self._send(body, "text/html" if asked.path == "/" else "application/json")

    def _send(self, body: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        logger.debug(format, *arguments)
