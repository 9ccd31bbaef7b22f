"""The tools by name, and the YAML files that offer them.

A new tool is one file and one line in `TOOLS`. A tool file lists entries of

    class_name: a name in `TOOLS`, or the dotted path of a `Tool` class or of a class that is written for verl
    config: its keyword arguments
    tool_schema: OpenAI's function schema, where another name or description is wanted
    execution: where, how many at a time and for how long its calls run; fields of `tools.base.Execution`

or of `mcp`, an MCP server whose tools are offered (`tools/adapters/mcp.py`).
"""

import copy
import dataclasses
import functools
import importlib
import io
import os
import re
import typing
from collections.abc import Callable, Sequence
from typing import Any

import jsonschema
from omegaconf import OmegaConf
from omegaconf.resolvers import oc
from pydantic import TypeAdapter, ValidationError

from arm_rl.core.environment import variables_read_by
from arm_rl.core.errors import UserError
from arm_rl.core.text_file import read_text
from tools.adapters.mcp import mcp_tools
from tools.adapters.verl import is_verl_class, verl_tool
from tools.base import Execution, Tool, has_external_reference
from tools.documents.retrieval import DocumentByIndexTool, DocumentByQueryTool
from tools.formula import ExtractFormulaTool
from tools.image_zoom import ImageZoomTool
from tools.ocr import ExtractTextTool
from tools.python.executor import PythonExecutorTool
from tools.text.checks import CHECKS, CheckTool
from tools.web.search import WebSearchTool

TOOLS: dict[str, Callable[..., Tool]] = {
    "image_zoom_in_tool": ImageZoomTool,
    "doc_page_retrieval_by_query": DocumentByQueryTool,
    "doc_page_retrieval_by_index": DocumentByIndexTool,
    **{name: functools.partial(CheckTool, name) for name in CHECKS},
    "extract_text": ExtractTextTool,
    "extract_formula": ExtractFormulaTool,
    "python_code_executor": PythonExecutorTool,
    "web_search": WebSearchTool,
}

ENTRY_KEYS = ("class_name", "config", "tool_schema", "execution")
MCP_KEYS = ("mcp", "tools", "execution")
_RISKY_SETTINGS = {"web_search": ("base_url", "api_key_variable")}  # where queries and keys of this machine go
_UNTRUSTED = (
    "a model folder is not trusted with that; name tool files that you trust with --tools, or trust the folder's with --trust "
    "(in Python: JudgeSetup.read(folder, trust=True))"
)


class ToolFileError(UserError):
    """A tool file that cannot be used; the message names the file and the entry."""


def load_tools(files: Sequence[str]) -> dict[str, Tool]:
    """The tools that the files list, by name.

    Raises:
        ToolFileError: a file that cannot be read, an unknown class, a wrong configuration, a tool that cannot run on this machine or a
            name listed twice.
    """
    tools: dict[str, Tool] = {}
    for file in files:
        secrets: list[str] = []
        try:
            for number, entry in enumerate(_entries(file, secrets)):
                where = f"{file}: tools[{number}]"
                for tool in _make_tools(entry, where):
                    if tool.name in tools:
                        raise ToolFileError(f"{where}: {tool.name!r} is listed twice")
                    tools[tool.name] = tool
        except UserError as error:
            raise ToolFileError(_hide_secrets(str(error), secrets)) from None
    return tools


def require_own_tools(files: Sequence[str]) -> None:
    """Check that files from an untrusted source list only tools named in `TOOLS`, and read no environment variable.

    Raises:
        ToolFileError: If a file would run a command, connect to a server, import a class or read a variable.
    """
    for file in files:
        secrets: list[str] = []
        try:
            entries = _entries(file, secrets)
            risks = [(number, risk) for number, entry in enumerate(entries) if (risk := _describe_risk(entry))]
            if risks:
                number, risk = risks[0]
                raise ToolFileError(f"{file}: tools[{number}] would {risk}: {_UNTRUSTED}")
        except UserError as error:
            raise ToolFileError(_hide_secrets(str(error), secrets)) from None
        if secrets:
            raise ToolFileError(f"{file} would read environment variables: {_UNTRUSTED}")


def _describe_risk(entry: dict[str, Any]) -> str | None:
    """Return what an entry would run that is not one of the project's tools, or None."""
    if "mcp" in entry:
        server = entry["mcp"] if isinstance(entry["mcp"], dict) else {}
        if "command" in server:
            command = server["command"]
            words = command if isinstance(command, list) else [command]
            return f"run the command {' '.join(map(str, words))!r:.300}"
        return f"connect to the MCP server {str(server.get('url'))!r:.300}"
    class_name, config = str(entry.get("class_name", "")), entry.get("config")
    if class_name not in TOOLS:
        return f"import and run the class {class_name!r:.300}"
    setting = next(
        (name for name in _RISKY_SETTINGS.get(class_name, ()) if isinstance(config, dict) and name in config), None
    )
    if setting is None or not isinstance(config, dict):
        return None
    return f"choose where {class_name} sends queries and keys ({setting}: {str(config[setting])!r:.300})"


