"""Lessons: which tokens are taught, and a short pre-training that learns."""

import numpy as np
import pytest
import torch

from arm_rl.core.config import ModelConfig, TemplateConfig
from arm_rl.core.template import Template
from arm_rl.core.types import ToolCall
from arm_rl.demo import forward, model, phrases, pixels, pretrain, scenes, tasks
from arm_rl.demo.lessons import CHOICE_WEIGHT, GUESS_WEIGHT, MIX, Lesson, Teacher
from arm_rl.demo.tasks import Look, Task
from arm_rl.demo.tracks import TRACKS, misfits

ALL_TRACKS = tuple(TRACKS.values())


@pytest.fixture(scope="module")
def teacher(template):
    return Teacher(template)


@pytest.fixture(scope="module")
def three_tracks(tmp_path_factory) -> Teacher:
    """Lessons of all tracks, in the words of a judge that is made for them."""
    schemas = {tool.tool: {"function": {"name": tool.tool}} for tool in misfits(ALL_TRACKS)}
    folder = model.build(tmp_path_factory.mktemp("judge"), tracks=ALL_TRACKS, tools=list(schemas))
    written = Template.load(
        ModelConfig(path=str(folder)), TemplateConfig(system_prompt="configs/prompts/digits.txt"), schemas
    )
    return Teacher(written, ALL_TRACKS)


def look_once(teacher: Teacher, number: int) -> tuple[Lesson, Task, Look]:
    task, track = teacher.task(0, number)
    return teacher.look_once(task, track, np.random.default_rng(1)), task, task.right_look(np.random.default_rng(1))


def taught(teacher: Teacher, lesson: Lesson) -> str:
    ids = [id_ for id_, weight in zip(lesson.token_ids, lesson.weights, strict=True) if weight > 0]
    return teacher.template.tokenizer.decode(ids)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_lesson_s_prompt_observation_and_opening_are_not_taught(three_tracks, number):
    lesson, _, look = look_once(three_tracks, number)
    assert len(lesson.token_ids) == len(lesson.weights)
    call, answer = phrases.call_turn(look.tool, look.arguments), phrases.answer_turn(look.choice, look.thought)
    assert taught(three_tracks, lesson) == call.replace(phrases.LOOK, "") + answer + three_tracks.template.end_token


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_choice_weighs_most(three_tracks, number):
    lesson, task, _ = look_once(three_tracks, number)
    places = [place for place, weight in enumerate(lesson.weights) if weight == CHOICE_WEIGHT]
    assert [three_tracks.template.decode([lesson.token_ids[place]]) for place in places] == [task.label]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_lessons_are_written_as_the_session_writes(three_tracks, number):
    """The ids of a lesson are prompt, turn, observation, turn: nothing in between."""
    lesson, task, look = look_once(three_tracks, number)
    template = three_tracks.template
    parts = (
        three_tracks.prompt_ids(tasks.request(task), image=task.view is not None, tools=True),
        template.turn_ids(phrases.call_turn(look.tool, look.arguments), ended=False),
        three_tracks.observation_ids(None if look.view is None else "observation_1", look.text),
        template.turn_ids(phrases.answer_turn(look.choice, look.thought), ended=True),
    )
    assert lesson.token_ids == [id_ for part in parts for id_ in part]
    assert len(lesson.views) == (task.view is not None) + (look.view is not None)


def test_a_lesson_has_pads_for_its_views(three_tracks):
    template, rng = three_tracks.template, np.random.default_rng(0)
    seen = set()
    for index in range(300):
        lesson = three_tracks.joint_lesson(*three_tracks.task(0, index), rng)
        assert lesson.token_ids.count(template.image_pad_id) == pixels.NUM_TOKENS * len(lesson.views)
        assert all(view.shape == (64, 64, 3) for view in lesson.views)
        seen.add(len(lesson.views))
    assert seen == {0, 1, 2, 3}
    assert sum(MIX) == pytest.approx(1.0)


def test_constant_parts_are_single_tokens(three_tracks):
    """Prompts, calls and observations of every tool are a few tokens: what varies is a token of its own."""
    rng, tokenizer = np.random.default_rng(2), three_tracks.template.tokenizer
    for number in range(6):
        task, _ = three_tracks.task(0, number)
        assert len(tokenizer.encode(tasks.request(task), add_special_tokens=False)) <= 12
        for tool in misfits(three_tracks.tracks):
            look = tool.stray_look(rng)
            assert len(three_tracks.turn_ids(phrases.call_turn(look.tool, look.arguments), False)) <= 18
            assert len(tokenizer.encode(look.text, add_special_tokens=False)) <= 7


