"""Messages and images to token ids, with the model's own tokenizer and chat template. The only place where text becomes tokens."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jinja2

from arm_rl.core.config import ModelConfig, TemplateConfig
from arm_rl.core.errors import UserError
from arm_rl.core.images import Image
from arm_rl.core.parsing import TOOL_FORMATS, ToolFormat
from arm_rl.core.resize import ViewSize
from arm_rl.core.text_file import EncodingError, read_text
from arm_rl.core.types import ImagePart, Message, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_VISION_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")  # in config.json
_TURN_MARK = "ASSISTANT_TURN"  # stands for the policy's own tokens while what follows them is rendered


class TemplateError(UserError):
    """A conversation that cannot be written as tokens, or a model folder that gives no template."""


class Template:
    """Writes prompts and observations as token ids, images expanded: one pad id for each image token."""

    def __init__(
        self,
        *,
        tokenizer: "PreTrainedTokenizerBase",
        chat_template: str,
        view: ViewSize,
        image_pad_id: int,
        never_sampled_ids: Sequence[int],
        tool_format: ToolFormat,
        system_prompt: str,
        schemas: Mapping[str, dict[str, Any]],
    ) -> None:
        self.tokenizer = tokenizer
        self.view = view
        self.image_pad_id = image_pad_id
        self.never_sampled_ids = tuple(never_sampled_ids)
        self.tool_format = tool_format
        self.schemas = dict(schemas)
        self._chat_template = chat_template
        self._system_prompt = system_prompt
        self._special_tokens = sorted(
            (token.content for token in tokenizer.added_tokens_decoder.values() if token.special), key=len, reverse=True
        )
        probe = [{"role": "user", "content": "?"}, {"role": "tool", "content": "seen"}]
        schema = {"type": "function", "function": {"name": "probe_of_tools", "description": "", "parameters": {}}}
        self._shows_tools = "probe_of_tools" in self._render(probe, [schema], False)
        self._wraps_responses = "<tool_response>" in self._render(probe, None, False)

    @classmethod
    def load(cls, model: ModelConfig, template: TemplateConfig, schemas: Mapping[str, dict[str, Any]]) -> "Template":
        """Reads tokenizer, chat template and image sizes from the model's folder.

        Raises:
            TemplateError: a part is missing; the message names it.
        """
        if template.tool_format not in TOOL_FORMATS:
            raise TemplateError(f"template.tool_format: one of {sorted(TOOL_FORMATS)}, not {template.tool_format!r}")
        try:
            system_prompt = read_text(template.system_prompt).strip()
        except OSError as error:
            raise TemplateError(f"template.system_prompt: {template.system_prompt}: {error.strerror}") from error
        except EncodingError as error:
            raise TemplateError(f"template.system_prompt: {error}") from error
        processor, config = _read_folder(model.path)
        chat_template = processor.chat_template or processor.tokenizer.chat_template
        if not chat_template:
            raise TemplateError(f"model.path: {model.path} has no chat template")
        sizes = processor.image_processor
        try:
            loaded = cls(
                tokenizer=processor.tokenizer,
                chat_template=chat_template,
                view=ViewSize(
                    factor=sizes.patch_size * sizes.merge_size,
                    min_pixels=model.min_pixels or sizes.size["shortest_edge"],
                    max_pixels=model.max_pixels or sizes.size["longest_edge"],
                ),
                image_pad_id=config.image_token_id,
                never_sampled_ids=[getattr(config, name) for name in _VISION_IDS],
                tool_format=TOOL_FORMATS[template.tool_format],
                system_prompt=system_prompt,
                schemas=schemas,
            )
            loaded._check_chat_template()
        except TemplateError as error:
            raise TemplateError(f"model.path: {model.path}: {error}") from error
        return loaded

    def _check_chat_template(self) -> None:
        """Whether it shows images and ends turns with the tokens that the rest of this class counts on."""
        shown = self._render([{"role": "user", "content": [{"type": "image"}]}], None, True)
        if self.tokenizer.encode(shown, add_special_tokens=False).count(self.image_pad_id) != 1:
            pad = self.tokenizer.convert_ids_to_tokens(self.image_pad_id)
            raise TemplateError(f"the chat template does not write an image as one {pad!r}")
        said = self._render(
            [{"role": "user", "content": "?"}, {"role": "assistant", "content": _TURN_MARK}], None, False
        )
        if not said.partition(_TURN_MARK)[2].startswith(self.end_token):
            raise TemplateError(
                f"the chat template does not end a turn with {self.end_token!r}, the tokenizer's eos_token"
            )

    @functools.cached_property
    def call_token_id(self) -> int | None:
        """The token that starts a call; None where the tokenizer has no single one, so that it cannot be forbidden."""
        ids = self.tokenizer.encode(self.tool_format.call_start, add_special_tokens=False)
        return ids[0] if len(ids) == 1 else None

    def conversation(self, sample: Sample) -> tuple[Message, ...]:
        """The sample's messages under the system prompt, with the tools' section where the chat template does not write it."""
        messages = sample.messages
        if not messages or messages[0].role != "system":
            messages = (Message(role="system", parts=(self._system_prompt,)), *messages)
        if sample.tools and not self._shows_tools:
            section = self.tool_format.section(self.offered_schemas(sample))
            messages = (replace(messages[0], parts=(*messages[0].parts, section)), *messages[1:])
        return messages

    def offered_schemas(self, sample: Sample) -> list[dict[str, Any]]:
        """Return the schemas of the tools that the sample offers.

        Raises:
            TemplateError: a tool that no tool file lists.
        """
        unknown = [name for name in sample.tools if name not in self.schemas]
        if unknown:
            raise TemplateError(
                f"sample {sample.id} offers {unknown[0]!r}, which no file of tools.files lists ({sorted(self.schemas)})"
            )
        return [self.schemas[name] for name in sample.tools]

    def prompt_ids(self, sample: Sample, images: Mapping[str, Image]) -> tuple[int, ...]:
        """Token ids of the conversation up to where the policy begins: after the sample's prefill."""
        messages = self.conversation(sample)
        schemas = self.offered_schemas(sample) if sample.tools and self._shows_tools else None
        text = self._render([self._as_dict(message) for message in messages], schemas, True)
        ids = self._encode(text, [images[name] for message in messages for name in message.image_names])
        return ids + self.turn_ids(sample.prefill, ended=False) if sample.prefill else ids

    def observation_ids(
        self, observation: Message, images: Mapping[str, Image], *, turn_ended: bool
    ) -> tuple[int, ...]:
        """Token ids between a turn of the policy and its next one.

        Args:
            observation: a message of role `tool`.
            images: the session's images by name.
            turn_ended: the policy sampled its end token itself, so that it must not be written again.
        """
        history = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _TURN_MARK}]
        text = self._render([*history, self._as_dict(observation)], None, True)
        text = text.split(_TURN_MARK, 1)[1]
        if turn_ended:
            text = text.removeprefix(self.end_token)
        return self._encode(text, [images[name] for name in observation.image_names])

    @property
    def end_token(self) -> str:
        """The text of the token that ends a turn."""
        return str(self.tokenizer.eos_token)

    @property
    def end_token_id(self) -> int:
        """The id of the token that ends a turn."""
        return int(self.tokenizer.eos_token_id)

    def turn_ids(self, text: str, *, ended: bool) -> tuple[int, ...]:
        """Token ids of a teacher's turn, for the cold start; with the end token where the turn does not stop at a call."""
        return tuple(
            self.tokenizer.encode(
                self.break_control_tokens(text) + (self.end_token if ended else ""), add_special_tokens=False
            )
        )

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of a turn: tags kept, the end token left out."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=False).removesuffix(self.end_token)

    def _render(self, messages: list[dict[str, Any]], schemas: list[dict[str, Any]] | None, open_turn: bool) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                tools=schemas,
                chat_template=self._chat_template,
                add_generation_prompt=open_turn,
                tokenize=False,
            )
        except jinja2.TemplateError as error:  # broken itself, or it refuses the conversation
            raise TemplateError(f"the chat template fails with messages of {_list_roles(messages)}: {error}") from error
        return str(text)

    def _as_dict(self, message: Message) -> dict[str, Any]:
        role, parts = message.role, message.parts
        if role == "tool" and not self._wraps_responses:
            role, parts = "user", (self.tool_format.response_start, *parts, self.tool_format.response_end)
        content = [
            {"type": "image"}
            if isinstance(part, ImagePart)
            else {"type": "text", "text": self.break_control_tokens(part)}
            for part in parts
        ]
        return {"role": role, "content": content}

    def break_control_tokens(self, text: str) -> str:
        """Break control tokens in a text of data, tools and teachers by a space after their first character."""
        for token in self._special_tokens:
            if token in text:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def _encode(self, text: str, images: Sequence[Image]) -> tuple[int, ...]:
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if ids.count(self.image_pad_id) != len(images):
            raise TemplateError(
                f"the chat template wrote {ids.count(self.image_pad_id)} image tokens for {len(images)} images"
            )
        sizes = iter(images)
        return tuple(
            itertools.chain.from_iterable(
                itertools.repeat(id_, self.view.num_tokens(*next(sizes).size)) if id_ == self.image_pad_id else (id_,)
                for id_ in ids
            )
        )


