"""What lies beside an exported model: a card that says what it is and how it is used, and the configuration to ask it with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from arm_rl.core.atomic_file import replace_text
from arm_rl.core.stage_config import SftConfig, TrainConfig
from arm_rl.export.judge_config import FILE, write_setup
from arm_rl.run.metrics_log import read_lines

_NUMBERS = {  # of the last evaluation and of the last step
    "evaluation/accuracy": "accuracy on held-out samples",
    "evaluation/accuracy_without_tools": "the same with tools forbidden",
    "evaluation/tool_calls": "tool calls a held-out sample",
    "evaluation/tool_rate": "held-out samples with a call",
    "evaluation/format": "held-out sessions in the right format",
    "evaluation/num_samples": "held-out samples",
    "reward/mean": "mean reward of the last step",
    "rollout/accuracy": "accuracy of the last step's rollouts",
    "tools/calls": "tool calls a rollout of the last step",
    "learner/loss": "loss of the last step",
}

_CARD = """\
---
{header}---

# {name}

A vision-language judge, trained with arm_rl: it thinks, calls tools, reads what comes back, and then judges answers to a question.
{stage}, {step} steps, from `{base}`.

## Numbers

{numbers}

## Use

Over HTTP, with the whole loop and its tools, as it was trained ({file} in this folder names tools, prompt, wording and limits):

    python -m jobs.serve {folder}

In Python:

    from arm_rl.judge.judge import Judge

    with Judge.load("{folder}") as judge:
        verdict = judge.compare(question, images, answers)

The bare model, whose calls the server parses (system prompt and tools are the client's to send; sample at temperature 0):

    vllm serve {folder} --enable-auto-tool-choice --tool-call-parser {parser}

## Data

{data}

## Configuration

```yaml
{config}```
"""


def write_card(config: TrainConfig | SftConfig, run: Path, folder: Path, step: int) -> None:
    """Writes the card (README.md), and the configuration with its tool files and prompts.

    Args:
        run: the run's folder, with its metrics.
        folder: of the exported model.
        step: after which its weights are.
    """
    write_setup(config, folder)
    base = config.model.path
    header: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["arm_rl", "reward-model"],
    }
    if not Path(base).exists():  # a name on the hub
        header["base_model"] = base
    stage = (
        "SupervisedActor cold start"
        if isinstance(config, SftConfig)
        else f"GRPO with the reward `{config.reward.name}`"
    )
    card = _CARD.format(
        header=OmegaConf.to_yaml(OmegaConf.create(header)),
        name=config.run.name,
        stage=stage,
        base=base,
        step=step,
        numbers=_format_table(_last_metrics(run / "metrics.jsonl", step)),
        file=FILE,
        folder=folder,
        parser=config.template.tool_format,
        data="\n".join(f"- {use}: {', '.join(files)}" for use, files in _data_files(config).items() if files),
        config=(folder / FILE).read_text(),
    )
    replace_text(folder / "README.md", card)


def _data_files(config: TrainConfig | SftConfig) -> dict[str, tuple[str, ...]]:
    return {"trained on": config.data.train, "held out": config.data.held_out, "tools": config.tools.files}


def _last_metrics(metrics: Path, step: int) -> dict[str, float]:
    """Return the newest metrics up to a step."""
    found: dict[str, float] = {}
    for line in read_lines(metrics):
        if line["step"] <= step:
            found |= {name: line[name] for name in _NUMBERS if line.get(name) is not None}
    return found


def _format_table(numbers: Mapping[str, float]) -> str:
    if not numbers:
        return "This run wrote none."
    rows = [f"| {label} | {numbers[name]:.4g} |" for name, label in _NUMBERS.items() if name in numbers]
    return "\n".join(["| | |", "| --- | --- |", *rows])
