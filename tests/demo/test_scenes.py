"""Scenes: repeatable, balanced, split by digit image; the small view hides the digit and the crop shows it."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image as PILImage

from arm_rl.demo import pixels, scenes


def test_equal_seeds_give_equal_scenes_and_others_differ():
    def drawn(seed: int) -> bytes:
        return b"".join(scenes.draw(scenes.make_scene(seed, "train", index)).tobytes() for index in range(4))

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


def test_splits_share_no_scene_and_held_out_no_digit_image():
    assert scenes.make_scene(0, "train", 0) != scenes.make_scene(0, "pretrain", 0)
    for digit in scenes.CLASSES:
        train, held_out = set(scenes.digit_images("train", digit)), set(scenes.digit_images("held_out", digit))
        assert train
        assert held_out
        assert not train & held_out
    used = {tile.image for index in range(96) for tile in scenes.make_scene(0, "held_out", index).tiles}
    assert used <= {image for digit in scenes.CLASSES for image in scenes.digit_images("held_out", digit)}


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_claims_and_labels_are_balanced_exactly(split):
    drawn = [scenes.make_scene(5, split, index) for index in range(96)]
    assert Counter(scene.label for scene in drawn) == {"1": 48, "2": 48}
    ordered = Counter((scene.claims, scene.label) for scene in drawn)
    assert len(ordered) == 24  # 4 x 3 pairs of claims, either of them right
    assert set(ordered.values()) == {4}
    wrong = [scene.claims[1 - (int(scene.label) - 1)] for scene in drawn]
    assert (
        sum(claim in [tile.digit for tile in scene.tiles[1:]] for scene, claim in zip(drawn, wrong, strict=True)) == 48
    )


def test_other_tiles_say_as_much_for_one_claim_as_for_the_other():
    for index in range(96):
        scene = scenes.make_scene(2, "train", index)
        others = [tile.digit for tile in scene.tiles[1:]]
        assert others.count(scene.claims[0]) == others.count(scene.claims[1])
        assert scene.asked_tile.digit == scene.claims[int(scene.label) - 1]


def test_tiles_have_colours_and_cells_of_their_own():
    for index in range(50):
        tiles = scenes.make_scene(1, "train", index).tiles
        assert len({tile.color for tile in tiles}) == len({tile.box for tile in tiles}) == scenes.NUM_TILES


def test_the_small_view_hides_the_digit_and_the_crop_shows_it():
    """The same tile with another digit: nearly the same view, a plainly different crop."""
    tile = scenes.make_scene(0, "train", 0).asked_tile
    views, crops = [], []
    for digit in scenes.CLASSES:
        image = int(scenes.digit_images("train", digit)[0])
        other = scenes.Tile(color=tile.color, row=tile.row, column=tile.column, digit=digit, image=image)
        scene = scenes.Scene(tiles=(other,), claims=(0, 1), label="1")
        views.append(_view(scene))
        crops.append(scenes.draw_cell(scene, tile.row, tile.column).astype(int))
    for number in range(1, len(views)):
        assert np.abs(views[number] - views[0]).max() <= 2  # of 255
        assert np.abs(crops[number] - crops[0]).max() >= scenes.DEPTH


def test_a_probe_reads_crops_and_is_at_chance_on_views():
    """Nearest class mean, trained on the digit images of `train` and tried on those of `held_out`, everything else held fixed."""

    def data(split: scenes.Split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        images = [(digit, image) for digit in scenes.CLASSES for image in scenes.digit_images(split, digit)[:40]]
        drawn = [_one_tile(digit, int(image)) for digit, image in images]
        views = np.stack([_view(scene)[16:32, 16:32].ravel() for scene in drawn])
        crops = np.stack([scenes.draw_cell(scene, 1, 1).astype(int).ravel() for scene in drawn])
        return views, crops, np.array([digit for digit, _ in images])

    views, crops, digits = data("train")
    held_views, held_crops, held_digits = data("held_out")
    assert _nearest_mean(crops, digits, held_crops, held_digits) > 0.9
    assert np.abs(held_views - views.mean(axis=0)).max() <= 2
    rng = np.random.default_rng(0)
    # what a view of a varied scene differs by anyway
    noisy, held_noisy = (v + rng.normal(0, 2, v.shape) for v in (views, held_views))
    assert _nearest_mean(noisy, digits, held_noisy, held_digits) < 0.45  # chance is 0.25 of four


def test_draw_cell_is_a_crop_of_the_drawing():
    scene = scenes.make_scene(0, "train", 7)
    drawn = scenes.draw(scene)
    for row in range(scenes.GRID):
        for column in range(scenes.GRID):
            whole = drawn[
                row * scenes.CELL : (row + 1) * scenes.CELL, column * scenes.CELL : (column + 1) * scenes.CELL
            ]
            assert (scenes.draw_cell(scene, row, column) == whole).all()


def test_scene_view_is_the_resized_drawing():
    for index in range(10):
        scene = scenes.make_scene(0, "train", index)
        assert np.abs(_view(scene) - pixels.resized_scene(scene)).max() <= 2


def _view(scene: scenes.Scene) -> np.ndarray:
    drawn = PILImage.fromarray(scenes.draw(scene))
    return np.asarray(drawn.resize((64, 64), PILImage.Resampling.BICUBIC)).astype(int)


def _one_tile(digit: int, image: int) -> scenes.Scene:
    return scenes.Scene(
        tiles=(scenes.Tile(color="red", row=1, column=1, digit=digit, image=image),), claims=(0, 1), label="1"
    )


def _nearest_mean(points: np.ndarray, labels: np.ndarray, held_points: np.ndarray, held_labels: np.ndarray) -> float:
    classes = np.unique(labels)
    means = np.stack([points[labels == label].mean(axis=0) for label in classes])
    distances = ((held_points[:, None] - means[None]) ** 2).sum(axis=-1)
    return float((classes[distances.argmin(axis=1)] == held_labels).mean())
