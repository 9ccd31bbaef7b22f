"""The think-act-observe loop: the only place that loops over turns, for training, evaluation, the judge and the teacher alike.

    prompt -> policy -> a call?  yes -> tool -> observation -> policy -> ...
                                 no  -> the session is over

The policy and the tools are two async callables; the tools are also told when a session is over. The loop keeps the memory of images
and texts, the limits and the tokens; what the policy sampled goes into the trajectory as it is.
"""

import time
import traceback
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from arm_rl.core import images
from arm_rl.core.config import SessionConfig
from arm_rl.core.errors import UserError
from arm_rl.core.images import Image, ImageError
from arm_rl.core.parsing import break_tags, replace_surrogates
from arm_rl.core.types import (
    End,
    FinishReason,
    ImageInfo,
    ImagePart,
    Message,
    Sample,
    ToolCall,
    ToolEvent,
    ToolStatus,
    Trajectory,
    Turn,
)

if TYPE_CHECKING:  # the template brings transformers along, which tools and scorers do without
    from arm_rl.core.template import Template


class PromptTooLong(UserError):
    """A prompt of more tokens than a session may have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyRequest:
    """What the policy is asked to continue, as tokens and as messages: an engine reads the one, a remote server the other."""

    prompt_ids: tuple[int, ...]  # the context so far, images expanded
    messages: tuple[Message, ...]  # the same, as messages
    images: tuple[Image, ...]  # in the order of their pads
    tools: tuple[str, ...]  # offered in this session
    allow_call: bool  # False: the turn must answer
    max_tokens: int  # to sample at most
    seed: int  # of this turn


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """What the policy sampled."""

    token_ids: tuple[int, ...]  # T ids, the end token kept; empty where a remote server does not tell
    logprobs: tuple[float, ...]  # T, under the distribution they were sampled from; empty where unknown
    text: str  # decoded, tags kept, end token left out
    finish_reason: FinishReason
    policy_version: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolResult:
    """What a tool gave back. Whatever went wrong is in `status`, with a text for the policy."""

    status: ToolStatus
    text: str
    images: tuple[Image, ...] = ()


@dataclass(slots=True)
class Memory:
    """The images and texts of one session by name; tools take these names, so that a later call can use an earlier observation."""

    session: str = field(default_factory=lambda: uuid.uuid4().hex)  # tells the session from all others, while it runs
    images: dict[str, Image] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, sample: Sample) -> "Memory":
        """The sample's own images and candidate answers."""
        names = [name for message in sample.messages for name in message.image_names]
        return cls.from_images(
            {name: images.load(ref) for name, ref in zip(names, sample.images, strict=True)}, sample.texts
        )

    @classmethod
    def from_images(cls, images: Mapping[str, Image], texts: Sequence[str]) -> "Memory":
        """Return a memory with these images by name and these candidate answers."""
        return cls(images=dict(images), texts={f"text_{number}": text for number, text in enumerate(texts)})

    def add_observation(self, image: Image) -> str:
        """Keeps a tool's image and gives its name."""
        name = f"observation_{sum(known.startswith('observation_') for known in self.images) + 1}"
        self.images[name] = image
        return name


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """What the sessions of a sample begin with."""

    memory: Memory  # to be copied
    messages: tuple[Message, ...]  # of the prompt
    prompt_ids: tuple[int, ...]  # the same, images expanded

    @classmethod
    def of(cls, sample: Sample, template: "Template") -> "Start":
        """Read the images and write the prompt. Raises as `from_memory`."""
        return cls.from_memory(sample, template, Memory.of(sample))

    @classmethod
    def from_memory(cls, sample: Sample, template: "Template", memory: Memory) -> "Start":
        """Write the prompt of a sample whose images and texts are in `memory`.

        Raises:
            ImageError: If an image cannot be shown to a model.
            TemplateError: If the conversation cannot be written as tokens.
        """
        for name, image in memory.images.items():
            try:
                images.check(image.data)
            except ImageError as error:
                raise ImageError(f"{name}: {error}") from error
        return cls(
            memory=memory, messages=template.conversation(sample), prompt_ids=template.prompt_ids(sample, memory.images)
        )

    def require_fit(self, limits: SessionConfig) -> None:
        """Raise PromptTooLong if the prompt has more tokens than a session may have."""
        if len(self.prompt_ids) > limits.max_prompt_tokens:
            raise PromptTooLong(
                f"the prompt has {len(self.prompt_ids)} tokens, session.max_prompt_tokens is {limits.max_prompt_tokens}"
            )


