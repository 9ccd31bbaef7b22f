"""A model for VLMEvalKit that runs our loop: interleaved text and images in, text out, every session kept with its tool calls.

The kit is not imported: it calls `generate` of what its table `supported_VLM` makes, from as many threads as its `--api-nproc` says.
A subclass of the kit's base model works as well: its `generate` calls `generate_inner`.
"""

import atexit
import threading
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

from arm_rl.benchmarks.prompts import ANSWER_SYSTEM
from arm_rl.benchmarks.verdicts import answer_text
from arm_rl.core.config import ConfigError
from arm_rl.core.config_file import load
from arm_rl.core.errors import UserError
from arm_rl.core.loop_thread import LoopThread
from arm_rl.core.stage_config import TrainConfig
from arm_rl.core.types import ImagePart, ImageRef, Message, Sample, ScoredTrajectory
from arm_rl.judge.backends import Backend, JudgedSession, Server, SessionFiles, server_backend, server_template

FAILED = "Failed to obtain answer via API."  # how the kit knows an answer that it may ask for again
SESSIONS_PER_FILE = 32
Part = dict[str, Any]  # of a message: type ("text" or "image"), value (the text, or the image's path)


class MessageError(UserError):
    """A message that cannot be shown to the judge."""


class AgentModel:
    """The kit's model interface on a backend."""

    is_api = True  # the kit asks from several threads
    INTERLEAVE = True
    allowed_types = ("text", "image")

    def __init__(
        self,
        backend: AbstractAsyncContextManager[Backend[Any]],
        *,
        tools: Sequence[str],
        system_prompt: str | None = ANSWER_SYSTEM,
    ) -> None:
        """Starts the backend, on a thread of its own.

        Args:
            tools: names of those offered.
            system_prompt: by default one that asks for thoughts, calls and an answer in tags; None for the template's.
        """
        self._tools, self._system_prompt = tuple(tools), system_prompt
        self._loop = LoopThread("kit-model")
        self._stack = AsyncExitStack()
        self._backend = self._loop.wait(self._stack.enter_async_context(backend))
        self._files = SessionFiles(self._backend, per_file=SESSIONS_PER_FILE)
        self._number = 0
        self._lock = threading.Lock()
        self._closed = False
        atexit.register(self.close)

    def generate(self, message: str | Part | Sequence[str | Part], dataset: str | None = None) -> str:
        """The answer to a message: a text, or texts and images in reading order."""
        parts = [message] if isinstance(message, str | dict) else list(message)
        return self.generate_inner(
            [{"type": "text", "value": part} if isinstance(part, str) else part for part in parts], dataset
        )

    def generate_inner(self, message: Sequence[Part], dataset: str | None = None) -> str:
        """The same for a list of parts. A session that breaks gives the text by which the kit knows failures."""
        name = dataset or "messages"
        with self._lock:
            self._number += 1
            number = self._number
        asked = self._loop.wait(self._ask(self._make_sample(message, name, number), name))
        if asked.trajectory.end == "aborted" or not asked.trajectory.turns:
            return f"{FAILED} {(asked.trajectory.error or 'no turn').strip().splitlines()[-1]}"
        return answer_text(asked.trajectory.turns[-1].text)

    def use_custom_prompt(self, dataset: str | None) -> bool:
        """The kit's own prompts are used."""
        return False

    def set_dump_image(self, dump_image: Any) -> None:
        """The kit's hook for models that build prompts themselves; this one does not."""

    def close(self) -> None:
        """Writes the last sessions and ends the backend."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        try:
            self._loop.wait(self._close_backend())
        finally:
            self._loop.close()

    def __enter__(self) -> "AgentModel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make_sample(self, message: Sequence[Part], dataset: str, number: int) -> Sample:
        parts: list[str | ImagePart] = []
        images: list[ImageRef] = []
        system = [self._system_prompt] if self._system_prompt is not None else []
        for part in message:
            kind, value = part.get("type"), part.get("value")
            if kind not in self.allowed_types or not isinstance(value, str):
                raise MessageError(
                    f"a part of a message has the type text or image and a text as value, not {part!r:.200}"
                )
            if part.get("role") == "system":
                system.append(value)
            elif kind == "text":
                parts.append(value)
            else:
                images.append(ImageRef(path=value.removeprefix("file://")))
                parts.append(ImagePart.original(len(images)))
        messages = [Message(role="system", parts=("\n\n".join(system),))] if system else []
        messages.append(Message(role="user", parts=tuple(parts)))
        return Sample(
            id=f"{dataset}/{number}",
            track=dataset,
            messages=tuple(messages),
            images=tuple(images),
            label="",  # the kit knows what is right
            tools=self._tools,
        )

    async def _ask(self, sample: Sample, dataset: str) -> JudgedSession[Any]:
        asked: JudgedSession[Any] = await self._backend.ask(sample, sample.id)
        await self._files.add(dataset, asked, ScoredTrajectory(trajectory=asked.trajectory, reward=None))
        return asked

    async def _close_backend(self) -> None:
        try:
            await self._files.flush()
        finally:
            await self._stack.aclose()


def server_model(
    url: str,
    processor: str,
    *,
    served_model: str,
    folder: str,
    tool_files: Sequence[str] | None = None,
    config: str = "configs/evaluate.yaml",
    concurrency: int = 32,
    api_key: str | None = None,
) -> AgentModel:
    """The kit's model on an OpenAI-compatible server, with the tools beside the kit.

    Args:
        url: of the server, with its /v1.
        processor: folder or name of the served model: its tokens, and how large it sees an image.
        served_model: the name under which the server offers it.
        folder: where the sessions are written; it must be new.
        tool_files: instead of those of the configuration.
        config: limits of a session, tools and the template.
    """
    out = Path(folder)
    if (out / "trajectories").exists():
        raise ConfigError(f"folder: {folder} holds sessions already")
    overrides = [f"model.path={processor}", f"run.name={out.name}", f"run.root={out.parent}"]
    if tool_files is not None:
        overrides.append(f"tools.files=[{','.join(tool_files)}]")
    loaded = load(TrainConfig, config, overrides)
    template = server_template(loaded)
    server = Server(url=url, model=served_model, api_key=api_key, concurrency=concurrency)
    return AgentModel(server_backend(loaded, template, server), tools=list(template.schemas))
