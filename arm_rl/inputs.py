"""Everything that a stage reads: checked before an actor starts."""

from collections.abc import Mapping
from dataclasses import dataclass

from arm_rl import model_folder
from arm_rl.core.config import ConfigError, SftConfig, TrainConfig
from arm_rl.core.images import Image
from arm_rl.core.template import Template
from arm_rl.core.types import Sample
from arm_rl.data import Check, read_samples
from arm_rl.rows import BrokenRows, DataError
from rewards import REWARDS
from tools import load_tools


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """The samples, and the template of the model that judges them."""

    samples: list[Sample]
    held_out: list[Sample]
    template: Template
    num_skipped: int  # rows that were left out


def read_template(config: TrainConfig | SftConfig) -> Template:
    """The model's template, with the schemas of the tools that the configuration lists.

    Raises:
        UserError: a tool file or the model's folder cannot be used.
    """
    schemas = {name: tool.schema for name, tool in load_tools(config.tools.files).items()}
    model_folder.check_files(config.model.path)
    template = Template.load(config.model, config.template, schemas)
    model_folder.check_weights(config.model.path)
    return template


def read_inputs(config: TrainConfig) -> Inputs:
    """Reads data, tools and the model's template.

    Raises:
        UserError: something cannot be used; the message says what.
    """
    if config.reward.name not in REWARDS:
        raise ConfigError(f"reward.name: one of {sorted(REWARDS)}, not {config.reward.name!r}")
    template = read_template(config)
    tools, check = list(template.schemas), _fits(config, template)
    broken = [BrokenRows.of(config.data) for _ in range(2)]
    samples, held_out = (
        read_samples(files, tools, config.data, check=check, broken=counted) if files else []
        for files, counted in zip((config.data.train, config.data.held_out), broken, strict=True)
    )
    return Inputs(samples=samples, held_out=held_out, template=template, num_skipped=sum(counted.number for counted in broken))


def _fits(config: TrainConfig, template: Template) -> Check:
    """Whether a session can begin with a sample: the template takes it, and it is within the limits."""

    def check(sample: Sample, images: Mapping[str, Image]) -> None:
        limits = {
            "session.max_prompt_tokens": (config.session.max_prompt_tokens, len(template.prompt_ids(sample, images)), "tokens"),
            "rollout.max_images": (config.rollout.max_images, len(images), "images"),
        }
        for key, (limit, number, unit) in limits.items():
            if number > limit:
                raise DataError(f"the prompt has {number} {unit}, {key} is {limit}")

    return check