def test_lessons_call_the_tools_of_other_tracks_as_well_and_tell_nothing_from_them(three_tracks):
    """Of all calls that are taught, most are of the right tool; no lesson teaches to judge by another one."""
    rng, template = np.random.default_rng(3), three_tracks.template
    right = other = 0
    for index in range(400):
        task, track = three_tracks.task(0, index)
        lesson = three_tracks.joint_lesson(task, track, rng)
        text = template.tokenizer.decode([id_ for id_ in lesson.token_ids if id_ != template.image_pad_id])
        weighted = taught(three_tracks, lesson)
        called = template.tool_format.parse(weighted)
        if called is None:
            continue
        assert isinstance(called, ToolCall)
        right += called.name == track.tool
        other += called.name != track.tool
        if called.name != track.tool:
            assert "<answer>" not in text or phrases.UNCLEAR in text
    assert right > other > 20


def test_what_a_wrong_tool_shows_leaves_the_choice_even(three_tracks):
    rng = np.random.default_rng(4)
    task, track = three_tracks.task(0, 1)
    look = misfits(ALL_TRACKS, track)[0].stray_look(rng)
    lesson = three_tracks._look_and_answer(task, [look], rng, last_call_weight=0.0)
    assert phrases.UNCLEAR in taught(three_tracks, lesson)
    assert CHOICE_WEIGHT not in lesson.weights
    assert lesson.weights.count(GUESS_WEIGHT) == 1


def test_a_prompt_without_tools_says_so(teacher):
    offered, not_offered = (teacher.prompt_ids("Which?", image=True, tools=tools) for tools in (True, False))
    assert offered != not_offered


def test_questions_end_with_one_token_for_each_colour(teacher):
    ids = teacher.question_ids()
    assert len(set(ids[-len(scenes.COLORS) :])) == len(scenes.COLORS)


def test_lessons_of_several_lengths_have_the_loss_of_their_tokens(three_tracks):
    """The grouped, padded loss is the weighted mean of what the library says of each lesson alone."""
    judge = model.build_model(three_tracks.template.tokenizer, 0).eval()
    rng = np.random.default_rng(1)
    chosen = [three_tracks.joint_lesson(*three_tracks.task(0, index), rng) for index in range(9)]
    with torch.no_grad():
        ours = forward.lessons_loss(judge, chosen).item()
        total = sum(_loss(judge, lesson) for lesson in chosen) / sum(sum(lesson.weights) for lesson in chosen)
    assert ours == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("name", ["one track", "three tracks"])
def test_a_short_pre_training_learns_and_repeats(name, teacher, three_tracks):
    taught = three_tracks if name == "three tracks" else teacher
    plan = pretrain.PretrainPlan(
        warm_up=pretrain.Phase(steps=25, batch=8, learning_rate=1e-3),
        matching=pretrain.Phase(steps=15, batch=8, learning_rate=1e-3),
        joint=pretrain.Phase(steps=15, batch=8, learning_rate=1e-3),
        num_threads=1,
    )

    def losses() -> dict[str, list[float]]:
        seen: dict[str, list[float]] = {"warm-up": [], "matching": [], "joint": []}
        judge = model.build_model(taught.template.tokenizer, 0)

        def keep(phase: str, done: int, total: int, loss: float) -> None:
            seen[phase].append(loss)

        pretrain.train(judge, taught.template, plan=plan, seed=0, on_step=keep, tracks=taught.tracks)
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
        patches = pixels.make_patches(np.stack(lesson.views)).flatten(0, 1)  # (P, 3 * 64)
        inputs["pixel_values"] = patches.view(len(patches), 3, 1, -1).expand(-1, -1, 2, -1).flatten(1)
        inputs["image_grid_thw"] = torch.tensor([[1, pixels.SIDE, pixels.SIDE]] * len(lesson.views))
        inputs["mm_token_type_ids"] = (ids == judge.config.image_token_id).int()
    logprobs = judge(input_ids=ids, **inputs).logits.log_softmax(dim=-1)[0, :-1]
    picked = logprobs.gather(1, ids[0, 1:, None])[:, 0]
    return float(-(picked * torch.tensor(lesson.weights)[1:]).sum())
