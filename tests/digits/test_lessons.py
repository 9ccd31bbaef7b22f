"""Lessons: which tokens are taught, and a short pre-training that learns."""

import numpy as np
import pytest
import torch

from arm_rl.digits import model, phrases, pixels, pretrain, scenes
from arm_rl.digits.lessons import CHOICE_WEIGHT, MIX, Teacher


@pytest.fixture(scope="module")
def teacher(template):
    return Teacher(template)


@pytest.fixture
def scene():
    return scenes.make_scene(0, "pretrain", 5)


def test_a_lesson_s_prompt_observation_and_opening_are_not_taught(teacher, template, scene):
    lesson = teacher.look_once(scene)
    assert len(lesson.token_ids) == len(lesson.weights)
    assert len(lesson.views) == 2
    taught = template.tokenizer.decode([id_ for id_, weight in zip(lesson.token_ids, lesson.weights, strict=True) if weight > 0])
    call, answer = phrases.call_turn(scene.asked.box), phrases.answer_turn(scene.label, phrases.seen(scene.asked.digit))
    assert taught == call.replace(phrases.LOOK, "") + answer + template.end_token


def test_the_choice_weighs_most(teacher, template, scene):
    lesson = teacher.look_once(scene)
    places = [place for place, weight in enumerate(lesson.weights) if weight == CHOICE_WEIGHT]
    assert [template.decode([lesson.token_ids[place]]) for place in places] == [scene.label]


def test_a_lesson_has_pads_for_its_views(teacher, template):
    rng = np.random.default_rng(0)
    seen = set()
    for index in range(200):
        lesson = teacher.joint(scenes.make_scene(0, "pretrain", index), rng)
        assert lesson.token_ids.count(template.image_pad_id) == pixels.NUM_TOKENS * len(lesson.views)
        assert all(view.shape == (64, 64, 3) for view in lesson.views)
        seen.add(len(lesson.views))
    assert seen == {0, 1, 2, 3}
    assert sum(MIX) == pytest.approx(1.0)


def test_lessons_are_written_as_the_session_writes(teacher, template, scene):
    """The ids of a lesson are prompt, turn, observation, turn: nothing in between."""
    parts = (
        teacher.prompt(scene.asked.color, scene.claims, image=True, tools=True),
        template.turn_ids(phrases.call_turn(scene.asked.box), ended=False),
        teacher.observation("observation_1", ""),
        template.turn_ids(phrases.answer_turn(scene.label, phrases.seen(scene.asked.digit)), ended=True),
    )
    assert teacher.look_once(scene).token_ids == [id_ for part in parts for id_ in part]


def test_a_prompt_without_tools_says_so(teacher):
    offered, not_offered = (teacher.prompt("red", (0, 1), image=True, tools=tools) for tools in (True, False))
    assert offered != not_offered


def test_questions_end_with_one_token_for_each_colour(teacher):
    ids = teacher.questions()
    assert len(set(ids[-len(scenes.COLORS) :])) == len(scenes.COLORS)


def test_lessons_of_several_lengths_have_the_loss_of_their_tokens(teacher, template):
    """The grouped, padded loss is the weighted mean of what the library says of each lesson alone."""
    judge = model.build_model(template.tokenizer, 0).eval()
    rng = np.random.default_rng(1)
    chosen = [teacher.joint(scenes.make_scene(0, "pretrain", index), rng) for index in range(6)]
    with torch.no_grad():
        ours = pretrain.lessons_loss(judge, chosen)[0].item()
        total = sum(_loss(judge, lesson) for lesson in chosen) / sum(sum(lesson.weights) for lesson in chosen)
    assert ours == pytest.approx(total, abs=1e-4)


def test_a_short_pre_training_learns_and_repeats(template):
    plan = pretrain.Plan(
        warm_up=pretrain.Phase(steps=25, batch=8, learning_rate=1e-3),
        matching=pretrain.Phase(steps=15, batch=8, learning_rate=1e-3),
        joint=pretrain.Phase(steps=15, batch=8, learning_rate=1e-3),
        num_threads=1,
    )

    def losses() -> dict[str, list[float]]:
        seen: dict[str, list[float]] = {"warm-up": [], "matching": [], "joint": []}
        judge = model.build_model(template.tokenizer, 0)
        pretrain.train(judge, template, plan=plan, seed=0, on_step=lambda phase, done, total, loss: seen[phase].append(loss))
        return seen

    first = losses()
    assert {phase: len(values) for phase, values in first.items()} == {"warm-up": 25, "matching": 15, "joint": 15}
    for values in first.values():
        assert np.mean(values[-5:]) < 0.9 * np.mean(values[:5])
    assert losses() == first


def _loss(judge: torch.nn.Module, lesson) -> float:
    """Weighted sum of negative log-likelihoods of one lesson, by the library's own forward pass."""
    ids = torch.tensor([lesson.token_ids])
    inputs = {}
    if lesson.views:
        patches = pixels.patches(np.stack(lesson.views)).flatten(0, 1)  # (P, 3 * 64)
        inputs["pixel_values"] = patches.view(len(patches), 3, 1, -1).expand(-1, -1, 2, -1).flatten(1)
        inputs["image_grid_thw"] = torch.tensor([[1, pixels.SIDE, pixels.SIDE]] * len(lesson.views))
        inputs["mm_token_type_ids"] = (ids == judge.config.image_token_id).int()
    logprobs = judge(input_ids=ids, **inputs).logits.log_softmax(dim=-1)[0, :-1]
    picked = logprobs.gather(1, ids[0, 1:, None])[:, 0]
    return float(-(picked * torch.tensor(lesson.weights)[1:]).sum())
