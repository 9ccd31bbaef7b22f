"""What a search engine answered, as JSON in an SQLite file that the threads and processes of one machine share."""

import json
import logging
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from pydantic import TypeAdapter

from arm_rl.core.errors import UserError

logger = logging.getLogger(__name__)

_FOUND = TypeAdapter(list[tuple[str, str, str]])
LOCK_SECONDS = 2.0  # to wait for another process that writes


class SearchCache:
    """Results by key. A cache that cannot be read or written costs another request, and a line in the log."""

    def __init__(self, folder: str, keep_seconds: float) -> None:
        """Makes the folder and the file, and drops what is too old.

        Raises:
            UserError: they cannot be made, or the file is something else.
        """
        self._path = str(Path(folder) / "searches.sqlite")
        self._keep_seconds = keep_seconds
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            with closing(self._open()) as database, database:
                database.execute(
                    "CREATE TABLE IF NOT EXISTS searches (key TEXT PRIMARY KEY, time REAL, found TEXT) WITHOUT ROWID"
                )
                database.execute("DELETE FROM searches WHERE time < ?", (time.time() - keep_seconds,))
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"cache: {folder}: a folder that can be written to is needed: {error}") from error

    def get(self, key: str) -> list[tuple[str, str, str]] | None:
        """What was kept for the key and is not too old."""
        try:
            with closing(self._open()) as database:
                oldest = time.time() - self._keep_seconds
                row = database.execute(
                    "SELECT found FROM searches WHERE key = ? AND time >= ?", (key, oldest)
                ).fetchone()
            return _FOUND.validate_json(row[0]) if row else None
        except (sqlite3.Error, ValueError) as error:
            logger.warning("%s cannot be read: %s", self._path, type(error).__name__)
            return None

    def put(self, key: str, found: list[tuple[str, str, str]]) -> None:
        """Keeps results."""
        try:
            with closing(self._open()) as database, database:
                database.execute(
                    "INSERT OR REPLACE INTO searches VALUES (?, ?, ?)", (key, time.time(), json.dumps(found))
                )
        except sqlite3.Error as error:
            logger.warning("%s cannot be written: %s", self._path, error)

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=LOCK_SECONDS)
