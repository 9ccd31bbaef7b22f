"""The demos as data: what each trains on, with which settings, and how long it takes. `phases` runs them."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from arm_rl.core.config_file import load
from arm_rl.core.stage_config import SftConfig, TrainConfig
from arm_rl.demo.outcome import Mark
from arm_rl.demo.pretrain import Phase, PretrainPlan
from arm_rl.demo.robustness import Arithmetic
from arm_rl.demo.tasks import Track
from arm_rl.demo.teacher import ScriptedTeacher
from arm_rl.demo.tracks import TILES, TRACKS

PLAN_VERSION = 2  # raised where phases, lessons or tasks change in a way that no setting shows


@dataclass(frozen=True, kw_only=True)
class DemoSize:
    """How much of everything."""

    train: int  # samples to demonstrate
    grpo: int  # samples, before those are left out that the cold start can do already
    held_out: int  # samples
    demonstrations: int  # that pass the screening
    pretraining: float = 1.0  # share of its steps
    overrides: tuple[str, ...] = ()  # of both GRPO stages


@dataclass(frozen=True, kw_only=True)
class DemoSpec:
    """One demo."""

    name: str  # of its run folder
    config: str  # file: GRPO's stage 2
    sft_config: str  # file
    tracks: Sequence[Track]
    plan: PretrainPlan = field(default_factory=PretrainPlan)  # of the base model's training
    teacher: ScriptedTeacher = field(default_factory=ScriptedTeacher)  # its shares; the seed is the run's
    stage1: tuple[str, ...]  # where stage 1 differs from `config`
    titles: Mapping[str, str]  # what each phase is, in order
    usual_seconds: Mapping[str, float]  # of each phase on two idle cores: how long the phases are against each other
    marks: Sequence[Mark]  # of a full run
    full: DemoSize
    short: DemoSize  # a few steps of everything: shows that it runs, learns nothing


_TITLES = {
    "data": "handwritten digits, engraved so that only the zoom tool can read them",
    "base": "the base model: a small Qwen2.5-VL, taught to see, to match and to write calls",
    "base_evaluation": "the base model, judging held-out samples",
    "demonstrations": "a teacher's sessions, screened for format, judgment and tool use",
    "sft": "SFT: the cold start",
    "difficulty": "the samples of GRPO, without those that the judge gets right every time",
    "stage1": "GRPO stage 1: reach for the tool",
    "stage2": "GRPO stage 2: look at the right place, and be right",
    "judge": "the exported judge behind an OpenAI-compatible server",
}
# Marks: what a full demo promises on every machine.
MIN_ACCURACY = 0.95  # after stage 2
MIN_WITHOUT_TOOLS, MAX_WITHOUT_TOOLS = 0.44, 0.56  # a coin's, of the judge after stage 2
MAX_COLD_START = 0.70  # after SFT: something is left to learn
MIN_PAIR_ACCURACY = 0.90  # of the worst pair of digits after stage 2
MIN_TRACK_ACCURACY = 0.93  # of each track after stage 2, where there are three

_STAGE1 = ("run.name=stage1", "reward.name=stage1", "learner.schedule=constant", "evaluation.initial=true")
_SHORT_STEPS = ("num_steps=2", "algorithm.drop_flat_groups=false")

DIGITS = DemoSpec(
    name="demo",
    config="configs/demo.yaml",
    sft_config="configs/demo_sft.yaml",
    tracks=TILES,
    stage1=(*_STAGE1, "num_steps=12", "algorithm.samples_per_step=16", "learner.learning_rate=5.0e-5"),
    titles=_TITLES,
    usual_seconds={
        "data": 15,
        "base": 155,
        "base_evaluation": 66,
        "demonstrations": 13,
        "sft": 45,
        "difficulty": 61,
        "stage1": 84,
        "stage2": 170,
        "judge": 43,
    },
    marks=(
        Mark(title="accuracy after stage 2", stage="stage2", metric="accuracy", at_least=MIN_ACCURACY),
        Mark(
            title="accuracy on the worst pair of digits after stage 2",
            stage="stage2",
            metric="worst_pair_accuracy",
            at_least=MIN_PAIR_ACCURACY,
        ),
        Mark(
            title="accuracy after stage 2 without tools",
            stage="stage2",
            metric="accuracy_without_tools",
            at_least=MIN_WITHOUT_TOOLS,
            at_most=MAX_WITHOUT_TOOLS,
        ),
        Mark(title="accuracy after SFT", stage="sft", metric="accuracy", at_most=MAX_COLD_START),
    ),
    full=DemoSize(train=3600, grpo=1536, held_out=480, demonstrations=1920),
    short=DemoSize(train=128, grpo=32, held_out=32, demonstrations=128, pretraining=0.02, overrides=_SHORT_STEPS),
)

THREE_TRACKS = DemoSpec(
    name="demo-tools",
    config="configs/demo_tools.yaml",
    sft_config="configs/demo_tools_sft.yaml",
    tracks=tuple(TRACKS.values()),
    plan=PretrainPlan(
        matching=Phase(steps=300, batch=64, learning_rate=1e-3),
        joint=Phase(steps=1000, batch=36, learning_rate=1e-3, cooldown=140, slack=0.1),
    ),
    teacher=ScriptedTeacher(call_share=0.4),
    stage1=(*_STAGE1, "reward.other_tool=0", "num_steps=25", "learner.learning_rate=1.0e-4"),
    titles={
        **_TITLES,
        "data": "three tracks: a detail of a scene, a page of a document, the length of a text; each needs a tool of its own",
        "stage1": "GRPO stage 1: reach for the tool that fits",
        "stage2": "GRPO stage 2: call it as the question asks, and be right",
    },
    usual_seconds={
        "data": 12,
        "base": 240,
        "base_evaluation": 30,
        "demonstrations": 12,
        "sft": 35,
        "difficulty": 90,
        "stage1": 120,
        "stage2": 250,
        "judge": 25,
    },
    marks=tuple(
        Mark(
            title=f"accuracy on {track} after stage 2",
            stage="stage2",
            metric=f"accuracy/{track}",
            at_least=MIN_TRACK_ACCURACY,
        )
        for track in TRACKS
    ),
    full=DemoSize(train=6000, grpo=2304, held_out=480, demonstrations=2304),
    short=DemoSize(train=192, grpo=36, held_out=36, demonstrations=128, pretraining=0.02, overrides=_SHORT_STEPS),
)


def demo_settings(spec: DemoSpec, size: DemoSize, seed: int, arithmetic: Arithmetic) -> dict[str, Any]:
    """Return everything that a demo's results depend on, by the name that a user knows: options first, then files."""
    config, sft_config = load(TrainConfig, spec.config), load(SftConfig, spec.sft_config)
    shares = [item.name for item in dataclasses.fields(spec.teacher) if item.name not in ("seed", "tracks")]
    return {
        "--tools": spec.name == THREE_TRACKS.name,
        "--short": size == spec.short,
        "--seed": seed,
        "--arithmetic": arithmetic.title,
        "version of the plan": PLAN_VERSION,
        spec.config: dataclasses.asdict(config),
        spec.sft_config: dataclasses.asdict(sft_config),
        **{file: OmegaConf.to_container(OmegaConf.load(file)) for file in config.tools.files},
        config.template.system_prompt: Path(config.template.system_prompt).read_text(encoding="utf-8"),
        "stage 1": list(spec.stage1),
        "sizes": dataclasses.asdict(size),
        "pre-training": dataclasses.asdict(spec.plan),
        "teacher": {name: getattr(spec.teacher, name) for name in shares},
    }


def write_tool_file(spec: DemoSpec, folder: Path, path: Path) -> None:
    """Writes the tools of a demo's configuration as one file, with the index of documents that lies in `folder`."""
    files = load(TrainConfig, spec.config, []).tools.files
    entries: list[dict[str, Any]] = [dict(entry) for file in files for entry in OmegaConf.load(file).tools]
    for entry in entries:
        if "index" in entry.get("config", {}):
            entry["config"] = {**entry["config"], "index": str(folder / "index")}
    path.parent.mkdir(parents=True, exist_ok=True)
    OmegaConf.save({"tools": entries}, path)
