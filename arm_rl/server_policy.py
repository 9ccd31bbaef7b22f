"""A policy behind an OpenAI-compatible server, for the same session loop as in training."""

import asyncio
import base64
import json
import logging
import random
from collections.abc import Mapping
from typing import Any

import httpx

from arm_rl.core.images import Image
from arm_rl.core.parsing import whole_characters
from arm_rl.core.session import Completion, PolicyRequest
from arm_rl.core.template import Template
from arm_rl.core.types import ImagePart, Message

logger = logging.getLogger(__name__)

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})  # refusals that another try may not meet
LONGEST_WAIT = 60.0  # seconds between two tries


class ServerError(RuntimeError):
    """The server refused a request or gave no usable answer; the message holds what it said."""


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
            with_logprobs: asks for token ids and their log-probabilities too, as vLLM's server gives them, and for no more after a call.
        """
        self._model, self._template = model, template
        self._temperature, self._max_tokens = temperature, max_tokens
        self._num_retries, self._with_logprobs = num_retries, with_logprobs
        self._client = httpx.AsyncClient(
            base_url=base_url.rstrip("/"),
            timeout=timeout_seconds,
            limits=httpx.Limits(max_connections=None),  # who asks limits how many sessions run
            headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
        )

    async def __call__(self, request: PolicyRequest) -> Completion:
        """Asks for one turn.

        Raises:
            ServerError: the server refused it, or its answer cannot be used.
            httpx.TransportError: the server did not answer.
        """
        names = [name for message in request.messages for name in message.image_names]
        body: dict[str, Any] = {
            "model": self._model,
            "messages": await asyncio.to_thread(self._messages, request.messages, dict(zip(names, request.images, strict=True))),
            "temperature": self._temperature,
            "max_tokens": min(self._max_tokens, request.max_tokens),
            "seed": request.seed,
        }
        if request.tools:
            body["tools"] = [self._template.schemas[name] for name in request.tools]
            body["tool_choice"] = "auto" if request.allow_call else "none"
        if self._with_logprobs:
            # Token ids as an own engine gives them: the turn ends with its call, and what stops it is part of it.
            body |= {"logprobs": True, "return_token_ids": True, "include_stop_str_in_output": True}
            body["stop"] = [self._template.tool_format.call_end]
        response = await self._post(body)
        if response.status_code != httpx.codes.OK:
            raise ServerError(f"{response.request.url}: {response.status_code}: {response.text[:2000]}")
        try:
            choice = response.json()["choices"][0]
            text, cut = self._turn(choice["message"]), choice["finish_reason"] == "length"
            ids, logprobs = _tokens(choice) if self._with_logprobs else ((), ())
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise ServerError(f"{response.request.url}: not a chat completion ({error!r}): {response.text[:2000]}") from error
        return Completion(token_ids=ids, logprobs=logprobs, text=whole_characters(text), finish_reason="length" if cut else "stop")

    async def _post(self, body: dict[str, Any]) -> httpx.Response:
        """The server's answer, after as many tries as are allowed."""
        for tries in range(self._num_retries + 1):
            wait = min(2.0**tries, LONGEST_WAIT) * random.uniform(0.5, 1.0)  # not all sessions at once
            try:
                response = await self._client.post("/chat/completions", json=body)
            except httpx.TransportError as error:
                if tries == self._num_retries:
                    raise
                reason = repr(error)
            else:
                if response.status_code not in PASSING or tries == self._num_retries:
                    return response
                reason = str(response.status_code)
                wait = max(wait, _retry_after(response))
            logger.warning("%s: %s; asked again in %.1f s", self._client.base_url, reason, wait)
            await asyncio.sleep(wait)
        raise AssertionError("the last try returns or raises")

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    def _turn(self, message: Mapping[str, Any]) -> str:
        """The turn as the model wrote it: servers take the first call out of the text, here it goes back in."""
        text = message.get("content") or ""
        calls = message.get("tool_calls") or []
        if not calls:
            return text
        function = calls[0]["function"]
        try:
            arguments = json.loads(function["arguments"])
        except ValueError:
            arguments = function["arguments"]
        written = json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False)
        return f"{text}{self._template.tool_format.call_start}{written}{self._template.tool_format.call_end}"

    def _messages(self, messages: tuple[Message, ...], images: Mapping[str, Image]) -> list[dict[str, Any]]:
        """OpenAI's messages; images as the views that the model sees where the server then leaves them as they are."""
        written: list[dict[str, Any]] = []
        for number, message in enumerate(messages):
            content = [
                {"type": "image_url", "image_url": {"url": self._data_url(images[part.name])}}
                if isinstance(part, ImagePart)
                else {"type": "text", "text": self._template.harmless(part)}
                for part in message.parts
            ]
            extra = {"tool_call_id": f"call_{number}"} if message.role == "tool" else {}
            written.append({"role": message.role, "content": content, **extra})
        return written

    def _data_url(self, image: Image) -> str:
        view = self._template.view
        size = view.of(*image.size)
        stays = view.of(*size) == size  # where a view's bounds are narrow, the server would make another one of it
        sent = Image.from_pil(view.view(image) if stays else image.pil())
        return "data:image/png;base64," + base64.b64encode(sent.data).decode()


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the server asks to wait; 0 where it does not say, or names a date."""
    written = response.headers.get("Retry-After", "")
    return min(float(written), LONGEST_WAIT) if written.isdigit() else 0.0


def _tokens(choice: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    return tuple(choice["token_ids"]), tuple(float(token["logprob"]) for token in choice["logprobs"]["content"])
