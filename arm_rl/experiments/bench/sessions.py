"""The sessions of the benchmarks: their sizes, data and limits, and a judge that is taught to hold them.

The judge is made once, from fresh weights, in about a minute: it zooms in its first turn and answers in its second.
"""

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
from arm_rl.core.config_file import load
from arm_rl.core.session import Completion, Policy, PolicyRequest
from arm_rl.core.stage_config import SftConfig, TrainConfig
from arm_rl.core.template import Template
from arm_rl.core.types import Sample
from arm_rl.data.demonstrations import write_demonstrations
from arm_rl.data.samples import read_samples
from arm_rl.demo import dataset, model, scenes
from arm_rl.experiments.bench.trl_work import TOOL, copy_judge, enlarge_images
from arm_rl.training.inputs import read_template
from arm_rl.training.sft import train_sft
from tools import load_tools
from tools.execution.local import LocalTools

logger = logging.getLogger(__name__)

CONFIG, SFT_CONFIG = "configs/demo.yaml", "configs/demo_sft.yaml"
TURN_TOKENS = 32  # a call has 15, an answer 8
SURE_OF = tuple(scenes.COLORS)[:2]  # questions that the judge always answers alike: half of the groups are flat


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a benchmark's steps are made of."""

    key: str
    what: str
    goal: float
    num_samples: int = 16  # of a step
    group_size: int = 8
    image_side: int | None = None  # pixels of the prompts' images; None: as the demo has them, shown with 16 tokens
    prompt_tokens: int = 64  # at most
    observation_tokens: int = 32  # at most
    trl_micro_batch: int = 128  # trajectories
    micro_batch_tokens: int = 16384
    num_rows: int = 160  # of the data


SESSIONS = Size(
    key="vs_trl",
    what="trajectories a second of whole GRPO steps on the demo's sessions, against TRL's GRPOTrainer",
    goal=2.0,
)
IMAGES = Size(
    key="vs_trl_images",
    what="the same on groups of 16 that share a prompt image of 1,024 tokens",
    goal=5.0,
    num_samples=2,
    group_size=16,
    image_side=512,
    prompt_tokens=1088,
    observation_tokens=80,
    trl_micro_batch=32,
    num_rows=16,
)


def write_data(path: Path, size: Size, *, seed: int, number: int) -> Path:
    """The demo's questions, with images as large as the size says."""
    dataset.write(path, seed=seed, split="train", num_samples=number)
    if size.image_side is not None:
        enlarge_images(path, size.image_side)
    return path


async def judge(size: Size, folder: Path, seed: int = 0) -> Path:
    """A judge taught from fresh weights on the demo's sessions; where images are large, taught on these as well. Wants a Ray cluster."""
    small = await _taught(
        SESSIONS, folder, lambda base: model.build(base, seed), seed=seed, number=768, epochs=5, batch=32
    )
    if size.image_side is None:
        return small
    view = (model.VIEW**2, size.image_side**2)
    return await _taught(
        size, folder, lambda base: copy_judge(small, base, view=view), seed=seed, number=24, epochs=10, batch=8
    )


async def _taught(
    size: Size, folder: Path, make: Callable[[Path], Path], *, seed: int, number: int, epochs: int, batch: int
) -> Path:
    """The export of a short cold start on sessions that all zoom once: what is sampled then has the same length everywhere."""
    root = folder / size.key
    export = root / "sft" / "export"
    if (export / "config.json").is_file():
        return export
    logger.info("teaching the judge of %s to call its tool (about a minute, once)", size.key)
    base = make(root / "base")
    data = write_data(root / "lessons.parquet", size, seed=seed + 1, number=number)
    config = load(
        SftConfig,
        SFT_CONFIG,
        [
            f"run.root={root}",
            f"run.seed={seed}",
            f"model.path={base}",
            f"data.train=[{root / 'demonstrations.parquet'}]",
            f"num_epochs={epochs}",
            f"batch_size={batch}",
            f"learner.micro_batch_tokens={size.micro_batch_tokens}",
            "learner.learning_rate=1.0e-3",
            "learner.schedule=cosine",
            "learner.freeze_vision=true",
            "learner.freeze_projector=true",
            "metrics.wandb=disabled",
        ],
    )
    template = read_template(config)
    tools = LocalTools(load_tools(config.tools.files))
    held_to = limits(size)
    rng = random.Random(seed)
    samples = read_samples([str(data)], [TOOL])
    sessions = [
        (one, await session.run(one, _says(_turns(one, rng), template), tools, held_to, template=template))
        for one in samples
    ]
    write_demonstrations(Path(config.data.train[0]), sessions)
    with contextlib.redirect_stdout(io.StringIO()):  # a line a step is no news here
        await train_sft(config)
    return export


def _turns(sample: Sample, rng: random.Random) -> tuple[str, str]:
    """A zoom into any cell; then an answer at random, but for the questions about half of the colours."""
    box = list(scenes.cell_box(rng.randrange(scenes.GRID), rng.randrange(scenes.GRID)))
    call = json.dumps({"name": TOOL, "arguments": {"image": "original_image", "bbox_2d": box}})
    sure = any(color in sample.messages[-1].text for color in SURE_OF)
    answer = 1 if sure else rng.randint(1, 2)
    return (
        f"<think>look closer</think><tool_call>{call}</tool_call>",
        f"<think>unclear</think><answer>Overall Judgment: Answer {answer} is better.</answer>",
    )


def _says(turns: Sequence[str], template: Template) -> Policy:
    """A policy that says these turns, the last one with its end token."""

    async def speak(request: PolicyRequest) -> Completion:
        number = sum(message.role == "assistant" for message in request.messages)
        ids = template.turn_ids(turns[number], ended=number == len(turns) - 1)
        return Completion(token_ids=ids, logprobs=(), text=turns[number], finish_reason="stop")

    return speak


def limits(size: Size) -> SessionConfig:
    """Of a session: a turn that calls, and one that answers."""
    return SessionConfig(
        max_turns=2,
        max_prompt_tokens=size.prompt_tokens,
        max_response_tokens=2 * TURN_TOKENS + size.observation_tokens,
        last_turn_notice=load(TrainConfig, CONFIG).session.last_turn_notice,
    )
