"""What a model wrote when it was asked for flawed answers: on disk as it comes; what is there is not asked again."""

from dataclasses import asdict, dataclass

from arm_rl.core.errors import UserError
from arm_rl.core.json_lines import JsonLines


class RepliesError(UserError):
    """Replies that cannot be used."""


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
    """The replies that there are, and those that come."""

    def __init__(self, lines: JsonLines) -> None:
        """Takes the replies of a file.

        Raises:
            RepliesError: it holds something else.
        """
        self._lines = lines
        try:
            known = [Reply(**values) for values in lines.entries]
        except TypeError as error:
            raise RepliesError(f"the file of replies holds something else ({error}): choose another --out") from error
        self._known = {(reply.question, reply.number, reply.attempt): reply for reply in known}

    def find_reply(self, question: str, number: int, attempt: int, digest: str) -> Reply | None:
        """Return the reply to exactly this request, if there is one."""
        known = self._known.get((question, number, attempt))
        return known if known is not None and known.digest == digest else None

    def add(self, reply: Reply) -> None:
        """Keeps a reply; it is on disk when this returns."""
        self._known[reply.question, reply.number, reply.attempt] = reply
        self._lines.add(asdict(reply))
