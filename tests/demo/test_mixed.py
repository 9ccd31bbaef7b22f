"""The mixed task: plain digits that the small view shows among engraved ones; lessons and a teacher that know which is which."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image as PILImage

from arm_rl.core.template import Template
from arm_rl.data.samples import read_samples
from arm_rl.demo import dataset, phrases, pixels, probe, scenes
from arm_rl.demo.lessons import CHOICE_WEIGHT, Teacher
from arm_rl.demo.tasks import Track
from arm_rl.demo.tracks import MIXED, misfits
from arm_rl.experiments.findings import setting

ENGRAVED, PLAIN = MIXED


def scene_of(track: Track, split: scenes.Split, index: int) -> scenes.Scene:
    return scenes.make_scene(0, split, index, asked_plain=track is PLAIN)


def view(scene: scenes.Scene) -> np.ndarray:
    drawn = PILImage.fromarray(scenes.draw(scene))
    return np.asarray(drawn.resize((pixels.VIEW, pixels.VIEW), PILImage.Resampling.BICUBIC)).astype(int)


def test_half_ask_for_a_plain_digit_and_half_of_the_others_are_plain():
    for track in MIXED:
        drawn = [scene_of(track, "train", index) for index in range(200)]
        assert {scene.asked_tile.plain for scene in drawn} == {track is PLAIN}
        assert 0.4 < np.mean([tile.plain for scene in drawn for tile in scene.tiles[1:]]) < 0.6
    assert not any(tile.plain for index in range(20) for tile in scenes.make_scene(0, "train", index).tiles)


def test_the_kinds_are_asked_for_in_the_same_words():
    requests = [{track.task(0, "train", index).question for index in range(60)} for track in MIXED]
    assert requests[0] == requests[1]
    assert misfits(MIXED, MIXED[0]) == []


def test_validation_and_test_are_apart():
    for digit in scenes.CLASSES:
        parts = [set(scenes.digit_images(split, digit)) for split in ("train", "validation", "test")]
        assert all(parts)
        assert len(set.union(*parts)) == sum(map(len, parts))
        assert parts[1] | parts[2] == set(scenes.digit_images("held_out", digit))
    assert ENGRAVED.task(0, "validation", 3) != ENGRAVED.task(0, "test", 3) != PLAIN.task(0, "test", 3)


def test_scene_view_is_the_resized_drawing():
    for index in range(10):
        scene = scene_of(PLAIN, "train", index)
        assert np.abs(view(scene) - pixels.resized_scene(scene)).max() <= 2


def test_the_small_view_shows_plain_digits():
    """Nearest class mean of the asked cell's view, with the tile always in the same place and colour."""

    def data(split: scenes.Split) -> tuple[np.ndarray, np.ndarray]:
        images = [(digit, int(image)) for digit in scenes.CLASSES for image in scenes.digit_images(split, digit)[:40]]
        tiles = [
            scenes.Tile(color="red", row=1, column=1, digit=digit, image=image, plain=True) for digit, image in images
        ]
        views = [
            pixels.resized_scene(scenes.Scene(tiles=(tile,), claims=(0, 1), label="1"))[16:32, 16:32].ravel()
            for tile in tiles
        ]
        return np.stack(views).astype(float), np.array([digit for digit, _ in images])

    (points, digits), (held_points, held_digits) = data("train"), data("validation")
    means = np.stack([points[digits == digit].mean(axis=0) for digit in scenes.CLASSES])
    nearest = ((held_points[:, None] - means) ** 2).sum(axis=-1).argmin(axis=1)
    assert (np.array(scenes.CLASSES)[nearest] == held_digits).mean() > 0.9


def test_rows_say_their_kind_and_can_be_read_back(tmp_path):
    path = dataset.write(tmp_path / "test.parquet", seed=0, split="test", num_samples=12, tracks=MIXED)
    samples = read_samples([str(path)], ["image_zoom_in_tool"])
    assert [sample.track for sample in samples] == ["engraved", "plain"] * 6
    assert [dataset.parse_sample_id(sample.id)[0] for sample in samples] == [
        MIXED[n % 2].task(0, "test", n // 2) for n in range(12)
    ]
    assert all(sample.target_box is not None for sample in samples)


@pytest.fixture(scope="module")
def mixed_teacher(template: Template) -> Teacher:
    return Teacher(template, MIXED, mix=setting.PLAN.mix, max_calls=setting.PLAN.max_calls)


def test_the_base_learns_to_say_what_it_sees_and_no_more(mixed_teacher):
    rng = np.random.default_rng(0)
    for track in MIXED:
        task = track.task(0, "pretrain", 5)
        lesson = mixed_teacher._answer_at_once(task, track, rng)
        text = mixed_teacher.template.decode(lesson.token_ids)
        assert (phrases.conclusion(scene_of(track, "pretrain", 5).asked_tile.digit) in text) == (track is PLAIN)
        assert (phrases.UNSURE in text) == (track is ENGRAVED)
        assert (CHOICE_WEIGHT in lesson.weights) == (track is PLAIN)


def test_lessons_have_up_to_three_calls(mixed_teacher):
    rng = np.random.default_rng(0)
    views = Counter(len(mixed_teacher.joint_lesson(*mixed_teacher.task(0, index), rng).views) for index in range(300))
    assert set(views) == {0, 1, 2, 3, 4}
    assert sum(setting.PLAN.mix) == pytest.approx(1)


def test_the_teacher_is_right_at_once_on_plain_digits_and_guesses_on_others():
    right: dict[str, list[bool]] = {track.name: [] for track in MIXED}
    calls: Counter[str] = Counter()
    for index in range(1500):
        track = MIXED[index % 2]
        task = track.task(0, "train", index // 2)
        turns = setting.TEACHER.script(task, track, tools=True)
        calls[str(len(turns) - 1)] += 1
        if len(turns) == 1:
            right[track.name].append(f"Answer {task.label} is" in turns[0])
    assert all(right["plain"])
    assert 0.4 < np.mean(right["engraved"]) < 0.6
    assert 0.1 < (calls["1"] + calls["2"]) / 1500 < 0.2
    assert calls["2"] > 5


def test_a_probe_reads_plain_digits_too():
    targets = probe._plain_digits([scene_of(PLAIN, "pretrain", 0)])
    asked = scene_of(PLAIN, "pretrain", 0).asked_tile
    assert targets[0, asked.row * scenes.GRID + asked.column] == scenes.CLASSES.index(asked.digit)
    assert (targets == len(scenes.CLASSES)).sum() >= scenes.GRID**2 - scenes.NUM_TILES
    assert probe.Probe().plain is None
