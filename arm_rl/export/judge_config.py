"""How a judge is asked: the tools, the prompt, the wording and the limits that it was trained with, as they lie beside its weights.

An exported folder holds `arm_rl.yaml` and, in its folder `judge`, the tool files and prompts that this configuration names.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from arm_rl.core.atomic_file import replace_text
from arm_rl.core.config import ConfigError, ModelConfig, SessionConfig, TemplateConfig
from arm_rl.core.config_file import load_saved, save
from arm_rl.core.stage_config import SftConfig, TrainConfig
from arm_rl.core.template import Template
from arm_rl.core.text_file import read_text
from tools import load_tools, require_own_tools
from tools.base import Tool

FILE = "arm_rl.yaml"  # in an exported folder: the run's configuration
_COPIES = "judge"  # in an exported folder: the tool files and prompts
_PATH_KEYS = ("index", "models", "model", "cache", "cwd")  # of tool files
_CHECKOUT = Path(__file__).parents[2]  # which holds the files that TemplateConfig names by default


def write_setup(config: TrainConfig | SftConfig, folder: Path) -> None:
    """Write a run's configuration into an exported folder, with copies of the tool files and prompts that it names.

    Raises:
        ConfigError: If one of these files cannot be read.
    """
    copies: dict[str, str] = {}  # text by name

    def copy(key: str, file: str) -> str:
        try:
            text = read_text(file)
        except OSError as error:
            raise ConfigError(f"{key}: {file}: {error.strerror}: the export needs a copy of it") from error
        text, path, number = _anchor_paths(text) if key == "tools.files" else text, Path(file), 1
        name = path.name
        while copies.get(name, text) != text:
            number += 1
            name = f"{path.stem}-{number}{path.suffix}"
        copies[name] = text
        return f"{_COPIES}/{name}"

    template = replace(
        config.template,
        system_prompt=copy("template.system_prompt", config.template.system_prompt),
        question=copy("template.question", config.template.question),
    )
    tools = replace(config.tools, files=tuple(copy("tools.files", file) for file in config.tools.files))
    for name, text in copies.items():
        replace_text(folder / _COPIES / name, text)
    save(replace(config, template=template, tools=tools), folder / FILE)


def _anchor_paths(text: str) -> str:
    """Return a tool file whose relative paths of files and folders that exist are absolute; other texts stay as they are."""
    content = OmegaConf.to_container(OmegaConf.create(text))
    anchored = _anchor(content)
    return text if anchored == content else OmegaConf.to_yaml(OmegaConf.create(anchored))


def _anchor(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: one if name == "tool_schema" else _anchor(one, name) for name, one in value.items()}
    if isinstance(value, list):
        return [_anchor(one) for one in value]
    # a single word is a path only under a key that holds one: there may be a folder of a command's name
    is_path = isinstance(value, str) and (key in _PATH_KEYS or "/" in value or "." in value) and Path(value).exists()
    return str(Path(value).absolute()) if is_path else value


def _locate(file: str, *folders: Path) -> str:
    """Return the path of a file in the first folder that holds it; where none does, the path as it is."""
    return next((str(folder.absolute() / file) for folder in folders if (folder / file).is_file()), file)


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeSetup:
    """What a judge has to be given beside its model."""

    tools: tuple[str, ...] = ()  # tool files
    trusted: bool = True  # the tool files may run commands and import classes: the user named or trusted them
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
    def read(cls, folder: str | Path, config: str | Path | None = None, *, trust: bool = False) -> "JudgeSetup":
        """Return the setup of a configuration, by default of the one in the model's folder; without any, the usual one without tools.

        The model's folder is searched first for the files that its own configuration names.

        Args:
            folder: Model folder, or a name on the hub.
            config: Configuration that the user trusts.
            trust: Whether the tool files of the folder's own configuration may list more than the project's own tools.
        """
        folder = Path(folder)
        if config:
            return cls.from_config(load_saved(config))
        if not (folder / FILE).is_file():
            return cls()._with_located_files(Path(), _CHECKOUT)
        return replace(cls.from_config(load_saved(folder / FILE))._with_located_files(folder), trusted=trust)

    def _with_located_files(self, *folders: Path) -> "JudgeSetup":
        template = replace(
            self.template,
            system_prompt=_locate(self.template.system_prompt, *folders),
            question=_locate(self.template.question, *folders),
        )
        return replace(self, template=template, tools=tuple(_locate(file, *folders) for file in self.tools))

    def with_changes(self, **changes: Any) -> "JudgeSetup":
        """Return a copy with the changes; None changes nothing."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    def require_trusted_tools(self) -> None:
        """Raise ToolFileError if tool files that nobody trusts would run more than the project's own tools."""
        if not self.trusted:
            require_own_tools(self.tools)

    def load_tools_and_template(self, folder: str | Path) -> tuple[dict[str, Tool], Template]:
        """Load the tools, and the template, with their schemas, of the model in a folder or on the hub."""
        self.require_trusted_tools()
        loaded = load_tools(self.tools)
        schemas = {name: tool.schema for name, tool in loaded.items()}
        model = replace(self.model, path=str(folder)) if self.model else ModelConfig(path=str(folder))
        return loaded, Template.load(model, self.template, schemas)
