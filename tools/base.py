"""What a tool is: a dataclass of arguments, from which its schema follows, and a function from these and the session to a result."""

import abc
import dataclasses
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import jsonschema
from pydantic import Field, TypeAdapter, ValidationError

from arm_rl.core.images import Image, ImageError
from arm_rl.core.session import ToolResult

logger = logging.getLogger(__name__)

Isolation = Literal["inline", "thread", "process"]

# Types of arguments that name something in the session's memory.
ImageName = Annotated[
    str, Field(description="Name of an image: original_image, or an earlier observation, such as observation_1.")
]
TextName = Annotated[str, Field(description="Name of a text: text_0, text_1, ...")]


class ArgumentError(ValueError):
    """The policy's arguments cannot be used; the message is its observation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolContext:
    """What a call may see of its session."""

    session: str = ""  # id of the session: whatever a tool keeps between calls, it keeps under this
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

    def text(self, name: str) -> str:
        """The text of that name.

        Raises:
            ArgumentError: there is none; the message lists those there are.
        """
        if name not in self.texts:
            raise ArgumentError(f"there is no text {name!r}; known: {', '.join(self.texts) or 'none'}")
        return self.texts[name]

    def with_images(self, images: Mapping[str, Image]) -> "ToolContext":
        """Return a copy of the context with these images."""
        return dataclasses.replace(self, images=images)


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """How the calls of a tool are run; an entry's `execution` in a tool file changes single fields.

    `inline` is for what is done in a millisecond whatever it is given, and needs no images: its calls travel in batches and run one
    after the other. `thread` is for what takes longer but neither crashes nor takes memory without bounds. `process` is for everything
    else: each call has a worker process to itself, which is killed and replaced when the time is over.
    """

    isolation: Isolation = "process"
    # calls at a time in one executor; by default 4 worker processes, and tools.concurrency threads
    concurrency: int | None = None
    timeout_seconds: float | None = None  # for one call, without its waiting; by default tools.timeout_seconds
    memory_mb: int | None = 4096  # address space of a worker process; None for no limit

    def __post_init__(self) -> None:
        if self.isolation not in get_args(Isolation):
            raise ValueError(f"isolation: one of {', '.join(get_args(Isolation))}, not {self.isolation!r}")
        for name, least in (("concurrency", 1), ("timeout_seconds", 0.001), ("memory_mb", 64)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ValueError(f"{name}: a number, not {value!r}")
            if value is not None and name != "timeout_seconds" and not isinstance(value, int):
                raise ValueError(f"{name}: a whole number, not {value!r}")
            if value is not None and not least <= value < math.inf:
                raise ValueError(f"{name}: at least {least}, not {value}")


class Tool(abc.ABC):
    """A tool. Its keyword arguments are the `config` of its entry in a tool file.

    A subclass gives `name`, `description` (what the judge is told) and `Arguments` (a dataclass; pydantic's `Field` inside `Annotated`
    describes and bounds its fields); the schema follows from these. Making one checks its configuration and loads nothing large: that
    is left to the first call, which may be in another process than the one that made it.
    """

    name: str
    description: str
    Arguments: Any  # a dataclass
    schema: dict[str, Any]  # OpenAI's function schema
    execution: Execution = Execution()
    stateful: bool = False  # keeps something between the calls of a session, until `release`
    sees_all_images: bool = False  # needs all of the session's images, not only those that its arguments name

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "Arguments" in cls.__dict__:
            cls.schema = function_schema(cls.name, cls.description, parameters_of(cls.Arguments))

    def call(self, arguments: dict[str, Any], context: ToolContext) -> ToolResult:
        """Checks the arguments and runs the tool; whatever happens is a result."""
        try:
            return self.run(self._validate_arguments(arguments), context)
        except (ArgumentError, ImageError) as error:
            return ToolResult(status="bad_arguments", text=f"Error: {error}")
        except Exception as error:  # the tool call's catch point: an observation for the policy, a traceback for us
            logger.exception("%s failed", self.name)
            return ToolResult(status="failed", text=f"Error: {self.name} failed: {type(error).__name__}")

    @abc.abstractmethod
    def run(self, arguments: Any, context: ToolContext) -> ToolResult:
        """Runs the tool with arguments that fit the schema.

        Args:
            arguments: an instance of `Arguments`; where there is no such class, the dictionary that the policy wrote.

        Raises:
            ArgumentError: they fit the schema and still cannot be used.
        """

    def release(self, session: str) -> None:  # noqa: B027 (most tools keep nothing)
        """Forgets what was kept for a session that is over; one that is not known is no error."""

    def close(self) -> None:  # noqa: B027
        """Ends what the tool holds: processes, connections. No call follows."""

    def set_schema(self, schema: dict[str, Any]) -> None:
        """Set the schema, and the name in it, under which this instance is offered."""
        self.name, self.schema = schema["function"]["name"], schema

    def _validate_arguments(self, arguments: dict[str, Any]) -> Any:
        validator = jsonschema.Draft202012Validator(self.schema["function"]["parameters"])
        if not validator.is_valid(arguments):
            error = jsonschema.exceptions.best_match(validator.iter_errors(arguments))
            raise ArgumentError(_locate_error(error.absolute_path, error.message))
        if not hasattr(self, "Arguments"):
            return arguments
        try:
            return _type_adapter(self.Arguments).validate_python(arguments)
        except ValidationError as error:
            first = error.errors()[0]
            raise ArgumentError(_locate_error(first["loc"], first["msg"])) from error


def _locate_error(path: Sequence[Any], message: str) -> str:
    where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")
    return f"{where}: {message}" if where else message


_ADAPTERS: dict[type, TypeAdapter] = {}


def _type_adapter(arguments: type) -> TypeAdapter:
    if arguments not in _ADAPTERS:
        _ADAPTERS[arguments] = TypeAdapter(arguments)
    return _ADAPTERS[arguments]


def parameters_of(arguments: type) -> dict[str, Any]:
    """JSON schema of a dataclass of arguments; what it does not name is refused."""
    if not dataclasses.is_dataclass(arguments):
        raise TypeError(f"{arguments.__qualname__} must be a dataclass")
    schema = _strip_titles(_type_adapter(arguments).json_schema())
    kept = {key: value for key, value in schema.items() if key in ("properties", "$defs")}
    return {
        "type": "object",
        "properties": {},
        **kept,
        "required": schema.get("required", []),
        "additionalProperties": False,
    }


def _strip_titles(schema: Any) -> Any:
    """Remove the titles that pydantic adds: a schema travels in every prompt."""
    if isinstance(schema, dict):
        return {
            key: _strip_titles(value)
            for key, value in schema.items()
            if not (key == "title" and isinstance(value, str))
        }
    return [_strip_titles(value) for value in schema] if isinstance(schema, list) else schema


def function_schema(name: str, description: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's function schema."""
    json.dumps(parameters)  # a schema travels as JSON
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def has_external_reference(parameters: dict[str, Any]) -> bool:
    """Return whether a schema refers to another document, which a validator would fetch."""
    return re.search(r'"\$(?:dynamicR|r)ef": "(?!#)', json.dumps(parameters)) is not None
