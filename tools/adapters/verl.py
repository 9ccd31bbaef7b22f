"""Tools that are written to verl's interface, used unchanged: `create`, `execute` and `release`, in its older form and in its newer one.

A session's first call creates an instance; the session's end releases it. What decides success is the class's own metrics (`success`
false, or an `error`) and its exceptions. The step rewards that `execute` returns, and `calc_reward`, are left out: this project's rewards
are computed from what the environment did, in one place.

A sample's `tools_kwargs` do not exist here: a tool must not be told the label. Instead `create` is offered what the session holds, as the
parameters it names: `image` (the original image, PIL), `images` and `texts` (by name), and `response_store`, whose `imgs_map` leads to
files and whose `texts_map` and `resp_map` hold the texts: the reference's checkers look in the one, its agent loop fills the other. The
maps grow with the session. A `create` that takes `**kwargs` is given the original image and the texts inside `create_kwargs` too.
"""

import asyncio
import importlib
import inspect
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image as PILImage
from pydantic import BaseModel, ConfigDict

from arm_rl.core.errors import UserError
from arm_rl.core.images import Image
from arm_rl.core.session import ToolResult
from tools.base import Execution, Tool, ToolContext
from tools.execution.tool_loop import tool_loop

METHODS = ("create", "execute", "calc_reward", "release")
OFFERED = ("image", "images", "texts", "response_store")
FAILED = ("error", "failed", "failure", "timeout")  # values of a metric `status`


def is_verl_class(cls: Any) -> bool:
    """Whether this is a class with verl's methods, and none of ours."""
    return (
        isinstance(cls, type)
        and not issubclass(cls, Tool)
        and all(callable(getattr(cls, method, None)) for method in METHODS)
    )


def verl_tool(cls: Any, config: dict[str, Any], tool_schema: dict[str, Any] | None) -> "VerlTool":
    """A tool around the class; `tool_schema` is OpenAI's function schema, checked.

    The class is made in the process that runs its calls. Without a schema it is made here as well, once, to be asked for its own.

    Raises:
        UserError: no schema is given and the class has none, or it is meant for an MCP server.
    """
    if config.get("type", "native") != "native":
        raise UserError(
            f"type: only 'native' classes are run, not {config['type']!r}; an MCP server has an entry `mcp` of its own"
        )
    if tool_schema is None:
        tool_schema = _own_schema(cls, config)
    return VerlTool(cls, config, tool_schema)


@dataclass(slots=True)
class _Instance:
    """What a session has of the class."""

    id: Any
    store: "_Store"
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # its calls run one after the other


class VerlTool(Tool):
    """Runs a class with verl's interface."""

    execution = Execution(isolation="process")  # anything may be in such a class
    stateful = True

    def __init__(self, cls: Any, config: dict[str, Any], tool_schema: dict[str, Any]) -> None:
        self.set_schema(tool_schema)
        self.description = str(tool_schema["function"].get("description", ""))
        self._class, self._config = cls, config
        self.sees_all_images = bool(
            {"image", "images", "response_store"} & inspect.signature(cls.create).parameters.keys()
        )
        self._tool: Any = None
        self._instances: dict[str, _Instance] = {}

    def run(self, arguments: dict[str, Any], context: ToolContext) -> ToolResult:
        """Creates the session's instance where there is none, and executes the call."""
        return tool_loop().wait(self._execute(arguments, context))

    def release(self, session: str) -> None:
        """Releases the session's instance."""
        instance = self._instances.pop(session, None)
        if instance is None:
            return
        instance.store.close()
        if instance.id is not None:
            tool_loop().wait(_await_if_needed(self._tool.release(instance.id)))

    async def _execute(self, arguments: dict[str, Any], context: ToolContext) -> ToolResult:
        if self._tool is None:
            self._tool = self._class(config=self._config, tool_schema=as_object(self.schema))
        instance = self._instances.get(context.session)
        if instance is None:
            instance = self._instances[context.session] = _Instance(id=None, store=_Store(self._class.create))
        async with instance.lock:
            instance.store.update(context)
            if instance.id is None:
                created = await _await_if_needed(self._tool.create(**instance.store.arguments(context.session)))
                instance.id = created[0] if isinstance(created, tuple) else created
            return _as_result(await _await_if_needed(self._tool.execute(instance.id, arguments)))


