"""The tools by name, and the YAML files that offer them.

A new tool is one file and one line in `TOOLS`. A tool file lists entries of `class_name` (a name in `TOOLS`, or the dotted path of a
`Tool` class), `config` (its keyword arguments) and, where another description is wanted, `tool_schema`.
"""

import copy
import importlib
from collections.abc import Sequence
from typing import Any

import jsonschema
from omegaconf import OmegaConf

from arm_rl.core.errors import UserError
from tools.base import Tool
from tools.image_zoom import ImageZoomTool

TOOLS: dict[str, type[Tool]] = {
    "image_zoom_in_tool": ImageZoomTool,
}


class ToolFileError(UserError):
    """A tool file that cannot be used; the message names the file and the entry."""


def load_tools(files: Sequence[str]) -> dict[str, Tool]:
    """The tools that the files list, by name.

    Raises:
        ToolFileError: a file that cannot be read, an unknown class, a wrong configuration or a name listed twice.
    """
    tools: dict[str, Tool] = {}
    for file in files:
        for number, entry in enumerate(_entries(file)):
            tool = _make(entry, f"{file}: tools[{number}]")
            if tool.name in tools:
                raise ToolFileError(f"{file}: tools[{number}]: {tool.name!r} is listed twice")
            tools[tool.name] = tool
    return tools


def _entries(file: str) -> list[dict[str, Any]]:
    try:
        content = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except OSError as error:
        raise ToolFileError(f"{file}: {error.strerror}") from error
    except Exception as error:
        raise ToolFileError(f"{file}: not a YAML file: {error}") from error
    entries = content.get("tools") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ToolFileError(f"{file}: a list of entries under the key 'tools' is needed")
    return entries


def _make(entry: dict[str, Any], where: str) -> Tool:
    unknown = set(entry) - {"class_name", "config", "tool_schema"}
    if unknown:
        raise ToolFileError(f"{where}: unknown key {sorted(unknown)[0]!r}; known: class_name, config, tool_schema")
    try:
        tool = _class(str(entry.get("class_name", "")), where)(**(entry.get("config") or {}))
    except TypeError as error:
        raise ToolFileError(f"{where}.config: {error}") from error
    if entry.get("tool_schema") is not None:
        schema = copy.deepcopy(entry["tool_schema"])
        tool.name = _checked_name(schema, f"{where}.tool_schema")  # type: ignore[misc]  # an instance may be offered under another name
        tool.schema = schema  # type: ignore[misc]
    return tool


def _checked_name(schema: Any, where: str) -> str:
    try:
        name, parameters = schema["function"]["name"], schema["function"]["parameters"]
        parameters["properties"]
        jsonschema.Draft202012Validator.check_schema(parameters)
    except (KeyError, TypeError) as error:
        raise ToolFileError(f"{where}: needs function.name and function.parameters.properties: {error!r}") from error
    except jsonschema.SchemaError as error:
        raise ToolFileError(f"{where}: {error.message}") from error
    if not isinstance(name, str) or not name:
        raise ToolFileError(f"{where}: function.name is {name!r}; a text is needed")
    return name


def _class(class_name: str, where: str) -> type[Tool]:
    if class_name in TOOLS:
        return TOOLS[class_name]
    module, _, name = class_name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ToolFileError(f"{where}.class_name: {class_name!r} is neither one of {sorted(TOOLS)} nor a class that imports") from error
    if not (isinstance(found, type) and issubclass(found, Tool)):
        raise ToolFileError(f"{where}.class_name: {class_name!r} is not a tools.base.Tool")
    return found
