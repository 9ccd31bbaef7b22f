"""Tool calls in conversations to learn from: what is wrong with those of an assistant message."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jsonschema

from arm_rl.core.parsing import ToolFormat
from arm_rl.core.types import ToolCall


def read_calls(text: str, tool_format: ToolFormat) -> list[ToolCall]:
    """Return every call in an assistant message; a call that no session could carry out has `error`."""
    calls: list[ToolCall] = []
    start = text.find(tool_format.call_start)
    while start >= 0:
        missing_end = ToolCall(name="", arguments={}, error=f"a call has no {tool_format.call_end}")
        calls.append(tool_format.parse(text[start:]) or missing_end)
        end = text.find(tool_format.call_end, start)
        start = text.find(tool_format.call_start, end) if end >= 0 else -1
    return calls


def find_turn_faults(text: str, tool_format: ToolFormat, offered: Collection[str]) -> Iterator[str]:
    """Yield why no session has such a turn: several calls, text after a call, or a call of a tool that is not offered."""
    calls = read_calls(text, tool_format)
    if len(calls) > 1:
        yield f"{len(calls)} calls in one turn, which holds at most one"
    after = text.rpartition(tool_format.call_end)[2].strip() if calls and tool_format.call_end in text else ""
    if after:
        yield f"text after a call, which ends its turn: {after!r:.60}"
    for call in calls:
        if call.name and call.name not in offered:
            yield f"a call of {call.name!r}, which is not offered ({', '.join(offered) or 'no tool is'})"


def find_argument_faults(
    text: str, tool_format: ToolFormat, parameters: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """Yield why the calls of a turn fail: they cannot be read, or their arguments do not fit the tool.

    Args:
        parameters: JSON schema of the arguments by the tool's name; calls of other tools are not checked.
    """
    for call in read_calls(text, tool_format):
        if call.error is not None:
            yield call.error
        elif call.name in parameters:
            for error in jsonschema.Draft202012Validator(parameters[call.name]).iter_errors(call.arguments):
                place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
                yield f"a call of {call.name}: arguments{place}: {error.message:.100}"
                break
