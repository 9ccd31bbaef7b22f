"""A row of a source that becomes no question."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SkippedRow:
    """Why, in words that are the same for all rows of a kind: they are counted."""

    reason: str
