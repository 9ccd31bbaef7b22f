"""A model's message in OpenAI's protocol as the text of one turn: servers take thoughts and calls out of what the model wrote."""

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from arm_rl.core.parsing import ToolFormat, break_tags

_THOUGHT_KEYS = (
    "reasoning_content",
    "reasoning",
)  # of messages: DeepSeek's and vLLM's older name, OpenRouter's and vLLM's
_THOUGHT_PARTS = ("thinking", "reasoning")  # kinds of parts, and their keys


def message_text(message: Mapping[str, Any]) -> str:
    """Return the text of a message, whose content is a text, a list of parts or null.

    Raises:
        TypeError, AttributeError: If the content is something else.
    """
    return _split_content(message.get("content"))[1]


def turn_text(message: Mapping[str, Any], tool_format: ToolFormat) -> str:
    """Return a turn as the model wrote it: its thought in tags, its text, and its first call.

    A turn ends with its first call: text after the call, which a model makes up where nothing stops it, is cut.

    Raises:
        KeyError, IndexError, TypeError, AttributeError: If the message is not one of the protocol.
    """
    thought, text = _split_content(message.get("content"))
    thought = next((str(message[key]) for key in _THOUGHT_KEYS if message.get(key)), thought).strip()
    if thought and "<think>" not in text:
        text = f"<think>{break_tags(thought)}</think>{text}"
    before, end, _ = text.partition(tool_format.call_end)
    if end:
        return before + end
    if tool_format.call_start in text:  # the server's stop leaves out what it stops at
        return text
    calls = message.get("tool_calls") or []
    return text + _write_call(calls[0]["function"], tool_format) if calls else text


def close_call(text: str, tool_format: ToolFormat) -> str:
    """Return a turn with the end tag of its call, which a plain server leaves out where the tag stopped the model."""
    _, start, written = text.rpartition(tool_format.call_start)
    is_open = start and tool_format.call_end not in written and "</think>" not in written and "<answer>" not in written
    return text + tool_format.call_end if is_open else text


def _split_content(content: Any) -> tuple[str, str]:
    """Return the thoughts and the texts among the parts of a content."""
    if content is None or isinstance(content, str):
        return "", content or ""
    thoughts, texts = [], []
    for part in content:
        kind = "text" if isinstance(part, str) else part.get("type")
        if kind in _THOUGHT_PARTS:
            thoughts.append(
                _split_content(next((part[key] for key in (*_THOUGHT_PARTS, "text") if part.get(key)), ""))[1]
            )
        else:
            texts.append(part if isinstance(part, str) else part.get("text") or "")
    return "".join(thoughts), "".join(texts)


def _write_call(function: Mapping[str, Any], tool_format: ToolFormat) -> str:
    arguments = function["arguments"]
    if not isinstance(arguments, str | dict):
        raise TypeError(f"the arguments are {arguments!r:.80}")
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):  # the call says so when it is read
            arguments = json.loads(arguments) if arguments.strip() else {}
    written = json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False)
    return f"{tool_format.call_start}{written}{tool_format.call_end}"
