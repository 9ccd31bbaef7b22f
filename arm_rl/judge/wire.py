"""Base of the messages that the judge's service takes: texts that no encoding can hold are repaired at the door."""

from typing import Any

from pydantic import BaseModel, model_validator

from arm_rl.core.parsing import repair_surrogates


class WireModel(BaseModel):
    """A message whose texts have a question mark for each lone surrogate, which JSON can hold and UTF-8 cannot."""

    @model_validator(mode="before")
    @classmethod
    def _repair_texts(cls, values: Any) -> Any:
        return repair_surrogates(values)
