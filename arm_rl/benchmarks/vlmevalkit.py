"""A model for VLMEvalKit that runs our loop: interleaved text and images in, text out, every session kept with its tool calls.

The kit is not imported: it calls `generate` of what its table `supported_VLM` makes, from as many threads as its `--api-nproc` says.
A class of this one and a base class of the kit works as well (`class Judge(AgentModel, BaseAPI)`), also where `generate` is the kit's:
`generate_inner` returns what that base class wants, a text for `BaseModel` and a code, a text and a log for `BaseAPI`.
"""

import atexit
import mimetypes
import os
import tempfile
import threading
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

from arm_rl.benchmarks.prompts import ANSWER_SYSTEM
from arm_rl.benchmarks.verdicts import answer_text
from arm_rl.core import trajectory_file
from arm_rl.core.config_file import list_override, load
from arm_rl.core.errors import UserError
from arm_rl.core.images import ImageError
from arm_rl.core.loop_thread import LoopThread
from arm_rl.core.parsing import replace_surrogates
from arm_rl.core.stage_config import TrainConfig
from arm_rl.core.types import ImagePart, ImageRef, Message, Sample, ScoredTrajectory
from arm_rl.data.image_store import ImageFolder, ImageSource
from arm_rl.judge.backends import (
    Backend,
    JudgedSession,
    Server,
    SessionFiles,
    server_backend,
    server_template,
    trajectories_folder,
)

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
        earlier: Path | None = None,
    ) -> None:
        """Starts the backend, on a thread of its own.

        Args:
            tools: names of those offered.
            system_prompt: by default one that asks for thoughts, calls and an answer in tags; None for the template's.
            earlier: folder with the sessions of earlier runs, after which these are numbered.
        """
        super().__init__()  # of the kit's base class, if there is one
        self._returns_code = any(base.__name__ == "BaseAPI" for base in type(self).__mro__)
        self._tools, self._system_prompt = tuple(tools), system_prompt
        self._loop = LoopThread("kit-model")
        self._stack = AsyncExitStack()
        self._backend = self._loop.wait(self._stack.enter_async_context(backend))
        self._files = SessionFiles(self._backend, earlier, per_file=SESSIONS_PER_FILE)
        self._number = _last_number(earlier)
        self._temporary = tempfile.TemporaryDirectory(prefix="arm-rl-kit-")  # for images that come as data URLs
        self._images = ImageFolder(Path(self._temporary.name))
        self._lock = threading.Lock()
        self._closed = False
        atexit.register(self.close)

    def generate(self, message: str | Part | Sequence[str | Part], dataset: str | None = None) -> str:
        """Return the answer to a message: a text, or texts and images in reading order.

        In a list of texts, the path of an image file and a data URL of an image stand for the image, as in the kit.
        """
        if isinstance(message, str):
            return self._answer([{"type": "text", "value": message}], dataset)
        parts = [message] if isinstance(message, dict) else list(message)
        return self._answer([_guess_part(part) if isinstance(part, str) else part for part in parts], dataset)

    def generate_inner(self, message: Sequence[Part], dataset: str | None = None, **_: Any) -> Any:
        """Return the answer to a list of parts in the form that the kit's base class wants."""
        answer = self._answer(message, dataset)
        return (-1 if answer.startswith(FAILED) else 0, answer, "") if self._returns_code else answer

    def _answer(self, message: Sequence[Part], dataset: str | None) -> str:
        """Return the answer. A session that breaks gives the text by which the kit knows failures."""
        name = dataset or "messages"
        with self._lock:
            self._number += 1
            number = self._number
        try:
            sample = self._make_sample(message, name, number)
        except ImageError as error:
            return f"{FAILED} {error}"
        asked = self._loop.wait(self._ask(sample, name))
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
            self._temporary.cleanup()

    def __enter__(self) -> "AgentModel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make_sample(self, message: Sequence[Part], dataset: str, number: int) -> Sample:
        parts: list[str | ImagePart] = []
        images: list[ImageRef] = []
        # the kit's BaseAPI takes system messages out of a message and keeps them
        system = [text for text in (self._system_prompt, getattr(self, "system_prompt", None)) if text is not None]
        for part in message:
            kind, value = part.get("type"), part.get("value")
            if kind not in self.allowed_types or not isinstance(value, str):
                raise MessageError(
                    f"a part of a message has the type text or image and a text as value, not {part!r:.200}"
                )
            if part.get("role") == "system":
                system.append(replace_surrogates(value))
            elif kind == "text":
                parts.append(replace_surrogates(value))
            else:
                images.append(ImageRef(path=self._image_path(value)))
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

    def _image_path(self, value: str) -> str:
        """Return the file of an image that is given as a path or a data URL.

        Raises:
            ImageError: If the data URL cannot be read.
        """
        if value.startswith("data:"):
            return str(self._images.store_image(ImageSource(Path()).read(value)))
        return value.removeprefix("file://")

    async def _ask(self, sample: Sample, dataset: str) -> JudgedSession[Any]:
        asked: JudgedSession[Any] = await self._backend.ask(sample, sample.id)
        await self._files.add(dataset, asked, ScoredTrajectory(trajectory=asked.trajectory, reward=None))
        return asked

    async def _close_backend(self) -> None:
        try:
            await self._files.flush()
        finally:
            await self._stack.aclose()


def _guess_part(value: str) -> Part:
    """Return a text of a list as a part: an image where the text is a data URL or names an image file."""
    kind = mimetypes.guess_type(value)[0] or ("image/webp" if value.lower().endswith(".webp") else "")
    is_file = kind.startswith("image/") and os.path.isfile(value.removeprefix("file://"))
    return {"type": "image" if is_file or value.startswith("data:image/") else "text", "value": value}


def _last_number(folder: Path | None) -> int:
    """Return the highest number in the ids of a folder's sessions; 0 without any."""
    files = () if folder is None else folder.glob("*.parquet")
    ids = (light["sample_id"] for file in files for light in trajectory_file.read_summaries(file))
    return max((int(number) for number in (id_.rpartition("/")[2] for id_ in ids) if number.isdecimal()), default=0)


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
        folder: where the sessions are written, after those of earlier runs.
        tool_files: instead of those of the configuration.
        config: limits of a session, tools and the template.
    """
    out = Path(folder)
    overrides = [f"model.path={processor}", f"run.name={out.name}", f"run.root={out.parent}"]
    if tool_files is not None:
        overrides.append(list_override("tools.files", *tool_files))
    loaded = load(TrainConfig, config, overrides)
    template = server_template(loaded)
    server = Server(url=url, model=served_model, api_key=api_key, concurrency=concurrency)
    return AgentModel(
        server_backend(loaded, template, server), tools=list(template.schemas), earlier=trajectories_folder(loaded)
    )
