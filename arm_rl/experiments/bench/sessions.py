"""The sessions of the benchmarks: their sizes, data and limits, and a judge that is taught to run them.

The judge is made once, from fresh weights, in about a minute: it zooms in its first turn and answers in its second.
"""

import asyncio
import contextlib
import io
import json
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from arm_rl.core import session
from arm_rl.core.config import SessionConfig
from arm_rl.core.config_file import list_override, load
from arm_rl.core.session import Completion, Policy, PolicyRequest
from arm_rl.core.stage_config import SftConfig, TrainConfig
from arm_rl.core.template import Template
from arm_rl.core.types import Sample
from arm_rl.data.demonstrations import write_demonstrations
from arm_rl.data.samples import read_samples
from arm_rl.demo import dataset, model, scenes
from arm_rl.experiments.bench.benchmark import Workspace
from arm_rl.experiments.bench.trl_task import TOOL, copy_judge, enlarge_images
from arm_rl.training.inputs import read_template
from arm_rl.training.sft import train_sft
from tools import load_tools
from tools.execution.local import LocalTools

logger = logging.getLogger(__name__)

CONFIG, SFT_CONFIG = "configs/demo.yaml", "configs/demo_sft.yaml"
TURN_TOKENS = 32  # a call has 15, an answer 8
SURE_OF = tuple(scenes.COLORS)[
    :2
]  # questions that the judge always answers alike: half of the groups are zero-variance


@dataclass(frozen=True, kw_only=True)
class StepShape:
    """What one GRPO step consists of."""

    name: str  # of its judge's folder and its data file
    num_samples: int = 16  # of a step
    group_size: int = 8
    image_side: int | None = None  # pixels of the prompts' images; None: as the demo has them, shown with 16 tokens
    prompt_tokens: int = 64  # at most
    observation_tokens: int = 32  # at most
    trl_micro_batch: int = 128  # trajectories
    micro_batch_tokens: int = 16384
    num_rows: int = 160  # of the data


SMALL_IMAGES = StepShape(name="vs_trl")
LARGE_IMAGES = StepShape(
    name="vs_trl_images",
    num_samples=2,
    group_size=16,
    image_side=512,
    prompt_tokens=1088,
    observation_tokens=80,
    trl_micro_batch=32,
    num_rows=16,
)


def demo_config(workspace: Workspace, model_folder: Path, *overrides: str, num_samples: int) -> TrainConfig:
    """Write questions of the demo and return the demo's configuration of a judge that trains on them."""
    data = dataset.write(workspace.temporary / "train.parquet", seed=0, split="train", num_samples=num_samples)
    files = [f"model.path={model_folder}", list_override("data.train", data), "data.held_out=[]"]
    return load(TrainConfig, CONFIG, [f"run.root={workspace.temporary}", *files, *overrides])


def write_data(path: Path, shape: StepShape, *, seed: int, number: int) -> Path:
    """Write questions of the demo, with images as large as the shape says."""
    dataset.write(path, seed=seed, split="train", num_samples=number)
    if shape.image_side is not None:
        enlarge_images(path, shape.image_side)
    return path


def judge(workspace: Workspace, shape: StepShape = SMALL_IMAGES, seed: int = 0) -> Path:
    """Return the folder of a judge that calls its tool; teach the judge from fresh weights if it was not kept.

    A judge of large images is taught on small ones first. Needs a Ray cluster.
    """
    folder = workspace.kept / "trl" / "judges"
    small = _taught(
        SMALL_IMAGES, folder, lambda base: model.build(base, seed), seed=seed, number=768, epochs=5, batch=32
    )
    if shape.image_side is None:
        return small
    view = (model.VIEW**2, shape.image_side**2)
    return _taught(
        shape, folder, lambda base: copy_judge(small, base, view=view), seed=seed, number=24, epochs=10, batch=8
    )


def _taught(
    shape: StepShape, folder: Path, make: Callable[[Path], Path], *, seed: int, number: int, epochs: int, batch: int
) -> Path:
    """Return the export of a short cold start on sessions that all zoom once, so that all later sessions are equally long."""
    root = folder / shape.name
    export = root / "sft" / "export"
    if (export / "config.json").is_file():
        return export
    logger.info("teaching the judge of %s to call its tool (about a minute, once)", shape.name)
    base = make(root / "base")
    data = write_data(root / "lessons.parquet", shape, seed=seed + 1, number=number)
    config = load(
        SftConfig,
        SFT_CONFIG,
        [
            f"run.root={root}",
            f"run.seed={seed}",
            f"model.path={base}",
            list_override("data.train", root / "demonstrations.parquet"),
            f"num_epochs={epochs}",
            f"batch_size={batch}",
            f"learner.micro_batch_tokens={shape.micro_batch_tokens}",
            "learner.learning_rate=1.0e-3",
            "learner.schedule=cosine",
            "learner.freeze_vision=true",
            "learner.freeze_projector=true",
            "metrics.wandb=disabled",
        ],
    )
    write_demonstrations(Path(config.data.train[0]), asyncio.run(_demonstrations(config, data, shape, seed)))
    with contextlib.redirect_stdout(io.StringIO()):  # a line a step is no news here
        asyncio.run(train_sft(config))
    return export


async def _demonstrations(
    config: SftConfig, data: Path, shape: StepShape, seed: int
) -> list[tuple[Sample, session.Session]]:
    template, tools = read_template(config), LocalTools(load_tools(config.tools.files))
    rng = random.Random(seed)
    return [
        (
            sample,
            await session.run(sample, _says(_turns(sample, rng), template), tools, limits(shape), template=template),
        )
        for sample in read_samples([str(data)], [TOOL])
    ]


def _turns(sample: Sample, rng: random.Random) -> tuple[str, str]:
    """Return a zoom into any cell, and an answer: at random, but always the same about half of the colours."""
    box = list(scenes.cell_box(rng.randrange(scenes.GRID), rng.randrange(scenes.GRID)))
    call = json.dumps({"name": TOOL, "arguments": {"image": "original_image", "bbox_2d": box}})
    sure = any(color in sample.messages[-1].text for color in SURE_OF)
    answer = 1 if sure else rng.randint(1, 2)
    return (
        f"<think>look closer</think><tool_call>{call}</tool_call>",
        f"<think>unclear</think><answer>Overall Judgment: Answer {answer} is better.</answer>",
    )


def _says(turns: Sequence[str], template: Template) -> Policy:
    """Return a policy that says these turns, the last one with its end token."""

    async def speak(request: PolicyRequest) -> Completion:
        number = sum(message.role == "assistant" for message in request.messages)
        ids = template.turn_ids(turns[number], ended=number == len(turns) - 1)
        return Completion(token_ids=ids, logprobs=(), text=turns[number], finish_reason="stop")

    return speak


def limits(shape: StepShape) -> SessionConfig:
    """Return the limits of a session of two turns: a call and an answer."""
    return SessionConfig(
        max_turns=2,
        max_prompt_tokens=shape.prompt_tokens,
        max_response_tokens=2 * TURN_TOKENS + shape.observation_tokens,
        last_turn_notice=load(TrainConfig, CONFIG).session.last_turn_notice,
    )
