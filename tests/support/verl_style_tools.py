"""Tools written to verl's interface, in its older and its newer form, as its users write them: for the tests, by their dotted paths."""

import asyncio
from typing import Any
from uuid import uuid4

from PIL import Image
from pydantic import BaseModel


class ToolResponse(BaseModel):
    """As verl's: what `execute` returns in the newer form."""

    text: str | None = None
    image: list[Any] | None = None
    video: list[Any] | None = None


class OldTool:
    """The older form: plain ids and texts, parameters of `create` by name."""

    def __init__(self, config: dict, tool_schema: Any) -> None:
        self.config, self.tool_schema = config, tool_schema
        self.name = tool_schema.function.name
        self.notes: dict[str, list[str]] = {}
        self.background = asyncio.create_task(asyncio.sleep(3600))  # a constructor may count on a running loop

    def get_openai_tool_schema(self) -> Any:
        return self.tool_schema

    async def create(self, instance_id: str | None = None, texts: dict | None = None, **kwargs: Any) -> str:
        instance_id = instance_id or str(uuid4())
        self.notes[instance_id] = [f"created with {sorted(texts or {})} {sorted(kwargs)}"]
        return instance_id

    async def execute(self, instance_id: str, parameters: dict[str, Any], **kwargs: Any) -> tuple[str, float, dict]:
        await asyncio.sleep(0)
        self.notes[instance_id].append(parameters["note"])
        return (
            f"{self.name}{self.config['mark']} {' | '.join(self.notes[instance_id])}",
            0.7,
            {"notes": len(self.notes[instance_id])},
        )

    async def calc_reward(self, instance_id: str, **kwargs: Any) -> float:
        raise AssertionError("its rewards are not asked for")

    async def release(self, instance_id: str, **kwargs: Any) -> None:
        del self.notes[instance_id]


class NewTool:
    """The newer form: responses as objects, the image among `create_kwargs`."""

    def __init__(self, config: dict, tool_schema: Any) -> None:
        self.tool_schema = tool_schema or self.get_openai_tool_schema()
        self.images: dict[str, Image.Image] = {}

    def get_openai_tool_schema(self) -> dict[str, Any]:
        parameters = {"type": "object", "properties": {"what": {"type": "string"}}, "required": ["what"]}
        return {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": parameters}}

    async def create(self, instance_id: str | None = None, **kwargs: Any) -> tuple[str, ToolResponse]:
        instance_id = str(uuid4())  # it need not be the one it was given
        self.images[instance_id] = kwargs.get("create_kwargs", {}).get("image") or Image.new("RGB", (1, 1))
        return instance_id, ToolResponse()

    async def execute(
        self, instance_id: str, parameters: dict[str, Any], **kwargs: Any
    ) -> tuple[ToolResponse, float, dict]:
        what = parameters["what"]
        if what == "half":
            width, height = self.images[instance_id].size
            half = self.images[instance_id].crop((0, 0, width // 2, height))
            return ToolResponse(text="the left half", image=[half]), 0.0, {"success": True}
        if what == "lie":
            return ToolResponse(text="Error: success! True"), 1.0, {}
        if what == "miss":
            return ToolResponse(text="all is well"), 1.0, {"success": False}
        if what == "film":
            return ToolResponse(text="a film", video=[object()]), 0.0, {}
        if what == "dict":
            return {"text": "a dictionary", "image": [self.images[instance_id]]}, 0.0, {"error": None}  # type: ignore[return-value]
        if what == "nothing":
            return ToolResponse(), 0.0, {}
        if what == "sessions":
            return ToolResponse(text=str(len(self.images))), 0.0, {}
        raise ValueError(what)

    async def calc_reward(self, instance_id: str, **kwargs: Any) -> float:
        return 1.0

    async def release(self, instance_id: str, **kwargs: Any) -> None:
        del self.images[instance_id]


class StoreTool(NewTool):
    """As the reference's tools: `create` asks for a store of image files and texts by name."""

    async def create(
        self, instance_id: str | None = None, response_store: dict | None = None, **kwargs: Any
    ) -> tuple[str, ToolResponse]:
        self.store = kwargs.get("create_kwargs", {}).get("response_store", response_store or {})
        return "one", ToolResponse()

    async def execute(
        self, instance_id: str, parameters: dict[str, Any], **kwargs: Any
    ) -> tuple[ToolResponse, float, dict]:
        if parameters["what"] in self.store["resp_map"]:
            return ToolResponse(text=self.store["resp_map"][parameters["what"]]), 0.0, {"success": True}
        image = Image.open(self.store["imgs_map"][parameters["what"]])
        return ToolResponse(text=str(image.size), image=[image.copy()]), 0.0, {"success": True}

    async def release(self, instance_id: str, **kwargs: Any) -> None:
        self.store = {}


class CheckerTool(NewTool):
    """As the reference's checkers: texts are looked up in the store's `texts_map`, which only `create_kwargs` brings."""

    parameters: dict[str, str] = {}

    def __init__(self, config: dict, tool_schema: Any) -> None:
        super().__init__(config, tool_schema)
        self.stores: dict[str, dict] = {}

    def get_openai_tool_schema(self) -> dict[str, Any]:
        properties = {name: {"type": kind} for name, kind in {"response": "string", **self.parameters}.items()}
        parameters = {"type": "object", "properties": properties, "required": list(properties)}
        return {
            "type": "function",
            "function": {"name": type(self).__name__, "description": "", "parameters": parameters},
        }

    async def create(
        self, instance_id: str | None = None, response_store: dict | None = None, **kwargs: Any
    ) -> tuple[str, ToolResponse]:
        instance_id = instance_id or str(uuid4())
        self.stores[instance_id] = kwargs.get("create_kwargs", {}).get("response_store", {})
        return instance_id, ToolResponse()

    async def execute(
        self, instance_id: str, parameters: dict[str, Any], **kwargs: Any
    ) -> tuple[ToolResponse, float, dict]:
        text = self.stores[instance_id].get("texts_map", {})[parameters["response"]]
        return ToolResponse(text=f"Check result: {self.holds(text, parameters)}"), 0.0, {}

    def holds(self, text: str, parameters: dict[str, Any]) -> bool:
        raise NotImplementedError

    async def release(self, instance_id: str, **kwargs: Any) -> None:
        del self.stores[instance_id]


class WordCountTool(CheckerTool):
    parameters = {"lower_bound": "integer", "upper_bound": "integer"}

    def holds(self, text: str, parameters: dict[str, Any]) -> bool:
        return parameters["lower_bound"] <= len(text.split()) <= parameters["upper_bound"]


class BeginsWithTool(CheckerTool):
    parameters = {"substring": "string"}

    async def create(self, instance_id: str | None = None, **kwargs: Any) -> tuple[str, ToolResponse]:  # type: ignore[override]
        """Names no store in its signature."""
        return await super().create(instance_id, **kwargs)

    def holds(self, text: str, parameters: dict[str, Any]) -> bool:
        return text.lower().startswith(parameters["substring"].lower())


class NoNumberTool(CheckerTool):
    def holds(self, text: str, parameters: dict[str, Any]) -> bool:
        return not any(character.isdigit() for character in text)


class NeedsSchemaTool(NewTool):
    """Has no schema of its own."""

    def __init__(self, config: dict, tool_schema: Any) -> None:
        self.tool_schema = tool_schema
        self.name = tool_schema.function.name


class HalfTool:
    """Lacks a method: this is no tool."""

    async def create(self) -> str:
        return ""

    async def execute(self) -> str:
        return ""
