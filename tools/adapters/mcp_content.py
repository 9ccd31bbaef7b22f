"""What an MCP server's tool returned, as a result of ours: texts and images; what cannot be shown is named."""

import base64
import json
from typing import Any

from arm_rl.core.images import Image
from arm_rl.core.session import ToolResult

MAX_IMAGES = 8  # of one call


def as_result(returned: Any) -> ToolResult:
    """The result of a call, from the protocol's `CallToolResult`; `isError` makes it a failed one."""
    texts: list[str] = []
    images: list[Image] = []
    for part in returned.content:
        shown = _convert_block(part)
        if isinstance(shown, str):
            texts.append(shown)
        elif len(images) < MAX_IMAGES:
            images.append(shown)
        else:
            texts.append("[a further image was left out]")
    if not returned.content and returned.structured_content is not None:
        texts.append(json.dumps(returned.structured_content, ensure_ascii=False))
    text = "\n".join(texts)
    if returned.is_error:
        return ToolResult(status="failed", text=text if text.startswith("Error") else f"Error: {text}")
    return ToolResult(status="ok", text=text, images=tuple(images))


def _convert_block(part: Any) -> str | Image:
    """Convert a content block: text, image, audio, resource_link, or resource (a text or bytes)."""
    if part.type == "text":
        return str(part.text)
    if part.type == "image":
        return _decode_image(part.data)
    if part.type == "resource_link":
        return f"{part.name}: {part.uri}"
    if part.type == "resource" and hasattr(part.resource, "text"):
        return str(part.resource.text)
    if part.type == "resource" and str(part.resource.mime_type).startswith("image/"):
        return _decode_image(part.resource.blob)
    return f"[content of type {part.type} was left out]"


def _decode_image(encoded: str) -> str | Image:
    try:
        image = Image.from_bytes(base64.b64decode(encoded, validate=True))
        _ = image.size
    except ValueError:  # neither base64 nor an image, or one with too many pixels
        return "[an image was left out: it cannot be read]"
    return image
