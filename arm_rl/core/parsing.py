"""What a policy wrote: its tool call, its judgment, and whether a turn has the right form. Never raises on what a model can write."""

import json
import re
from collections.abc import Sequence
from typing import Any, Protocol

from arm_rl.core.types import ToolCall

_JUDGMENT = re.compile(
    r"\s*Overall Judgment:\s*(?:Answer (?P<answer>[1-9][0-9]?) is better|(?P<verdict>True|False))\.?\s*"
)
_TAG = re.compile(r"</?(?:think|tool_call|tool_response|answer)>")
_TURNS = (
    ["<think>", "</think>", "<tool_call>", "</tool_call>"],
    ["<think>", "</think>", "<answer>", "</answer>"],
)
_SURROGATE = re.compile(r"[\ud800-\udfff]|\\u[dD][89a-fA-F]")  # as it is, or escaped, perhaps half of a pair
_MAX_DEPTH = 32  # of a call's JSON: what checks, pickles and prints it later recurses


class ToolFormat(Protocol):
    """How one family of models is shown its tools and writes a call."""

    call_start: str  # forbidden to the engine where no call is allowed, if it is one token
    call_end: str  # generation stops after it
    response_start: str  # around an observation, where the chat template has no tool role
    response_end: str

    def section(self, schemas: Sequence[dict[str, Any]]) -> str:
        """Text for the system message of a model whose chat template does not show tools itself."""
        ...

    def parse(self, text: str) -> ToolCall | None:
        """The first call in a turn; None where there is none."""
        ...


class HermesFormat:
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`, as Qwen and Hermes models are trained to write it."""

    call_start = "<tool_call>"
    call_end = "</tool_call>"
    response_start = "<tool_response>\n"
    response_end = "\n</tool_response>"

    def section(self, schemas: Sequence[dict[str, Any]]) -> str:
        """One schema a line inside `<tools>`, then the form of a call."""
        listed = "\n".join(json.dumps(schema, ensure_ascii=False) for schema in schemas)
        return (
            f"\n\n# Tools\n\nThese functions can be called, one in a turn:\n<tools>\n{listed}\n</tools>\n\n"
            "To call one, write a JSON object with its name and its arguments inside <tool_call> tags:\n"
            '<tool_call>\n{"name": "...", "arguments": {...}}\n</tool_call>'
        )

    def parse(self, text: str) -> ToolCall | None:
        """The first call in a turn, read as JSON; a broken one comes back with `error`."""
        start = text.find(self.call_start)
        if start < 0:
            return None
        end = text.find(self.call_end, start)
        if end < 0:
            return None  # cut off before it was complete: the turn ran out of tokens
        try:
            written = parse_json(text[start + len(self.call_start) : end])
        except (ValueError, RecursionError) as error:
            return ToolCall(name="", arguments={}, error=f"the call is not valid JSON: {error}")
        if not isinstance(written, dict):
            return ToolCall(name="", arguments={}, error="the call is not a JSON object")
        if _is_deeper_than(_MAX_DEPTH, written):
            return ToolCall(name="", arguments={}, error="the call is nested too deeply")
        name, arguments = written.get("name"), written.get("arguments", {})
        if not isinstance(name, str) or not name:
            return ToolCall(name="", arguments={}, error="the call has no name")
        others = [key for key in written if key != "name"]
        if "arguments" not in written and others:
            return ToolCall(name=name, arguments={}, error=f"the call has no 'arguments', but {others[0]!r:.40}")
        if isinstance(arguments, str):
            return ToolCall(name=name, arguments={}, error="the arguments are not a JSON object but a text")
        if not isinstance(arguments, dict):
            return ToolCall(name=name, arguments={}, error="the arguments are not a JSON object")
        return ToolCall(name=name, arguments=arguments)


def _is_deeper_than(limit: int, value: Any) -> bool:
    level = [value]
    for _ in range(limit):
        level = [child for parent in level if isinstance(parent, dict | list) for child in _children(parent)]
    return bool(level)


def _children(parent: dict | list) -> list[Any]:
    return list(parent.values()) if isinstance(parent, dict) else parent


TOOL_FORMATS: dict[str, ToolFormat] = {"hermes": HermesFormat()}


def parse_judgment(text: str) -> str | None:
    """The judgment inside a turn's one `<answer>`: "1".."99" for the better answer, "true" or "false"; None where there is none."""
    if text.count("<answer>") != 1 or text.count("</answer>") != 1:
        return None
    answer, closed, _ = text.partition("<answer>")[2].partition("</answer>")
    match = _JUDGMENT.fullmatch(answer) if closed else None
    if match is None:
        return None
    return match["answer"] or match["verdict"].lower()


def break_tags(text: str) -> str:
    """Break turn tags by a space, so that a tool's text cannot pose as a part of the conversation."""
    return _TAG.sub(lambda tag: f"< {tag[0][1:]}", text)


def replace_surrogates(text: str) -> str:
    """Replace lone surrogates by question marks: JSON can hold them, but no tokenizer or file takes them."""
    return text.encode("utf-8", "replace").decode()


def repair_surrogates(value: Any) -> Any:
    """Return a value of JSON with `replace_surrogates` applied to every text and key in it."""
    if isinstance(value, str):
        return value if value.isascii() else replace_surrogates(value)
    if isinstance(value, dict):
        return {repair_surrogates(key): repair_surrogates(one) for key, one in value.items()}
    return [repair_surrogates(one) for one in value] if isinstance(value, list) else value


def parse_json(text: str) -> Any:
    """Return the value of a JSON text, without the lone surrogates that its escapes can hold.

    Raises:
        ValueError: If the text is not JSON.
        RecursionError: If the text is nested too deeply.
    """
    value = json.loads(text)
    return repair_surrogates(value) if _SURROGATE.search(text) else value


def is_well_formed_turn(text: str, tool_format: ToolFormat) -> bool:
    """Return whether a turn is one thought, then exactly one readable call or one answer, and nothing else."""
    if _TAG.findall(text) not in _TURNS:
        return False
    before, _, between, _, after = _TAG.split(text)
    if before.strip() or between.strip() or after.strip():
        return False
    call = tool_format.parse(text)
    return call is None or call.error is None
