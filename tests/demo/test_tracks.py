"""The tracks: repeatable, balanced, silent about the answer; their looks say what the real tools answer."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image as PILImage

from arm_rl.core.images import Image
from arm_rl.core.session import ToolResult
from arm_rl.demo import demos, pages, phrases, scenes, tasks, texts
from arm_rl.demo.pages import Pages
from arm_rl.demo.tasks import Look, Task
from arm_rl.demo.texts import Texts
from arm_rl.demo.tracks import TILES, TRACKS, misfits
from tools import load_tools
from tools.base import Tool, ToolContext

SPLITS = ("train", "held_out", "pretrain")


@pytest.fixture(scope="module")
def tools(tmp_path_factory) -> dict[str, Tool]:
    """The demo's own tools over its own documents."""
    folder = tmp_path_factory.mktemp("demo")
    TRACKS["pages"].prepare(folder, 0)
    file = folder / "tools.yaml"
    demos.write_tool_file(demos.THREE_TRACKS, folder, file)
    return load_tools([str(file)])


def context(task: Task) -> ToolContext:
    images = {} if task.image is None else {"original_image": Image.from_pil(task.image)}
    return ToolContext(images=images, texts=dict(zip(texts.NAMES, task.texts, strict=True)), image_names=list(images))


def assert_shows(result: ToolResult, look: Look) -> None:
    """What the tool gives is what the lesson shows."""
    assert result.text == look.text
    assert len(result.images) == (look.view is not None)
    if look.view is not None:
        assert (np.asarray(result.images[0].pil()) == look.view).all()


@pytest.mark.parametrize("track", TRACKS.values(), ids=TRACKS)
@pytest.mark.parametrize("split", SPLITS)
def test_tasks_repeat_and_are_balanced(track, split):
    drawn = [track.task(3, split, index) for index in range(240)]
    assert drawn == [track.task(3, split, index) for index in range(240)]
    assert drawn != [track.task(4, split, index) for index in range(240)]
    assert Counter(task.label for task in drawn) == {"1": 120, "2": 120}
    assert len({task.key for task in drawn}) == 240


@pytest.mark.parametrize("track", TRACKS.values(), ids=TRACKS)
def test_a_prompt_does_not_tell_the_answer(track):
    """Whatever a prompt says, either answer is as often right behind it."""
    labels: dict[str, Counter[str]] = {}
    for index in range(2400):
        task = track.task(0, "train", index)
        claims = tasks.request(task).split("?")[1]
        labels.setdefault(claims, Counter())[task.label] += 1
    assert all(counts["1"] == counts["2"] for counts in labels.values())
    asked: dict[str, Counter[str]] = {}
    for index in range(2400):
        task = track.task(0, "train", index)
        asked.setdefault(task.question, Counter())[task.label] += 1
    often = [counts for counts in asked.values() if counts.total() >= 100]
    assert all(abs(counts["1"] / counts.total() - 0.5) < 0.15 for counts in often)


def test_pages_of_held_out_documents_are_in_no_training_task():
    asked = {split: {Pages().task(0, split, index).place for index in range(480)} for split in ("train", "held_out")}
    assert {document for document, _ in asked["train"]} == set(pages.DOCUMENTS["train"])
    assert {document for document, _ in asked["held_out"]} == set(pages.DOCUMENTS["held_out"])
    used = {place: pages.page_tile(0, place) for places in asked.values() for place in places}
    held_out = {image for digit in scenes.CLASSES for image in scenes.digit_images("held_out", digit)}
    assert all(
        (tile.image in held_out) == (document in pages.DOCUMENTS["held_out"]) for (document, _), tile in used.items()
    )


def test_a_document_has_each_digit_equally_often():
    for document in pages.ALL_DOCUMENTS:
        digits = Counter(pages.page_tile(1, (document, page)).digit for page in range(1, pages.NUM_PAGES + 1))
        assert digits == dict.fromkeys(scenes.CLASSES, 2)


def test_the_asked_page_shows_the_right_claim():
    for split in SPLITS:
        for index in range(48):
            task = Pages().task(0, split, index)
            look = task.right_look(np.random.default_rng(0))
            assert look.choice == int(task.label)
            assert look.thought == phrases.conclusion(task.claims[int(task.label) - 1])


def test_one_text_alone_has_the_asked_number_of_words():
    for index in range(120):
        task = Texts().task(0, "train", index)
        counts = [len(text.split()) for text in task.texts]
        assert tuple(counts) == task.counts
        fits = [task.lower <= count <= task.lower + texts.WIDTH for count in counts]
        assert fits == [task.label == "1", task.label == "2"]


def test_asking_about_either_text_tells_the_same():
    task = Texts().task(0, "train", 0)
    looks = [task.right_look(np.random.default_rng(seed)) for seed in range(20)]
    assert {look.arguments["response"] for look in looks} == set(texts.NAMES)
    assert {look.text for look in looks} == {texts.result(True), texts.result(False)}
    assert {look.choice for look in looks} == {int(task.label)}


@pytest.mark.parametrize("name", TRACKS)
def test_right_and_wrong_looks_are_what_the_tool_answers(name, tools):
    track, rng = TRACKS[name], np.random.default_rng(0)
    wrong_choices = []
    for index in range(30):
        task = track.task(0, ("train", "held_out")[index % 2], index)
        looks = [task.right_look(rng), task.wrong_look(rng, near=True), task.wrong_look(rng, near=False)]
        for look in looks:
            result = tools[track.tool].call(dict(look.arguments), context(task))
            assert result.status == "ok"
            assert_shows(result, look)
        assert looks[0].choice == int(task.label)
        assert all(wrong.arguments != looks[0].arguments for wrong in looks[1:])
        wrong_choices += [wrong.choice == int(task.label) for wrong in looks[1:] if wrong.choice is not None]
    assert not wrong_choices or np.mean(wrong_choices) < 0.8


@pytest.mark.parametrize("name", TRACKS)
def test_misfits_tell_nothing(name, tools):
    track, rng = TRACKS[name], np.random.default_rng(0)
    for index in range(20):
        task = track.task(0, "train", index)
        for tool in misfits(tuple(TRACKS.values()), track):
            look = tool.stray_look(rng)
            result = tools[tool.tool].call(dict(look.arguments), context(task))
            assert (look.choice, look.thought) == (None, phrases.UNCLEAR)
            assert result.text == look.text
            assert len(result.images) == (look.view is not None)


def test_one_track_has_no_misfits_and_several_have_one_that_resembles():
    assert misfits(TILES, TILES[0]) == []
    names = [tool.tool for tool in misfits(tuple(TRACKS.values()), TRACKS["texts"])]
    assert TRACKS["texts"].tool not in names
    assert texts.SentenceCheck.tool in names
    assert len(names) == len(set(names)) == 3


def test_a_page_is_a_cell_of_a_scene():
    tile = pages.page_tile(0, (1, 1))
    page = pages.draw_page(tile)
    assert page.shape == (scenes.CELL, scenes.CELL, 3)
    assert np.asarray(PILImage.fromarray(page).resize((64, 64), PILImage.Resampling.BICUBIC)).shape == page.shape
    other = pages.draw_page(pages.page_tile(0, (1, 2)))
    assert (page != other).any()
