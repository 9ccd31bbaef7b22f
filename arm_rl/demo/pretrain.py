"""Training of a demo's base model, from fresh weights to a judge that could look but does not: plain torch, no actors.

warm-up   auxiliary targets: what an image token shows (colour, place), what a crop says, where the tile of a question is
matching  the language model learns that the better answer is the one that claims what the thought says
joint     lessons of all kinds: call with the right arguments, read what comes back, answer; or answer at once

A phase ends when its skills reach their marks, or at its limit; where pairs of claims are matched badly, most lessons are about these.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from arm_rl.core.template import Template
from arm_rl.demo import pixels, scenes
from arm_rl.demo.forward import hidden_states, lessons_loss
from arm_rl.demo.lessons import MAX_CALLS, MIX, Teacher
from arm_rl.demo.probe import COLOR_NAMES, Probe
from arm_rl.demo.skills import FIRST_INDEX, Claims, SkillMarks, Skills, SkillTest
from arm_rl.demo.tasks import Task, Track
from arm_rl.demo.tiles import Tiles
from arm_rl.demo.tracks import TILES

HARD_SHARE = 0.5  # of a batch's tasks are about badly matched pairs, where there are any
SCENES_MEASURED = 96  # by the probe


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Settings of one phase."""

    steps: int  # after which no cool-down starts any more
    batch: int  # lessons, or scenes in the warm-up
    learning_rate: float  # at its peak
    warmup: int = 20  # steps in which the rate rises
    cooldown: int = 0  # steps at the end in which the rate falls
    end_share: float = 0.1  # of the peak, reached by the cool-down
    slack: float = 0.0  # by which skills may miss their marks as the cool-down starts: a high rate makes them noisy
    check_every: int = 20  # steps between measurements of the skills


@dataclass(frozen=True, kw_only=True)
class PretrainPlan:
    """Settings of the whole pre-training."""

    warm_up: Phase = Phase(steps=500, batch=32, learning_rate=1e-3)
    matching: Phase = Phase(steps=240, batch=64, learning_rate=1e-3)
    joint: Phase = Phase(steps=700, batch=32, learning_rate=1e-3, cooldown=100, slack=0.1)
    seeing: float = 0.95  # mark of the warm-up: share of each auxiliary target that is predicted (0..1)
    marks: SkillMarks = field(default_factory=SkillMarks)
    mix: Sequence[float] = MIX  # of the joint lessons
    max_calls: int = MAX_CALLS  # in a lesson
    num_threads: int = 2


@dataclass(frozen=True, kw_only=True)
class PhaseResult:
    """How a phase ended."""

    steps: int  # taken, the cool-down included
    missed: tuple[str, ...]  # skills below their marks at the phase's end; none if it ended at the marks


@dataclass(frozen=True, kw_only=True)
class PretrainResult:
    """How pre-training ended."""

    phases: Mapping[str, PhaseResult]
    skills: Skills  # of the trained model
    marks: SkillMarks

    def entries(self) -> dict[str, Any]:
        """Return the skills with their marks, and the phases with their steps, for JSON."""
        phases = {name: asdict(result) for name, result in self.phases.items()}
        return {"skills": self.skills.entries(self.marks), "phases": phases}


def train(
    model: Qwen2_5_VLForConditionalGeneration,
    template: Template,
    *,
    plan: PretrainPlan,
    seed: int,
    on_step: Callable[[str, int, int, float], None],
    tracks: Sequence[Track] = TILES,
) -> PretrainResult:
    """Train a model in place until its skills reach their marks, or the phases their limits.

    Args:
        model: The small judge.
        template: Template of its sessions, with the schemas of the tools.
        plan: Settings of the phases.
        seed: Seed of tasks and lessons.
        on_step: Called with the phase, the steps that are done, the steps of all phases at most, and the loss.
        tracks: What the model learns to judge.
    """
    torch.set_num_threads(plan.num_threads)
    torch.manual_seed(seed)
    lessons = _Lessons(Teacher(template, tracks, mix=plan.mix, max_calls=plan.max_calls), plan.marks, seed)
    sight = _Sight(lessons.teacher, seed)
    test = SkillTest(lessons.teacher, seed)

    def missed_skills(slack: float, *names: str) -> list[str]:
        skills = test.measure(model)
        lessons.practise(skills)
        return skills.missed(plan.marks, names, slack=slack)

    def matching(batch: int) -> Tensor:
        return lessons_loss(model, lessons.draw(lessons.teacher.matching_lesson, batch))

    def joint(batch: int) -> Tensor:
        return lessons_loss(model, lessons.draw(lessons.teacher.joint_lesson, batch))

    parameters = list(model.parameters())
    phases: dict[str, tuple[Phase, Callable[[int], Tensor], list[nn.Parameter], Callable[[float], list[str]]]] = {
        "warm-up": (
            plan.warm_up,
            lambda batch: sight.loss(model, lessons.indices(batch)),
            [*parameters, *sight.probe.parameters()],
            lambda slack: sight.missed(model, plan.seeing - slack),
        ),
        "matching": (plan.matching, matching, parameters, lambda slack: missed_skills(slack, "matching")),
        "joint": (plan.joint, joint, parameters, missed_skills),
    }
    results: dict[str, PhaseResult] = {}
    total = sum(phase.steps + phase.cooldown for phase, *_ in phases.values())
    done = 0
    for name, (phase, objective, trained, missed) in phases.items():
        steps = _Steps(phase, objective, trained, missed)
        for loss in steps:
            done += 1
            on_step(name, done, total - steps.saved, loss)
        total -= steps.saved
        results[name] = PhaseResult(steps=steps.done, missed=tuple(steps.missed))
    return PretrainResult(phases=results, skills=test.measure(model), marks=plan.marks)


