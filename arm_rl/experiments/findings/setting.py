"""The setting of the findings as data: the mixed task, its base model, the cold start, and what is equal in all runs."""

import dataclasses
from typing import Any, Literal

from arm_rl.core.config_file import load
from arm_rl.core.stage_config import SftConfig, TrainConfig
from arm_rl.demo import phrases
from arm_rl.demo.pretrain import Phase, PretrainPlan
from arm_rl.demo.teacher import ScriptedTeacher
from arm_rl.demo.tracks import MIXED

# Half of the samples ask for an engraved digit, which only the zoom tool shows, half for a plain one, which the small view shows too.
ENGRAVED, PLAIN = (track.name for track in MIXED)
KINDS = (ENGRAVED, PLAIN)

CONFIG, SFT_CONFIG = "configs/findings.yaml", "configs/findings_sft.yaml"
# settings are sought on the one; the figures come from the other, used once
JudgedSplit = Literal["validation", "test"]
NUM_TRAIN = 4800  # samples, half of each kind
NUM_JUDGED: dict[JudgedSplit, int] = {"validation": 320, "test": 640}
NUM_DEMONSTRATIONS = 2880  # that pass the screening: 90 steps

# What the first demo's base model is taught further: digits that the small view shows, and a third call.
PLAN = PretrainPlan(
    warm_up=Phase(steps=600, batch=32, learning_rate=1e-3),
    matching=Phase(steps=100, batch=64, learning_rate=1e-3, check_every=10),
    joint=Phase(steps=900, batch=32, learning_rate=1e-3, cooldown=150, slack=0.1),
    mix=(0.14, 0.18, 0.06, 0.08, 0.32, 0.14, 0.08),
    max_calls=3,
    num_threads=1,  # beside other work, two threads wait for each other
)

# The first tool is rare and poor: accuracy alone stalls with some seeds then. Where it is much poorer, nothing learns to zoom.
TEACHER = ScriptedTeacher(
    tracks=MIXED, call_share=0.13, right_place_share=0.33, near_place_share=0.35, repeat_share=0.1
)

STEPS = 82  # of GRPO in all: a design with a stage 1 takes fewer in the second
STAGE1 = "stage1"  # its reward, and the name of its run
STAGE1_STEPS = 12  # after 24, judges called twice a sample and learned slowly
STAGE1_LEARNING_RATE = 2e-4

# What a first turn begins with where the tool is forced, and where none is offered.
CALL_OPENING, ANSWER_OPENING = f"<think>{phrases.LOOK}</think><tool_call>", f"<think>{phrases.conclusion('')}"


def setting_values() -> dict[str, Any]:
    """Return the settings of the base model, the cold starts and GRPO, in which the runs of a folder must agree."""
    teacher = {
        field.name: getattr(TEACHER, field.name)
        for field in dataclasses.fields(TEACHER)
        if field.name not in ("seed", "tracks")
    }
    return {
        "train": NUM_TRAIN,
        "demonstrations": NUM_DEMONSTRATIONS,
        "plan": dataclasses.asdict(PLAN),
        "teacher": teacher,
        "stage1_learning_rate": STAGE1_LEARNING_RATE,
        CONFIG: dataclasses.asdict(load(TrainConfig, CONFIG)),
        SFT_CONFIG: dataclasses.asdict(load(SftConfig, SFT_CONFIG)),
    }
