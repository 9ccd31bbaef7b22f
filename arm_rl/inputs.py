"""Everything that a stage reads: checked before an actor starts."""

from dataclasses import dataclass

from arm_rl import model_folder
from arm_rl.core.config import ConfigError, SftConfig, TrainConfig
from arm_rl.core.template import Template
from arm_rl.core.types import Sample
from arm_rl.data import read_samples
from arm_rl.stored import Stored
from rewards import REWARDS
from tools import load_tools


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """The samples, and the template of the model that judges them."""

    samples: Stored[Sample]
    held_out: Stored[Sample]
    template: Template


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
    samples, held_out = (
        read_samples(files, list(template.schemas), config.data, template=template, max_prompt_tokens=config.session.max_prompt_tokens)
        for files in (config.data.train, config.data.held_out)
    )
    return Inputs(samples=samples, held_out=held_out, template=template)
