"""Skills of a base model: what is measured, and when training ends."""

import dataclasses

import numpy as np
import pytest
import torch

from arm_rl.core.config import ModelConfig, TemplateConfig
from arm_rl.core.template import Template
from arm_rl.demo import model, pretrain
from arm_rl.demo.lessons import Teacher
from arm_rl.demo.pretrain import Phase, PhaseResult, PretrainResult
from arm_rl.demo.skills import SkillMarks, Skills, SkillTest
from arm_rl.demo.tracks import TRACKS, misfits

ALL_TRACKS = tuple(TRACKS.values())
WORDS = {"digits": ["1000", "250"], "pages": ["doc_3", "2"], "texts": ["10", "20"]}


@pytest.fixture(scope="module")
def three_tracks(tmp_path_factory) -> Teacher:
    schemas = {tool.tool: {"function": {"name": tool.tool}} for tool in misfits(ALL_TRACKS)}
    folder = model.build(tmp_path_factory.mktemp("judge"), tracks=ALL_TRACKS, tools=list(schemas))
    written = Template.load(
        ModelConfig(path=str(folder)), TemplateConfig(system_prompt="configs/prompts/digits.txt"), schemas
    )
    return Teacher(written, ALL_TRACKS)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_parts_of_a_lesson_are_its_arguments_thought_and_choice(three_tracks, number):
    task, track = three_tracks.task(0, number)
    look = task.right_look(np.random.default_rng(1))
    lesson = three_tracks.look_once(task, track, np.random.default_rng(1))

    def text(part: str) -> list[str]:
        ids = [id_ for id_, of in zip(lesson.token_ids, lesson.parts, strict=True) if of == part]
        return [three_tracks.template.decode([id_]) for id_ in ids]

    assert text("choice") == [task.label]
    assert "".join(text("thought")) == f"{look.thought}</think>"
    values = [
        str(value) for entry in look.arguments.values() for value in (entry if isinstance(entry, list) else [entry])
    ]
    of_call = [value for value in values if value != "original_image"]
    assert sorted(text("argument") + text("free")) == sorted(of_call)
    assert text("free") == (of_call[:1] if track.name == "texts" else [])
    assert len(lesson.parts) == len(lesson.token_ids)


def test_an_untrained_model_has_no_skill_and_every_pair_is_measured_in_both_orders(three_tracks):
    teacher = Teacher(three_tracks.template)
    skills = SkillTest(teacher, 0).measure(model.build_model(teacher.template.tokenizer, 0))
    assert set(skills.missed(SkillMarks())) == set(dataclasses.asdict(SkillMarks()))
    assert len(skills.pairs) == 12
    assert all(reversed_pair in skills.pairs for reversed_pair in [(second, first) for first, second in skills.pairs])


def make_skills(value: float, pairs: dict | None = None) -> Skills:
    return Skills(values=dict.fromkeys(dataclasses.asdict(SkillMarks()), value), pairs=pairs or {})


def test_entries_hold_value_mark_and_verdict():
    result = PretrainResult(
        phases={"joint": PhaseResult(steps=9, missed=("calls",))}, skills=make_skills(0.95), marks=SkillMarks()
    )
    entries = result.entries()
    assert entries["skills"]["calls"] == {"value": 0.95, "mark": 0.98, "reached": False}
    assert entries["skills"]["matching"] == {"value": 0.95, "mark": 0.95, "reached": True}
    assert entries["phases"] == {"joint": {"steps": 9, "missed": ("calls",)}}


def run_phase(phase: Phase, answers: list[list[str]]) -> tuple[pretrain._Steps, list[float], list[float]]:
    """Run a phase whose measurements give these answers; return it with the slacks asked for and the rates of its steps."""
    weight = torch.nn.Parameter(torch.ones(1))
    slacks, rates = [], []

    def missed(slack: float) -> list[str]:
        slacks.append(slack)
        return answers[len(slacks) - 1]

    class NotedSteps(pretrain._Steps):
        def _take(self, optimizer: torch.optim.Optimizer, rate_share: float) -> float:
            rates.append(rate_share)
            return super()._take(optimizer, rate_share)

    steps = NotedSteps(phase, lambda batch: (weight**2).sum() * batch, [weight], missed)
    list(steps)
    return steps, slacks, rates


def test_a_phase_ends_at_its_marks():
    phase = Phase(steps=100, batch=1, learning_rate=0.01, warmup=1, check_every=10)
    steps, slacks, _ = run_phase(phase, [["calls"], []])
    assert (steps.done, steps.saved, steps.missed, slacks) == (20, 80, [], [0.0, 0.0])


def test_the_rate_falls_before_the_marks_count_and_training_is_repeated_where_one_is_missed():
    phase = Phase(steps=100, batch=1, learning_rate=0.01, warmup=1, check_every=10, cooldown=5, slack=0.1)
    steps, slacks, rates = run_phase(phase, [[], ["matching"], ["matching"], [], []])
    assert slacks == [0.1, 0.0, 0.1, 0.1, 0.0]
    assert rates[:10] == [1.0] * 10
    assert rates[10:15] == pytest.approx([0.82, 0.64, 0.46, 0.28, 0.1])
    assert rates[15] == 1.0
    assert steps.done == len(rates) == 35  # measured at 10, 15, 20, 30 and 35
    assert steps.missed == []


def test_a_phase_ends_at_its_limit_and_names_what_is_missed():
    phase = Phase(steps=20, batch=1, learning_rate=0.01, warmup=1, check_every=10, cooldown=5, slack=0.1)
    steps, _, _ = run_phase(phase, [["calls"], ["calls"], ["calls"]])
    assert (steps.done, steps.saved, steps.missed) == (25, 0, ["calls"])


def test_badly_matched_pairs_are_practised_more(three_tracks):
    lessons = pretrain._Lessons(Teacher(three_tracks.template), SkillMarks(), seed=0)
    seen: list[tuple] = []

    def note(task, track, rng):
        seen.append(task.claims)

    lessons.draw(note, 240)
    assert abs(seen.count((4, 7)) - 20) <= 8
    lessons.practise(make_skills(0.9, {(4, 7): 0.6, (0, 1): 0.99}))
    seen.clear()
    lessons.draw(note, 240)
    assert seen.count((4, 7)) >= 120
    lessons.practise(make_skills(1.0, {(4, 7): 0.99}))
    seen.clear()
    lessons.draw(note, 240)
    assert abs(seen.count((4, 7)) - 20) <= 8