Policy = Callable[[PolicyRequest], Awaitable[Completion]]


class Tools(Protocol):
    """The tools of sessions: runs their calls, and is told when one of them is over."""

    async def __call__(self, call: ToolCall, memory: Memory) -> ToolResult:
        """Runs a call. Whatever comes of it is the result."""
        ...

    async def release(self, memory: Memory) -> None:
        """Forgets the session; no call of it follows."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """A finished session: the trajectory, and the images that it names by key."""

    trajectory: Trajectory
    messages: tuple[Message, ...]  # what followed the prompt: turns and observations
    images: dict[str, Image]  # by content key


async def run(
    sample: Sample,
    policy: Policy,
    tools: Tools,
    limits: SessionConfig,
    *,
    template: "Template",
    seed: int = 0,
    group_id: str = "",
    index: int = 0,
    start: Callable[[], Start] | None = None,
) -> Session:
    """Runs one session to its end.

    What the policy writes and what tools answer never raises. Anything else that goes wrong ends the session as `aborted`, with the
    traceback; it is the caller's to stop a run in which that happens too often.

    Args:
        start: gives what the session begins with, where many of the sample are run: read and written once. It may raise.
    """
    loop = _Loop(sample, policy, tools, limits, template, seed, start or (lambda: Start.of(sample, template)))
    started = time.perf_counter()
    error = None
    try:
        end = await loop.run()
    except Exception as raised:  # the session's catch point: recorded, counted, and stopped by the driver past a limit
        end, error = "aborted", traceback.format_exc()
        if isinstance(raised, ImageError):
            error = f"an image of the sample {sample.id}: {', '.join(map(str, sample.images))}\n{error}"
        elif isinstance(raised, PromptTooLong):
            error = f"the sample {sample.id}:\n{error}"
    finally:  # where the session is cancelled too
        await tools.release(loop.memory)
    trajectory = Trajectory(
        sample_id=sample.id,
        track=sample.track,
        group_id=group_id or sample.id,
        index=index,
        prompt_ids=loop.prompt_ids,
        turns=tuple(loop.turns),
        images=tuple(ImageInfo(name=name, key=loop.memory.images[name].key) for name in loop.image_names),
        end=end,
        error=error,
        seconds=time.perf_counter() - started,
    )
    return Session(
        trajectory=trajectory,
        messages=tuple(loop.messages[loop.prompt_length :]),
        images={image.key: image for image in loop.memory.images.values()},
    )


class _Loop:
    """The state of a running session."""

    def __init__(
        self,
        sample: Sample,
        policy: Policy,
        tools: Tools,
        limits: SessionConfig,
        template: "Template",
        seed: int,
        start: Callable[[], Start],
    ) -> None:
        self.sample, self.policy, self.tools, self.limits, self.template, self.seed = (
            sample,
            policy,
            tools,
            limits,
            template,
            seed,
        )
        self.start = start
        self.memory = Memory()
        self.prompt_ids: tuple[int, ...] = ()
        self.turns: list[Turn] = []
        self.image_names: list[str] = []  # names of the images in the context
        self.messages: list[Message] = []
        self.prompt_length = 0  # messages of the prompt
        self.context: list[int] = []

    async def run(self) -> End:
        start = self.start()
        self.memory = Memory(images=dict(start.memory.images), texts=dict(start.memory.texts))
        self.prompt_ids = start.prompt_ids
        start.require_fit(self.limits)
        self.messages = list(start.messages)
        self.prompt_length = len(self.messages)
        self.image_names = [name for message in self.messages for name in message.image_names]
        self.context = list(self.prompt_ids)
        while True:
            allow_call = self._allows_call(len(self.turns))
            completion = await self._ask(allow_call)
            call = self.template.tool_format.parse(completion.text)
            if call is None or not allow_call:
                self._record(completion, allow_call)
                return self._end(completion, refused_call=call is not None)
            event, observation = await self._act(call)
            ids = self._observation_ids(completion, observation)
            if len(completion.token_ids) + len(ids) >= self._tokens_left:
                self._record(completion, allow_call, event)
                return "length"
            self._record(completion, allow_call, event, ids)
            self.messages.append(observation)
            self.image_names += observation.image_names

    def _allows_call(self, turn: int) -> bool:
        return bool(self.sample.tools) and turn < self.limits.max_turns - 1

    @property
    def _tokens_left(self) -> int:
        return self.limits.max_response_tokens - (len(self.context) - len(self.prompt_ids))

    async def _ask(self, allow_call: bool) -> Completion:
        completion = await self.policy(
            PolicyRequest(
                prompt_ids=tuple(self.context),
                messages=tuple(self.messages),
                images=tuple(self.memory.images[name] for name in self.image_names),
                tools=self.sample.tools,
                allow_call=allow_call,
                max_tokens=self._tokens_left,
                seed=self.seed + len(self.turns),
            )
        )
        if self.sample.prefill and not self.turns:
            return replace(completion, text=self.sample.prefill + completion.text)
        return completion

    async def _act(self, call: ToolCall) -> tuple[ToolEvent, Message]:
        """Runs the call; the event is the evidence, the message is what the policy sees of it."""
        started = time.perf_counter()
        if call.error is not None:
            result = ToolResult(status="bad_arguments", text=f"Error: {call.error}")
        elif call.name not in self.sample.tools:
            result = ToolResult(
                status="unknown_tool",
                text=f"Error: there is no tool {call.name!r}; offered: {', '.join(self.sample.tools)}",
            )
        else:
            result = self._check_images(await self.tools(call, self.memory))
        names = tuple(self.memory.add_observation(image) for image in result.images)
        event = ToolEvent(
            call=call,
            status=result.status,
            text=_cut_middle(break_tags(replace_surrogates(result.text)), self.limits.max_tool_response_chars),
            image_names=names,
            seconds=time.perf_counter() - started,
        )
        notice = None if self._allows_call(len(self.turns) + 1) else self.limits.last_turn_notice
        return event, observation(event, notice)

    def _check_images(self, result: ToolResult) -> ToolResult:
        """Return the result, or a failed one if the policy cannot be shown its images."""
        try:
            for image in result.images:
                images.check(image.data)
        except ImageError as error:
            return ToolResult(status="failed", text=f"Error: the tool gave an image that cannot be shown: {error}")
        return result

    def _observation_ids(self, completion: Completion, observation: Message) -> tuple[int, ...]:
        ended = bool(completion.token_ids) and completion.token_ids[-1] == self.template.end_token_id
        return self.template.observation_ids(observation, self.memory.images, turn_ended=ended)

    def _record(
        self,
        completion: Completion,
        allow_call: bool,
        event: ToolEvent | None = None,
        observation_ids: tuple[int, ...] = (),
    ) -> None:
        """Adds the turn to the trajectory and to the context."""
        self.turns.append(
            Turn(
                token_ids=completion.token_ids,
                logprobs=completion.logprobs,
                text=completion.text,
                finish_reason=completion.finish_reason,
                tool_events=(event,) if event is not None else (),
                observation_ids=observation_ids,
                call_forbidden=not allow_call,
                policy_version=completion.policy_version,
            )
        )
        self.context += completion.token_ids + observation_ids
        self.messages.append(Message(role="assistant", parts=(completion.text,)))

    @staticmethod
    def _end(completion: Completion, *, refused_call: bool) -> End:
        if completion.finish_reason == "abort":
            raise RuntimeError("the engine aborted the request")
        if refused_call:
            return "turn_limit"
        return "length" if completion.finish_reason == "length" else "answered"


def observation(event: ToolEvent, notice: str | None) -> Message:
    """What the policy sees of a call. `notice` is added before a turn that must answer."""
    parts: list[str | ImagePart] = []
    for name in event.image_names:
        parts += [f"{name}: ", ImagePart(name=name)]
    lines = [*([event.text] if event.text else []), *([notice] if notice is not None else [])]
    return Message(role="tool", parts=(*parts, "\n".join(lines)))


def _cut_middle(text: str, limit: int) -> str:
    """At most `limit` characters, the middle left out and said so."""
    if len(text) <= limit:
        return text
    mark = "...(truncated)..."
    head = (limit - len(mark)) // 2
    return text[:head] + mark + text[len(text) - (limit - len(mark) - head) :]
