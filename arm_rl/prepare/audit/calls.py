"""Tool calls that could not be carried out: of demonstrations, and those that a sample's tools will need."""

from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema

from arm_rl.core.parsing import HermesFormat
from arm_rl.core.types import ImagePart
from arm_rl.prepare.records import Record

_IMAGE, _TEXT = "image", "response"  # arguments that name something in a session's memory
_FORMAT = HermesFormat()


def find_faults(record: Record, schemas: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a row's tools; without schemas, nothing."""
    if not schemas:
        return
    yield from _find_offer_faults(record, schemas)
    originals = sum(text.count("<image>") for role, text in record.messages if role in ("system", "user"))
    memory = {ImagePart.original(number).name for number in range(1, originals + 1)}
    observations = 0
    for role, text in record.messages:
        if role == "tool":
            for _ in range(text.count("<image>")):
                observations += 1
                memory.add(f"observation_{observations}")
        call = _FORMAT.parse(text) if role == "assistant" else None
        if call is not None:
            yield from ([call.error] if call.error else _find_call_faults(call.name, call.arguments, memory, schemas))


def _find_call_faults(
    name: str, arguments: dict[str, Any], memory: set[str], schemas: Mapping[str, Any]
) -> Iterator[str]:
    if name not in schemas:
        yield f"a call of {name!r}, which no tool file lists"
        return
    error = next(jsonschema.Draft202012Validator(_parameters(schemas[name])).iter_errors(arguments), None)
    if error is not None:
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
        yield f"a call of {name}: arguments{place}: {error.message:.100}"
    image = arguments.get(_IMAGE)
    if _IMAGE in _parameters(schemas[name]).get("properties", {}) and isinstance(image, str) and image not in memory:
        yield f"a call of {name}: there is no image {image!r} by then ({', '.join(sorted(memory)) or 'none'})"


def _find_offer_faults(record: Record, schemas: Mapping[str, Any]) -> Iterator[str]:
    """Yield faults of the tools that a sample offers: unlisted ones, and ones that lack their image or text."""
    extra = record.others.get("extra_info", {})
    for key in ("tools", "expected_tools"):
        for name in extra.get(key, ()):
            needed = _parameters(schemas[name]).get("required", ()) if name in schemas else ()
            if name not in schemas:
                yield f"extra_info.{key}: {name!r}, which no tool file lists"
            elif _TEXT in needed and not extra.get("texts"):
                yield f"extra_info.{key}: {name} needs a text of the memory, and extra_info.texts has none"
            elif _IMAGE in needed and not record.images:
                yield f"extra_info.{key}: {name} needs an image, and there is none"


def _parameters(schema: Mapping[str, Any]) -> dict[str, Any]:
    return schema["function"].get("parameters", {})
