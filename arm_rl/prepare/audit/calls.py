"""Tool calls that could not be carried out: of demonstrations, and those that a sample's tools will need."""

from collections.abc import Iterator, Mapping
from typing import Any

from arm_rl.core.parsing import HermesFormat
from arm_rl.core.placeholders import count_images
from arm_rl.core.types import ImagePart
from arm_rl.data.calls import find_argument_faults, find_turn_faults, read_calls
from arm_rl.prepare.records import Record, tool_names

_IMAGE, _TEXT = "image", "response"  # arguments that name something in a session's memory
_FORMAT = HermesFormat()


def find_faults(record: Record, schemas: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a row's calls, and with the tools that the row offers.

    Args:
        schemas: those of the tool files, by name; without any, the row's own schemas are used.
    """
    known = schemas or {name: {"function": schema.get("function", schema)} for name, schema in _own_schemas(record)}
    if schemas:
        yield from _find_offer_faults(record, schemas)
    roles = [role for role, _ in record.messages]
    if record.is_rl and roles[-1:] == ["assistant"]:
        yield "the prompt ends with an assistant message"
    offered = known if record.is_rl and record.tools is None else record.tools or ()
    parameters = {name: _parameters(schema) for name, schema in known.items()}
    originals = sum(count_images(text) for role, text in record.messages if role in ("system", "user"))
    memory = {ImagePart.original(number).name for number in range(1, originals + 1)}
    observations, before = 0, ""
    for role, text in record.messages:
        if role == "tool":
            if before and not read_calls(before, _FORMAT):
                yield "a tool message answers no call"
            for _ in range(count_images(text)):
                observations += 1
                memory.add(f"observation_{observations}")
        if role == "assistant":
            unlisted = {call.name for call in read_calls(text, _FORMAT) if call.name and schemas} - {*schemas}
            yield from (f"a call of {name!r}, which no tool file lists" for name in sorted(unlisted))
            yield from find_turn_faults(text, _FORMAT, (*offered, *unlisted))
            yield from find_argument_faults(text, _FORMAT, parameters)
            yield from _find_image_faults(text, memory, parameters)
        before = text if role == "assistant" else ""


def _own_schemas(record: Record) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the schemas that a row itself holds, with the tools' names."""
    schemas = record.schemas or ()
    return zip(tool_names(schemas), schemas, strict=True)


def _find_image_faults(text: str, memory: set[str], parameters: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for call in read_calls(text, _FORMAT):
        image = call.arguments.get(_IMAGE)
        takes_image = _IMAGE in parameters.get(call.name, {}).get("properties", {})
        if takes_image and isinstance(image, str) and image not in memory:
            yield f"a call of {call.name}: there is no image {image!r} by then ({', '.join(sorted(memory)) or 'none'})"


def _find_offer_faults(record: Record, schemas: Mapping[str, Any]) -> Iterator[str]:
    """Yield faults of the tools that a sample offers: unlisted ones, and ones that lack their image or text."""
    extra = record.others.get("extra_info", {})
    for name in record.tools or ():
        if name not in schemas:
            yield f"tools: {name!r}, which no tool file lists"
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
