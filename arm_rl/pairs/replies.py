"""What a model wrote when it was asked for flawed answers: on disk, a line each, as it comes; what is there is not asked again."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from arm_rl.core.errors import UserError


class RepliesError(UserError):
    """A file of replies that cannot be used; the message names the line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """A reply, whole: what is made of it may change without asking again."""

    question: str  # its id
    number: int  # of the flawed answer, from 0
    attempt: int  # from 0
    flaw: str  # that was asked for
    digest: str  # of what was asked
    text: str
    finish_reason: str


class Replies:
    """The replies of one file: those that there are, and those that come."""

    def __init__(self, path: Path) -> None:
        """Reads the file. A last line that was cut off is left out, and written over.

        Raises:
            RepliesError: a line that is no reply.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._known: dict[tuple[str, int, int], Reply] = {}
        whole = 0
        with path.open("a+b") as file:
            file.seek(0)
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    whole += len(line)
                    try:
                        self._keep(Reply(**json.loads(line)))
                    except (ValueError, TypeError) as error:
                        raise RepliesError(f"{path}: line {number}: not a reply ({error!r}); without it, it is asked for again") from error
        self._file = path.open("ab")
        self._file.truncate(whole)

    def find(self, question: str, number: int, attempt: int, digest: str) -> Reply | None:
        """The reply to exactly this request; the last one, where it was asked in other words before."""
        known = self._known.get((question, number, attempt))
        return known if known is not None and known.digest == digest else None

    def add(self, reply: Reply) -> None:
        """Keeps a reply; it is on disk when this returns."""
        self._keep(reply)
        self._file.write(json.dumps(asdict(reply), ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        self._file.flush()

    def _keep(self, reply: Reply) -> None:
        self._known[reply.question, reply.number, reply.attempt] = reply

    def __enter__(self) -> "Replies":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
