"""What a tool is: a schema, a configuration, and a function from checked arguments and the session's memory to a result."""

import abc
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jsonschema

from arm_rl.core.images import Image
from arm_rl.core.session import ToolResult


class ArgumentError(ValueError):
    """The policy's arguments cannot be used; the message is its observation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolContext:
    """What a call may see of its session's memory."""

    images: Mapping[str, Image]  # those that the arguments name
    texts: Mapping[str, str]
    image_names: Sequence[str]  # all there are, for the message where a name is wrong

    def image(self, name: str) -> Image:
        """The image of that name.

        Raises:
            ArgumentError: there is none; the message lists those there are.
        """
        if name not in self.images:
            raise ArgumentError(f"there is no image {name!r}; known: {', '.join(self.image_names) or 'none'}")
        return self.images[name]


class Tool(abc.ABC):
    """A tool. A subclass names itself, gives a schema and runs; its keyword arguments are the `config` of its YAML entry."""

    name: ClassVar[str]
    schema: ClassVar[dict[str, Any]]  # OpenAI's function schema

    def call(self, arguments: dict[str, Any], context: ToolContext) -> ToolResult:
        """Checks the arguments against the schema and runs the tool; wrong arguments are a result, anything else raises."""
        try:
            self._check(arguments)
            return self.run(arguments, context)
        except ArgumentError as error:
            return ToolResult(status="bad_arguments", text=f"Error: {error}")

    @abc.abstractmethod
    def run(self, arguments: dict[str, Any], context: ToolContext) -> ToolResult:
        """Runs the tool with arguments that fit the schema.

        Raises:
            ArgumentError: they fit the schema and still cannot be used.
        """

    def _check(self, arguments: dict[str, Any]) -> None:
        schema = self.schema["function"]["parameters"]
        error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(arguments))
        if error is not None:
            where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path).lstrip(".")
            raise ArgumentError(f"{where}: {error.message}" if where else error.message)


def function_schema(name: str, description: str, properties: dict[str, Any], required: Sequence[str]) -> dict[str, Any]:
    """OpenAI's function schema; arguments that it does not name are refused."""
    parameters = {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}
    json.dumps(parameters)  # a schema travels as JSON
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}
