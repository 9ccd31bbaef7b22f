"""How a judge is asked: the tools, the prompt, the wording and the limits that it was trained with, as they lie beside its weights."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from arm_rl.core.config import ModelConfig, SessionConfig, TemplateConfig
from arm_rl.core.config_file import load_saved
from arm_rl.core.stage_config import SftConfig, TrainConfig
from arm_rl.core.template import Template
from tools import load_tools
from tools.base import Tool

FILE = "arm_rl.yaml"  # in an exported folder: the run's configuration


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeSetup:
    """What a judge has to be given beside its model."""

    tools: tuple[str, ...] = ()  # tool files
    template: TemplateConfig = field(default_factory=TemplateConfig)
    limits: SessionConfig = field(default_factory=SessionConfig)
    max_model_len: int | None = None  # tokens of a session at most; by default the model's own limit
    # as it was trained, for the sizes of its views; its path is that of the model it began with
    model: ModelConfig | None = None

    @classmethod
    def from_config(cls, config: TrainConfig | SftConfig) -> "JudgeSetup":
        """Return the setup of a training configuration."""
        made = cls(tools=config.tools.files, template=config.template, model=config.model)
        if isinstance(config, SftConfig):  # which runs no sessions
            return made
        return replace(made, limits=config.session, max_model_len=config.rollout.max_model_len)

    @classmethod
    def read(cls, folder: str | Path, config: str | Path | None = None) -> "JudgeSetup":
        """From a configuration, by default the one in the model's folder; without any, the usual setup without tools."""
        file = Path(config or Path(folder) / FILE)
        return cls.from_config(load_saved(file)) if config or file.is_file() else cls()

    def with_changes(self, **changes: Any) -> "JudgeSetup":
        """Return a copy with the changes; None changes nothing."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    def load_tools_and_template(self, folder: str | Path) -> tuple[dict[str, Tool], Template]:
        """Load the tools, and the template, with their schemas, of the model in a folder or on the hub."""
        loaded = load_tools(self.tools)
        schemas = {name: tool.schema for name, tool in loaded.items()}
        model = replace(self.model, path=str(folder)) if self.model else ModelConfig(path=str(folder))
        return loaded, Template.load(model, self.template, schemas)
