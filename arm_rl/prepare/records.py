"""A row of any data format: a conversation with its images, and everything else that the row says, by name.

In a conversation `<image>` stands for an image, and a call is text, `<tool_call>{"name": …, "arguments": …}</tool_call>`, as the policy
writes it. What other formats say in fields of their own (`tool_calls`, `function_call`) is written into the text here and found in it
again, to the letter.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_CALL = re.compile(r'(?s)<tool_call>\{"name": ("(?:[^"\\]|\\.)*"), "arguments": (.*)\}</tool_call>')


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One row."""

    messages: tuple[tuple[str, str], ...]  # role (system, user, assistant, tool) and text
    images: tuple[Any, ...] = ()  # in the order of their `<image>`: whatever the reader's `load` gave for them
    tools: tuple[str, ...] | None = None  # names of those offered; None: the row does not say
    schemas: tuple[Mapping[str, Any], ...] | None = None  # of these tools, in OpenAI's form; None: not known
    # other columns or keys; a null, an empty struct and an absent key are one
    others: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_rl(self) -> bool:
        """Whether it is a prompt with a label, and not a conversation to imitate."""
        return "reward_model" in self.others


def prune(value: Any) -> Any:
    """Return a value without nulls and empty structs in its structs, which parquet cannot tell from absent ones."""
    if isinstance(value, Mapping):
        kept = {str(name): prune(one) for name, one in value.items()}
        return {name: one for name, one in kept.items() if one is not None and one != {}}
    if isinstance(value, list | tuple):
        return [prune(one) for one in value]
    return value


def write_call(name: str, arguments: str) -> str:
    """The text of a call; `arguments` is JSON and stays as it is."""
    return f'<tool_call>{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {arguments}}}</tool_call>'


def split_calls(text: str) -> tuple[str, list[tuple[str, str]]]:
    """What stands before the calls that end a text, and of each call the tool's name and its arguments as JSON.

    Only calls that `join_calls` would write just so are taken out.
    """
    calls: list[tuple[str, str]] = []
    rest, end = text, "</tool_call>"
    while rest.endswith(end):
        start = rest.rfind("<tool_call>")
        match = _CALL.fullmatch(rest[start:]) if start >= 0 else None
        if match is None or not _is_json(match[1]) or not _is_json(match[2]):
            break
        calls.insert(0, (json.loads(match[1]), match[2]))
        rest = rest[:start]
        if rest.endswith(f"{end}\n"):
            rest = rest[:-1]
    return (rest, calls) if join_calls(rest, calls) == text else (text, [])


def join_calls(before: str, calls: Sequence[tuple[str, str]]) -> str:
    """The text of a turn that ends with calls; their arguments stay as they are."""
    return before + "\n".join(write_call(name, arguments) for name, arguments in calls)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def tool_names(schemas: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the names of the tools."""
    return tuple(str(schema.get("function", schema).get("name")) for schema in schemas)
