"""A policy behind an OpenAI-compatible server, for the same session loop as in training."""

import asyncio
import base64
from collections.abc import Mapping
from typing import Any

from arm_rl.core.images import Image
from arm_rl.core.parsing import replace_surrogates
from arm_rl.core.session import Completion, PolicyRequest
from arm_rl.core.template import Template
from arm_rl.core.types import ImagePart, Message
from arm_rl.judge.chat_client import ChatServer, ServerError
from arm_rl.judge.chat_message import close_call, turn_text


class ServerPolicy:
    """The `policy` callable of sessions: one chat completion a turn."""

    def __init__(
        self,
        base_url: str,
        model: str,
        template: Template,
        *,
        temperature: float = 0.0,
        max_tokens: int = 1024,
        timeout_seconds: float = 120.0,
        num_retries: int = 0,
        api_key: str | None = None,
        with_logprobs: bool = False,
    ) -> None:
        """Prepares.

        Args:
            base_url: of the server, with its `/v1`.
            model: the name under which the server offers the model.
            template: of the same model: tools' schemas, and how large it sees an image.
            max_tokens: to sample in one turn at most.
            num_retries: of a request that got no answer or was refused for now; the time between tries doubles, and the server's own
                `Retry-After` counts where it is longer.
            api_key: sent as bearer token.
            with_logprobs: asks for token ids and their log-probabilities too, as vLLM's server gives them.
        """
        self._model, self._template = model, template
        self._temperature, self._max_tokens = temperature, max_tokens
        self._with_logprobs = with_logprobs
        self._server = ChatServer(base_url, timeout_seconds=timeout_seconds, num_retries=num_retries, api_key=api_key)

    async def __call__(self, request: PolicyRequest) -> Completion:
        """Asks for one turn.

        Raises:
            ServerError: the server refused it, or its answer cannot be used.
            httpx.TransportError: the server did not answer.
        """
        names = [name for message in request.messages for name in message.image_names]
        body: dict[str, Any] = {
            "model": self._model,
            "messages": await asyncio.to_thread(
                self._format_messages, request.messages, dict(zip(names, request.images, strict=True))
            ),
            "temperature": self._temperature,
            "max_tokens": min(self._max_tokens, request.max_tokens),
            "seed": request.seed,
            "stop": [self._template.tool_format.call_end],
        }
        if request.tools:
            body["tools"] = [self._template.schemas[name] for name in request.tools]
            body["tool_choice"] = "auto" if request.allow_call else "none"
        if self._with_logprobs:
            # Token ids as an own engine gives them: the turn ends with its call, and what stops it is part of it.
            body |= {"logprobs": True, "return_token_ids": True, "include_stop_str_in_output": True}
        choice = await self._server.complete(body)
        tool_format = self._template.tool_format
        try:
            text, cut = turn_text(choice["message"], tool_format), choice["finish_reason"] == "length"
            if not cut and not self._with_logprobs:
                text = close_call(text, tool_format)
            cut = cut and not text.endswith(tool_format.call_end)
            ids, logprobs = _read_tokens(choice) if self._with_logprobs else ((), ())
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise ServerError(f"{self._server.url}: not a chat completion ({error!r}): {choice!r:.2000}") from error
        return Completion(
            token_ids=ids, logprobs=logprobs, text=replace_surrogates(text), finish_reason="length" if cut else "stop"
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._server.close()

    def _format_messages(self, messages: tuple[Message, ...], images: Mapping[str, Image]) -> list[dict[str, Any]]:
        """Return OpenAI's messages, with resized images if the server will not resize them again."""
        written: list[dict[str, Any]] = []
        for number, message in enumerate(messages):
            content = [
                {"type": "image_url", "image_url": {"url": self._data_url(images[part.name])}}
                if isinstance(part, ImagePart)
                else {"type": "text", "text": self._template.break_control_tokens(part)}
                for part in message.parts
            ]
            extra = {"tool_call_id": f"call_{number}"} if message.role == "tool" else {}
            written.append({"role": message.role, "content": content, **extra})
        return written

    def _data_url(self, image: Image) -> str:
        view = self._template.view
        size = view.resized_size(*image.size)
        stays = (
            view.resized_size(*size) == size
        )  # where a view's bounds are narrow, the server would make another one of it
        sent = Image.from_pil(view.resize(image) if stays else image.pil())
        return "data:image/png;base64," + base64.b64encode(sent.data).decode()


def _read_tokens(choice: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    return tuple(choice["token_ids"]), tuple(float(token["logprob"]) for token in choice["logprobs"]["content"])
