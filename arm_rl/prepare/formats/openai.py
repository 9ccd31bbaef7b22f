"""OpenAI's chat JSON lines: `messages` with parts for images and with `tool_calls`, and `tools`. Other keys are kept as they are."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from arm_rl.core.atomic_file import replace_file
from arm_rl.core.placeholders import join_at_images, split_at_images
from arm_rl.data.parquet_rows import BrokenRows, DataError
from arm_rl.prepare.formats.pictures import Pictures
from arm_rl.prepare.formats.text_files import (
    dump_json,
    parse_tools,
    read_objects,
    require_images,
    schemas_to_write,
)
from arm_rl.prepare.records import Record, join_calls, prune, split_calls

_IDS = "tool_call_ids"  # ids that are not call_0, call_1, …: of the calls, and of the messages that answer them


def read(path: Path, load: Callable[[Any], Any], broken: BrokenRows) -> Iterator[Record]:
    """Raises as `Format.read`."""
    return read_objects(path, lambda value, where: _parse_record(value, load, where), broken)


def _parse_record(value: dict[str, Any], load: Callable[[Any], Any], where: str) -> Record:
    written = value.pop("messages", None)
    if not isinstance(written, list):
        raise DataError(f"{where}: messages is {written!r:.80}; a list of messages is needed")
    entries: list[Any] = []
    messages = [_parse_message(message, entries, where) for message in written]
    names, schemas = parse_tools(value.pop("tools", None), where)
    calls = [str(call.get("id")) for message in written for call in message.get("tool_calls") or ()]
    answers = [str(message.get("tool_call_id")) for message in written if message["role"] == "tool"]
    if (calls, answers) != _default_ids(messages):
        value[_IDS] = {"calls": calls, "answers": answers}
    record = Record(
        messages=tuple(messages),
        images=tuple(load(entry) for entry in entries),
        tools=names,
        schemas=schemas,
        others=prune(value),
    )
    return require_images(record, where)


def _parse_message(message: Any, entries: list[Any], where: str) -> tuple[str, str]:
    if not isinstance(message, dict) or message.get("role") not in ("system", "developer", "user", "assistant", "tool"):
        raise DataError(f"{where}: a message needs a role (system, user, assistant, tool), not {message!r:.80}")
    role = "system" if message["role"] == "developer" else message["role"]
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    pieces = [""]
    for part in parts:
        _parse_part(part, pieces, entries, where)
    text = join_at_images(pieces)
    if message.get("function_call"):
        raise DataError(f"{where}: a message has 'function_call', the older form of 'tool_calls', which is needed")
    calls = []
    for call in message.get("tool_calls") or ():
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(f"{where}: a call needs a function with a name, not {call!r:.80}")
        calls.append((function["name"], _parse_arguments(function, where)))
    whole = join_calls(text, calls)
    if calls and split_calls(whole) != (text, calls):
        raise DataError(f"{where}: the arguments of {calls[0][0]!r} are not JSON, or the text before looks like a call")
    return role, whole


def _parse_arguments(function: dict[str, Any], where: str) -> str:
    """Return a call's arguments as JSON; an empty text and null stand for no arguments, and an object for itself."""
    others = [key for key in function if key != "name"]
    if "arguments" not in function and others:
        raise DataError(f"{where}: a call of {function['name']!r} has no 'arguments', but {others[0]!r}")
    arguments = function.get("arguments")
    if isinstance(arguments, dict):
        return dump_json(arguments, where)
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        return "{}"
    if not isinstance(arguments, str):
        raise DataError(
            f"{where}: the arguments of {function['name']!r} are {arguments!r:.80}; a JSON object is needed"
        )
    return arguments


def _parse_part(part: Any, pieces: list[str], entries: list[Any], where: str) -> None:
    """Add a part to the texts between the images, or to the images."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        pieces[-1] += part["text"]
    elif kind == "image_url":
        url = part.get("image_url")
        entries.append({"url": url.get("url")} if isinstance(url, dict) else {"url": url})
        pieces.append("")
    else:
        raise DataError(f"{where}: a part of a message is text or image_url, not {part!r:.80}")


def layout(records: Iterable[Record]) -> None:
    """Nothing: rows stand for themselves."""


def write(path: Path, records: Iterable[Record], pictures: Pictures, schemas: dict[str, Any] | None) -> int:
    """As `Format.write`; `schemas` are those of known tools."""
    number = 0
    with replace_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(dump_json(_format_record(record, pictures, schemas or {}), f"row {number}") + "\n")
            number += 1
    return number


def _format_record(record: Record, pictures: Pictures, known: dict[str, Any]) -> dict[str, Any]:
    others = dict(record.others)
    ids = others.pop(_IDS, None)
    calls, answers = (ids["calls"], ids["answers"]) if ids else _default_ids(record.messages)
    next_call, next_answer, shown = iter(calls), iter(answers), iter(record.images)
    messages = []
    for role, text in record.messages:
        before, made = split_calls(text) if role == "assistant" else (text, [])
        message: dict[str, Any] = {
            "role": role,
            "content": _format_content(before, shown, pictures) if before or not made else None,
        }
        if made:
            message["tool_calls"] = [
                {"id": next(next_call), "type": "function", "function": {"name": name, "arguments": arguments}}
                for name, arguments in made
            ]
        if role == "tool":
            message["tool_call_id"] = next(next_answer)
        messages.append(message)
    schemas = schemas_to_write(record, known)
    return {"messages": messages, **({} if schemas is None else {"tools": schemas}), **others}


def _format_content(text: str, shown: Iterator[Any], pictures: Pictures) -> str | list[dict[str, Any]]:
    pieces = split_at_images(text)
    if len(pieces) == 1:
        return pieces[0]
    parts: list[dict[str, Any]] = []
    for number, piece in enumerate(pieces):
        if number:
            parts.append({"type": "image_url", "image_url": {"url": pictures.url(next(shown))}})
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _default_ids(messages: Iterable[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Return numbered ids of the calls, and of the answers to them."""
    num_calls = num_answers = 0
    for role, text in messages:
        num_calls += len(split_calls(text)[1]) if role == "assistant" else 0
        num_answers += role == "tool"
    return [f"call_{number}" for number in range(num_calls)], [f"call_{number}" for number in range(num_answers)]
