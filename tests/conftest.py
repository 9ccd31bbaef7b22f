"""What holds for all tests: no deadlines, no GPU tests where there is none, and the demo's small judge, built once."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from arm_rl.core.template import Template

hypothesis.settings.register_profile("arm_rl", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("arm_rl")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if shutil.which("nvidia-smi") is None:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU"))


@pytest.fixture(scope="session")
def judge_folder(tmp_path_factory) -> Path:
    """The demo's judge, untrained, as a Hugging Face folder."""
    from arm_rl.digits import model  # brings torch and transformers, which most tests do without

    return model.build(tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="session")
def template(judge_folder) -> "Template":
    """The judge's template, with the demo's tools."""
    from arm_rl.core.config import ModelConfig, TemplateConfig
    from arm_rl.core.template import Template
    from tools import load_tools

    schemas = {name: tool.schema for name, tool in load_tools(["configs/tools/digits.yaml"]).items()}
    return Template.load(ModelConfig(path=str(judge_folder)), TemplateConfig(system_prompt="configs/prompts/digits.txt"), schemas)