def _list_roles(messages: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(message["role"] for message in messages)


def _read_folder(path: str) -> tuple[Any, Any]:
    """A model's processor and config, which must belong together.

    Raises:
        TemplateError: one of them is missing or broken, or they are of two models.
    """
    from transformers import AutoConfig, AutoProcessor  # imports torch: seconds that a wrong key does without

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)  # of a model folder nothing is run
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # what these raise for a broken file is not told
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise TemplateError(f"model.path: {path} has no usable processor or config: {reason}") from error
    tokenizer, sizes = getattr(processor, "tokenizer", None), getattr(processor, "image_processor", None)
    if tokenizer is None or not all(hasattr(sizes, name) for name in ("patch_size", "merge_size", "size")):
        raise TemplateError(
            f"model.path: {path} has a {type(processor).__name__}, which is no processor of tokenizer and images as Qwen2.5-VL has it"
        )
    special = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    for name in _VISION_IDS:
        if getattr(config, name, None) not in special:
            raise TemplateError(
                f"model.path: {path}: {name} of config.json is {getattr(config, name, None)}, which is no special token of the tokenizer: "
                "config and tokenizer must be those of one vision-language model"
            )
    if tokenizer.eos_token_id not in special:
        raise TemplateError(
            f"model.path: {path}: the tokenizer's eos_token is {tokenizer.eos_token!r}; the special token that ends a turn is needed"
        )
    size = config.get_text_config().vocab_size
    if len(tokenizer) > size:
        raise TemplateError(
            f"model.path: {path}: the tokenizer has {len(tokenizer)} tokens, and the model of config.json has {size}"
        )
    return processor, config