def _hide_secrets(message: str, secrets: Sequence[str]) -> str:
    """Return a message without the values of environment variables, plain or as `repr` writes them."""
    for value in sorted(secrets, key=len, reverse=True):
        for form in (value, repr(value)[1:-1]):
            message = message.replace(form, "***")
    return message


def _entries(file: str, secrets: list[str]) -> list[dict[str, Any]]:
    """Return the entries of a file, and append the values of the environment variables that the file reads to `secrets`."""

    def read_variable(name: str, *default: Any) -> Any:
        secrets.extend(filter(None, [os.environ.get(name)]))
        return oc.env(name, *default)

    try:
        with variables_read_by(read_variable):
            content = OmegaConf.to_container(OmegaConf.load(io.StringIO(read_text(file))), resolve=True)
    except UserError:
        raise
    except OSError as error:
        raise ToolFileError(f"{file}: {error.strerror or error}") from error
    except Exception as error:
        raise ToolFileError(f"{file}: not a YAML file: {error}") from error
    entries = content.get("tools") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ToolFileError(f"{file}: a list of entries under the key 'tools' is needed")
    return entries


def _make_tools(entry: dict[str, Any], where: str) -> list[Tool]:
    keys = MCP_KEYS if "mcp" in entry else ENTRY_KEYS
    unknown = set(entry) - set(keys)
    if unknown:
        raise ToolFileError(f"{where}: unknown key {sorted(unknown, key=str)[0]!r}; known: {', '.join(keys)}")
    made = mcp_tools(entry, where) if "mcp" in entry else [_make_from_class(entry, where)]
    if entry.get("execution") is not None:
        for tool in made:
            tool.execution = _override_execution(tool.execution, entry["execution"], f"{where}.execution")
    return made


def _make_from_class(entry: dict[str, Any], where: str) -> Tool:
    found = _import_class(str(entry.get("class_name", "")), where)
    schema = (
        None if entry.get("tool_schema") is None else _validate_schema(entry["tool_schema"], f"{where}.tool_schema")
    )
    config = entry.get("config") or {}
    try:
        if is_verl_class(found):
            return verl_tool(found, config, schema)
        _check_types(found, config)
        tool = found(**config)
    except (TypeError, ValueError, UserError) as error:
        raise ToolFileError(f"{where}.config: {error}") from error
    if schema is not None:
        tool.set_schema(schema)
    return tool


def _check_types(found: Callable[..., Tool], config: Any) -> None:
    """Values of the types that the class is written for."""
    if not (isinstance(found, type) and isinstance(config, dict)):
        return
    for name, kind in typing.get_type_hints(found.__init__).items():  # type: ignore[misc]
        if name in config and name != "return":
            try:
                TypeAdapter(kind).validate_python(config[name], strict=not isinstance(config[name], list))
            except ValidationError as error:
                raise UserError(f"{name}: {error.errors()[0]['msg']}") from error


def _override_execution(execution: Execution, fields: Any, where: str) -> Execution:
    known = [field.name for field in dataclasses.fields(Execution)]
    if not isinstance(fields, dict) or not set(fields) <= set(known):
        raise ToolFileError(f"{where}: fields of {', '.join(known)}, not {fields}")
    try:
        return dataclasses.replace(execution, **fields)
    except (TypeError, ValueError) as error:
        raise ToolFileError(f"{where}.{error}") from error


def _validate_schema(schema: Any, where: str) -> dict[str, Any]:
    try:
        name, parameters = schema["function"]["name"], schema["function"]["parameters"]
        parameters["properties"]
        jsonschema.Draft202012Validator.check_schema(parameters)
    except (KeyError, TypeError) as error:
        raise ToolFileError(f"{where}: needs function.name and function.parameters.properties: {error!r}") from error
    except jsonschema.SchemaError as error:
        raise ToolFileError(f"{where}: {error.message}") from error
    if not isinstance(name, str) or not re.fullmatch(r"[\w.:/-]+", name):
        raise ToolFileError(f"{where}: function.name is {name!r}; a name without blanks is needed")
    if has_external_reference(parameters):
        raise ToolFileError(
            f"{where}: a $ref leads to another document, and nothing is fetched: write out what it means"
        )
    return copy.deepcopy(schema)


def _import_class(class_name: str, where: str) -> Callable[..., Tool]:
    if class_name in TOOLS:
        return TOOLS[class_name]
    module, _, name = class_name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module may raise anything while it is imported
        reason = f"{type(error).__name__}: {error}"
        raise ToolFileError(
            f"{where}.class_name: {class_name!r} is neither one of {sorted(TOOLS)} nor a class that imports ({reason})"
        ) from error
    if not (isinstance(found, type) and (issubclass(found, Tool) or is_verl_class(found))):
        raise ToolFileError(
            f"{where}.class_name: {class_name!r} is neither a tools.base.Tool nor a class with verl's methods"
        )
    return found
