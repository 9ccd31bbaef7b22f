"""Base of the messages that the judge's service takes: texts that no encoding can hold are repaired at the door."""

import json
import re
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from arm_rl.core.errors import UserError
from arm_rl.core.parsing import repair_surrogates

MAX_ITEMS = 4096  # of a list in a message
MAX_STRUCTURE = (
    256 << 10
)  # bytes of a body outside its texts: each value costs far more memory and time than it has bytes
_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)  # of JSON; an open one ends with the body
Texts = Annotated[list[str], Field(max_length=MAX_ITEMS, fail_fast=True)]


class WireError(UserError):
    """A body that is not the message that was expected; the message names the first fault only."""


class WireModel(BaseModel):
    """A message whose texts have a question mark for each lone surrogate, which JSON can hold and UTF-8 cannot."""

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Return the message of a JSON body.

        Raises:
            WireError: If the body is not JSON, or not this message.
        """
        try:
            _check_structure(body)
            return cls.model_validate(json.loads(body))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise WireError(f"{place}: {first['msg']}" if place else first["msg"]) from None
        except (ValueError, RecursionError) as error:
            raise WireError(f"the body is not JSON: {error}") from None

    @model_validator(mode="before")
    @classmethod
    def _repair_texts(cls, values: Any) -> Any:
        """Repair the texts of the known keys and of their lists; nothing else is looked at, however much a body holds."""
        if not isinstance(values, dict):
            return values
        unknown = next((key for key in values if key not in cls.model_fields), None)
        if unknown is not None and cls.model_config.get("extra") == "forbid":
            raise ValueError(f"{unknown!a:.80}: Extra inputs are not permitted")
        return {key: _repair(values[key]) for key in cls.model_fields if key in values}


def _check_structure(body: bytes) -> None:
    """Raise WireError for a body of very many values, which Python would hold its lock to read, whichever thread asks."""
    outside = end = 0
    texts = _TEXT.finditer(body)
    while outside <= MAX_STRUCTURE and end < len(body):
        text = next(texts, None)
        start, stop = text.span() if text else (len(body), len(body))
        outside, end = outside + start - end + 1, stop  # at least a comma is due after a text
    if outside > MAX_STRUCTURE:
        raise WireError(f"the body has more than {MAX_STRUCTURE} bytes outside its texts")


def _repair(value: Any) -> Any:
    if isinstance(value, list):
        return value if len(value) > MAX_ITEMS else [_repair(one) if isinstance(one, str) else one for one in value]
    return repair_surrogates(value) if isinstance(value, str) else value
