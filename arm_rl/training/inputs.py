"""Everything that a stage reads: checked before an actor starts."""

from collections.abc import Mapping
from dataclasses import dataclass

from arm_rl.core.config import ConfigError
from arm_rl.core.images import Image
from arm_rl.core.stage_config import SftConfig, TrainConfig
from arm_rl.core.template import Template
from arm_rl.core.types import Sample
from arm_rl.data.lazy_rows import LazyRows
from arm_rl.data.parquet_rows import BrokenRows, DataError, TooLong
from arm_rl.data.samples import Check, read_samples
from arm_rl.export import model_check
from rewards import REWARDS
from tools import load_tools


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """The samples, and the template of the model that judges them."""

    samples: LazyRows[Sample]
    held_out: LazyRows[Sample]
    template: Template
    left_out: dict[str, float]  # numbers of rows, as metrics


def read_template(config: TrainConfig | SftConfig) -> Template:
    """The model's template, with the schemas of the tools that the configuration lists.

    Raises:
        UserError: a tool file or the model's folder cannot be used.
    """
    schemas = {name: tool.schema for name, tool in load_tools(config.tools.files).items()}
    model_check.check_files(config.model.path)
    template = Template.load(config.model, config.template, schemas)
    model_check.check_weights(config.model.path)
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
        read_samples(files, tools, config.data, check=check, broken=counted)
        for files, counted in zip((config.data.train, config.data.held_out), broken, strict=True)
    )
    counts = {name: sum(one.metrics()[name] for one in broken) for name in broken[0].metrics()}
    return Inputs(samples=samples, held_out=held_out, template=template, left_out=counts)


def _fits(config: TrainConfig, template: Template) -> Check:
    """Whether a session can begin with a sample: the template takes it, and it is within the limits."""

    def check(sample: Sample, images: Mapping[str, Image]) -> None:
        if len(images) > config.rollout.max_images:
            raise DataError(f"the prompt has {len(images)} images, rollout.max_images is {config.rollout.max_images}")
        length, limit = len(template.prompt_ids(sample, images)), config.session.max_prompt_tokens
        if length > limit:
            raise TooLong(f"the prompt has {length} tokens, session.max_prompt_tokens is {limit}")

    return check
