"""Scripted policies, and a sample to judge: sessions without a model."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image as PILImage

from arm_rl.core.session import Completion, Memory, PolicyRequest, ToolResult
from arm_rl.core.types import ImagePart, ImageRef, Message, Sample, ToolCall

if TYPE_CHECKING:
    from arm_rl.core.template import Template

ZOOM = "image_zoom_in_tool"
ANSWER = "<think>It is a 4.</think><answer>Overall Judgment: Answer 1 is better.</answer>"
WRONG = "<think>It is a 7.</think><answer>Overall Judgment: Answer 2 is better.</answer>"


def noise(width: int = 256, height: int = 256, seed: int = 0) -> PILImage.Image:
    """An image in which every crop is another one."""
    return PILImage.frombytes("RGB", (width, height), random.Random(seed).randbytes(3 * width * height))


def make_sample(folder: Path, **changes) -> Sample:
    """A sample with one image file; the first answer is the right one."""
    path = folder / "scene.png"
    noise().save(path)
    question = Message(
        role="user", parts=(ImagePart(name="original_image"), "Which digit is on the red tile? Answer 1: 4 Answer 2: 7")
    )
    values = {
        "id": "s",
        "track": "digits",
        "messages": (question,),
        "images": (ImageRef(path=str(path)),),
        "label": "1",
        "tools": (ZOOM,),
    }
    return Sample(**{**values, **changes})


def call(box: Any = (0, 0, 500, 500), image: Any = "original_image", name: Any = ZOOM, **arguments) -> str:
    """A turn with a call; `box` or `image` None leaves that argument out."""
    given = {key: value for key, value in {"image": image, "bbox_2d": box}.items() if value is not None}
    return raw_call(json.dumps({"name": name, "arguments": {**given, **arguments}}))


def raw_call(written: str) -> str:
    """A turn with anything inside its call's tags."""
    return f"<think>look closer</think><tool_call>{written}</tool_call>"


class Scripted:
    """A policy that says what it was told to, turn after turn, and keeps what it was asked. An exception is raised."""

    def __init__(self, template: "Template", *turns: str | Completion | BaseException) -> None:
        self._template = template
        self._turns = iter(turns)
        self.requests: list[PolicyRequest] = []

    async def __call__(self, request: PolicyRequest) -> Completion:
        self.requests.append(request)
        turn = next(self._turns)
        if isinstance(turn, BaseException):
            raise turn
        return turn if isinstance(turn, Completion) else completion(self._template, turn, version=len(self.requests))


def completion(
    template: "Template", text: str, finish_reason: str = "stop", version: int = 0, ended: bool | None = None
) -> Completion:
    """What an engine would give back: it stops after a call, and samples the end token after anything else."""
    if ended is None:
        ended = finish_reason == "stop" and not text.endswith("</tool_call>")
    ids = template.turn_ids(text, ended=ended)
    return Completion(
        token_ids=ids,
        logprobs=tuple(-0.01 * (number + 1) for number in range(len(ids))),
        text=text,
        finish_reason=finish_reason,
        policy_version=version,
    )


class FunctionTools:
    """The tools of sessions as one function of a call and the memory; keeps the memories that were released."""

    def __init__(self, function: Callable[[ToolCall, Memory], ToolResult]) -> None:
        self._function = function
        self.released: list[Memory] = []

    async def __call__(self, call: ToolCall, memory: Memory) -> ToolResult:
        return self._function(call, memory)

    async def release(self, memory: Memory) -> None:
        self.released.append(memory)