class _Store:
    """What `create` is offered of a session. The maps are kept by the class and grow here."""

    def __init__(self, create: Any) -> None:
        parameters = inspect.signature(create).parameters
        self._offered = {name for name in (*OFFERED, "instance_id") if name in parameters}
        self._takes_more = "create_kwargs" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self._original: PILImage.Image | None = None
        self._images: dict[str, PILImage.Image] = {}
        self._texts: dict[str, str] = {}
        self._paths: dict[str, str] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="verl-") if "response_store" in self._offered else None

    def update(self, context: ToolContext) -> None:
        """Adds what is new in the session."""
        self._texts.update(context.texts)
        if self._original is None and "original_image" in context.images:
            self._original = context.images["original_image"].pil()
        for name, image in context.images.items():
            if "images" in self._offered and name not in self._images:
                self._images[name] = image.pil()
            if self._folder is not None and name not in self._paths:
                path = Path(self._folder.name) / f"{len(self._paths)}.png"
                image.pil().save(path, compress_level=1)
                self._paths[name] = str(path)

    def arguments(self, session: str) -> dict[str, Any]:
        """The keyword arguments of `create`."""
        text_maps = {"texts_map": self._texts, "resp_map": self._texts}
        offered: dict[str, Any] = {
            "instance_id": session or None,
            "image": self._original,
            "images": self._images,
            "texts": self._texts,
            "response_store": {"imgs_map": self._paths, **text_maps},
        }
        given = {name: offered[name] for name in self._offered}
        more: dict[str, Any] = {"response_store": text_maps, **given}
        more.pop("instance_id", None)
        if self._original is not None:
            more["image"] = self._original
        return {**given, "create_kwargs": more} if self._takes_more else given

    def close(self) -> None:
        """Removes the files."""
        if self._folder is not None:
            self._folder.cleanup()


async def _await_if_needed(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _as_result(returned: Any) -> ToolResult:
    """A result from `(response, step reward, metrics)`, whatever form the response has: a text, a dictionary or verl's ToolResponse."""
    response, metrics = returned, None
    if isinstance(returned, tuple):
        response, metrics = returned[0], returned[2] if len(returned) > 2 else None
    if isinstance(response, str) or response is None:
        text, pictures, videos = response, None, None
    elif isinstance(response, dict):
        text, pictures, videos = (response.get(key) for key in ("text", "image", "video"))
    else:
        text, pictures, videos = (getattr(response, key, None) for key in ("text", "image", "video"))
    if pictures is None:
        pictures = []
    images = tuple(_as_image(picture) for picture in (pictures if isinstance(pictures, list | tuple) else [pictures]))
    lines = [str(text)] if text else []
    if videos:
        lines.append("[a video was left out: videos are not shown]")
    return ToolResult(status="failed" if _reports_failure(metrics) else "ok", text="\n".join(lines), images=images)


def _reports_failure(metrics: Any) -> bool:
    if not isinstance(metrics, dict):
        return False
    return metrics.get("success") is False or bool(metrics.get("error")) or metrics.get("status") in FAILED


def _as_image(picture: Any) -> Image:
    if isinstance(picture, PILImage.Image):
        return Image.from_pil(picture)
    if isinstance(picture, bytes):
        return Image.from_bytes(picture)
    raise TypeError(f"an image is a PIL image or bytes, not {type(picture).__name__}")


class _Property(BaseModel):
    """One argument."""

    model_config = ConfigDict(extra="allow")
    type: Any = None
    description: str | None = None
    enum: list[Any] | None = None


class _Parameters(BaseModel):
    """The arguments of a function."""

    model_config = ConfigDict(extra="allow")
    type: str = "object"
    properties: dict[str, _Property] = {}
    required: list[str] = []


class _Function(BaseModel):
    """A function."""

    model_config = ConfigDict(extra="allow")
    name: str
    description: str = ""
    parameters: _Parameters = _Parameters()
    strict: bool = False


class _ToolSchema(BaseModel):
    """Stands in for verl's class of that purpose where verl is not installed: the same attributes, and nothing is lost in `model_dump`."""

    model_config = ConfigDict(extra="allow")
    type: str = "function"
    function: _Function


def as_object(schema: dict[str, Any]) -> Any:
    """The schema with attributes, as verl hands it to its tools: verl's own class where it is installed."""
    try:
        model: Any = importlib.import_module("verl.tools.schemas").OpenAIFunctionToolSchema
    except ImportError:
        model = _ToolSchema
    return model.model_validate(schema)


def _own_schema(cls: type, config: dict[str, Any]) -> dict[str, Any]:
    needed = f"tool_schema: it is needed, since {cls.__qualname__} has none of its own"
    try:
        schema = cls(config=config, tool_schema=None).get_openai_tool_schema()
    except Exception as error:  # whatever a class does without a schema, the answer is to give one
        raise UserError(f"{needed} ({type(error).__name__}: {error})") from error
    if schema is None:
        raise UserError(needed)
    return schema if isinstance(schema, dict) else schema.model_dump(exclude_unset=True, exclude_none=True)