class _Lessons:
    """Stream of tasks and of lessons about them, with more of the pairs of claims that are matched badly."""

    def __init__(self, teacher: Teacher, marks: SkillMarks, seed: int) -> None:
        self.teacher, self._marks, self._seed = teacher, marks, seed
        self._rng = np.random.default_rng([seed, 7])
        self._counter = itertools.count()
        self._hard: frozenset[Claims] = frozenset()

    def indices(self, number: int) -> list[int]:
        """Return the next indices of tasks."""
        return list(itertools.islice(self._counter, number))

    def practise(self, skills: Skills) -> None:
        """Give HARD_SHARE of the next batches to pairs that are matched below the mark."""
        needed = min(self._marks.matching, self._marks.answers)
        self._hard = frozenset(pair for pair, value in skills.pairs.items() if value < needed)

    def draw(self, write: Callable[[Task, Track, np.random.Generator], Any], number: int) -> list[Any]:
        """Return lessons about the next tasks."""
        num_hard = round(HARD_SHARE * number) if self._hard else 0
        tasks = (self.teacher.task(self._seed, index) for index in self._counter)
        hard = ((task, track) for task, track in tasks if task.claims in self._hard)
        drawn = [*itertools.islice(hard, num_hard), *itertools.islice(tasks, number - num_hard)]
        return [write(task, track, self._rng) for task, track in drawn]


class _Sight:
    """Warm-up of the vision tower: auxiliary targets on scenes."""

    def __init__(self, teacher: Teacher, seed: int) -> None:
        self._tiles = [track for track in teacher.tracks if isinstance(track, Tiles)]
        self._teacher, self._seed = teacher, seed
        self.probe = Probe(plain=any(track.asked_plain is not None for track in self._tiles))

    def loss(self, model: Qwen2_5_VLForConditionalGeneration, indices: Sequence[int]) -> Tensor:
        """Compute the loss of the auxiliary targets on some scenes."""
        return self.probe.loss(*self._encode(model, indices))

    def missed(self, model: Qwen2_5_VLForConditionalGeneration, mark: float) -> list[str]:
        """Return the names of the targets below the mark, on scenes that are not trained on."""
        with torch.no_grad():
            accuracies = self.probe.accuracies(*self._encode(model, range(FIRST_INDEX, FIRST_INDEX + SCENES_MEASURED)))
        return [name for name, value in accuracies.items() if value < mark]

    def _encode(
        self, model: Qwen2_5_VLForConditionalGeneration, indices: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor, list[scenes.Scene]]:
        tiles = self._tiles
        drawn = [tiles[index % len(tiles)].task(self._seed, "pretrain", index).scene for index in indices]
        views = [pixels.resized_scene(scene) for scene in drawn]
        views += [scenes.draw_cell(scene, scene.asked_tile.row, scene.asked_tile.column) for scene in drawn]
        shown, read = pixels.encode(model.model.visual, pixels.make_patches(np.stack(views))).split(len(drawn))
        ids = torch.tensor(self._teacher.question_ids()).expand(len(drawn), -1)
        asked = hidden_states(model, ids, shown.flatten(0, 1))[:, -len(COLOR_NAMES) :]
        return shown, read, asked, drawn


class _Steps:
    """Optimizer steps of a phase: an iterable of their losses.

    Training at the full rate continues until the skills are near their marks; then the rate falls, which removes the noise of the last
    steps. Where a mark is missed even so, both are repeated as long as steps are left.
    """

    def __init__(
        self,
        phase: Phase,
        objective: Callable[[int], Tensor],
        parameters: list[nn.Parameter],
        missed_skills: Callable[[float], list[str]],
    ) -> None:
        """Prepare the steps.

        Args:
            phase: Settings.
            objective: Computes the loss of a new batch of so many lessons.
            parameters: What is trained.
            missed_skills: Measures and returns the skills that are below their marks by more than its argument.
        """
        self._phase, self._objective, self._parameters, self._missed_skills = (
            phase,
            objective,
            parameters,
            missed_skills,
        )
        self.done = 0
        self.saved = 0  # steps that were not needed
        self.missed: list[str] = []

    def __iter__(self) -> Iterator[float]:
        phase = self._phase
        optimizer = torch.optim.AdamW(
            self._parameters, lr=phase.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )
        while self.done == 0 or (self.missed and self.done < phase.steps):
            yield from self._train_until_ready(optimizer)
            for step in range(phase.cooldown):
                left = 1 - (step + 1) / phase.cooldown
                yield self._take(optimizer, phase.end_share + (1 - phase.end_share) * left)
            if phase.cooldown:
                self.missed = self._missed_skills(0.0)
        self.saved = max(0, phase.steps + phase.cooldown - self.done)

    def _train_until_ready(self, optimizer: torch.optim.Optimizer) -> Iterator[float]:
        phase = self._phase
        while self.done < phase.steps:
            yield self._take(optimizer, min(1.0, (self.done + 1) / phase.warmup))
            if self.done % phase.check_every == 0 or self.done == phase.steps:
                self.missed = self._missed_skills(phase.slack)
                if not self.missed:
                    return

    def _take(self, optimizer: torch.optim.Optimizer, rate_share: float) -> float:
        for group in optimizer.param_groups:
            group["lr"] = self._phase.learning_rate * rate_share
        loss = self._objective(self._phase.batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        optimizer.step()
        self.done += 1
        return float(loss.detach())
