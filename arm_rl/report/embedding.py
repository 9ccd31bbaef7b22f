"""JSON that stands inside a page."""

import json
from collections.abc import Iterable


def dump(value: object) -> str:
    """Compact JSON in which nothing can end the element that it stands in, whatever a model wrote."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def as_object(members: Iterable[tuple[str, str]]) -> str:
    """An object of values that are such JSON already."""
    return "{" + ",".join(f"{dump(name)}:{value}" for name, value in members) + "}"
