"""Everything that a stage reads: checked before an actor starts."""

from dataclasses import dataclass

from arm_rl.core.config import ConfigError, SftConfig, TrainConfig
from arm_rl.core.template import Template
from arm_rl.core.types import Sample
from arm_rl.data import read_samples
from rewards import REWARDS
from tools import load_tools


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """The samples, and the template of the model that judges them."""

    samples: list[Sample]
    held_out: list[Sample]
    template: Template


def read_template(config: TrainConfig | SftConfig) -> Template:
    """The model's template, with the schemas of the tools that the configuration lists.

    Raises:
        UserError: a tool file or the model's folder cannot be used.
    """
    schemas = {name: tool.schema for name, tool in load_tools(config.tools.files).items()}
    return Template.load(config.model, config.template, schemas)


def read_inputs(config: TrainConfig) -> Inputs:
    """Reads data, tools and the model's template.

    Raises:
        UserError: something cannot be used; the message says what.
    """
    if config.reward.name not in REWARDS:
        raise ConfigError(f"reward.name: one of {sorted(REWARDS)}, not {config.reward.name!r}")
    template = read_template(config)
    samples = read_samples(config.data.train, list(template.schemas))
    held_out = read_samples(config.data.held_out, list(template.schemas)) if config.data.held_out else []
    for sample in (*samples, *held_out):
        template.offered(sample)
    return Inputs(samples=samples, held_out=held_out, template=template)
