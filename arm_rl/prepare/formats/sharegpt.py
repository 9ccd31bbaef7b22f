"""ShareGPT's JSON as LLaMA-Factory reads it: `conversations` of `from` and `value`, `system`, `tools` (JSON in a text), `images` (paths).

`messages` of `role` and `content` are read too, and LLaVA's `image`. Other keys are kept as they are.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arm_rl.core.atomic_file import replace_file
from arm_rl.core.parsing import parse_json
from arm_rl.core.placeholders import IMAGE, split_at_images
from arm_rl.data.parquet_rows import BrokenRows, DataError
from arm_rl.prepare.formats.pictures import Pictures
from arm_rl.prepare.formats.text_files import (
    dump_json,
    parse_tools,
    read_objects,
    require_images,
    schemas_to_write,
)
from arm_rl.prepare.records import Record, prune, split_calls

_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "observation": "tool",
}
_FROM = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
_START, _END = "<tool_call>", "</tool_call>"


def read(path: Path, load: Callable[[Any], Any], broken: BrokenRows) -> Iterator[Record]:
    """Raises as `Format.read`."""
    return read_objects(path, lambda value, where: _parse_record(value, load, where), broken)


def _parse_record(value: dict[str, Any], load: Callable[[Any], Any], where: str) -> Record:
    turns = value.pop("conversations" if "conversations" in value else "messages", None)
    system, shown, image, tools = (value.pop(name, None) for name in ("system", "images", "image", "tools"))
    if not isinstance(turns, list):
        raise DataError(f"{where}: conversations is {turns!r:.80}; a list of turns is needed")
    messages = [_parse_message(turn, where) for turn in turns]
    if system:
        messages.insert(0, ("system", str(system)))
    try:
        names, schemas = parse_tools(parse_json(tools) if isinstance(tools, str) and tools else tools or None, where)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: tools is not valid JSON: {error}") from error
    entries = shown if isinstance(shown, list) else [one for one in (shown, image) if one]
    record = Record(
        messages=tuple(messages),
        images=tuple(load(entry) for entry in entries),
        tools=names,
        schemas=schemas,
        others=prune(value),
    )
    return require_images(record, where)


def _parse_message(turn: Any, where: str) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise DataError(f"{where}: a turn is an object of from and value, not {turn!r:.80}")
    said, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    if not isinstance(text, str):
        raise DataError(f"{where}: the value of a turn is a text, not {text!r:.80}")
    if said == "function_call":
        return "assistant", f"{_START}{text}{_END}"
    if said not in _ROLES and said != "tool":
        raise DataError(f"{where}: from is {said!r:.80}; one of {', '.join([*_ROLES, 'function_call'])} is needed")
    return _ROLES.get(str(said), "tool"), text


@dataclass(slots=True)
class LlamaFactoryNotes:
    """What a user of LLaMA-Factory needs to know of a written file: its entry in `dataset_info.json`, and the rows that are not read."""

    columns: dict[str, str] = field(default_factory=lambda: {"messages": "conversations", "images": "images"})
    num_skipped: int = 0

    def add(self, record: Record) -> None:
        """Take note of a row."""
        roles = [role for role, _ in record.messages]
        if roles[:1] == ["system"]:
            roles.pop(0)
            self.columns["system"] = "system"
        if record.tools is not None or record.schemas is not None:
            self.columns["tools"] = "tools"
        in_turns = all((role == "assistant") == bool(number % 2) for number, role in enumerate(roles))
        self.num_skipped += not in_turns or len(roles) % 2 != ("chosen" in record.others)

    def lines(self, path: Path) -> list[str]:
        """Return the notes."""
        entry = {path.stem: {"file_name": path.name, "formatting": "sharegpt", "columns": self.columns}}
        lines = [f"for LLaMA-Factory's dataset_info.json: {json.dumps(entry, ensure_ascii=False)}"]
        if self.num_skipped:
            lines.append(
                f"warning: LLaMA-Factory skips {self.num_skipped} rows: it wants turns of user and assistant that end with an answer"
            )
        return lines


def layout(records: Iterable[Record]) -> None:
    """Nothing: rows stand for themselves."""


def write(path: Path, records: Iterable[Record], pictures: Pictures, schemas: dict[str, Any] | None) -> int:
    """As `Format.write`; `schemas` are those of known tools."""
    number = 0
    with replace_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("[")
        for record in records:
            file.write(
                (",\n" if number else "\n")
                + dump_json(_format_record(record, pictures, schemas or {}, number), f"row {number}")
            )
            number += 1
        file.write("\n]\n")
    return number


def _format_record(record: Record, pictures: Pictures, known: dict[str, Any], number: int) -> dict[str, Any]:
    if any(IMAGE in piece for _, text in record.messages for piece in split_at_images(text)):
        raise DataError(
            f"row {number}: a text holds {IMAGE}, which LLaMA-Factory would read as an image: leave the row out, or change the text"
        )
    messages, value = [*record.messages], dict(record.others)
    if messages and messages[0][0] == "system" and messages[0][1]:
        value["system"] = messages.pop(0)[1]
    value["conversations"] = [_format_turn(role, text) for role, text in messages]
    schemas = schemas_to_write(record, known)
    if schemas is not None:
        value["tools"] = dump_json(schemas, "tools")
    value["images"] = [pictures.url(image) for image in record.images]
    return value


def _format_turn(role: str, text: str) -> dict[str, str]:
    before, calls = split_calls(text) if role == "assistant" else (text, [])
    if len(calls) == 1 and not before:
        return {"from": "function_call", "value": text.removeprefix(_START).removesuffix(_END)}
    return {"from": _FROM[role], "value": text}
