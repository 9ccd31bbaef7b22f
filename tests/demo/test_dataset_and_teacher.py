"""The digits data set as the reader sees it, and the teacher's scripts."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from arm_rl.core import images, session
from arm_rl.core.config import SessionConfig
from arm_rl.core.parsing import is_well_formed_turn, parse_judgment
from arm_rl.data.preferences import ROW_GROUP
from arm_rl.data.samples import read_samples
from arm_rl.demo import dataset, phrases, scenes
from arm_rl.demo.tasks import Task, Track
from arm_rl.demo.teacher import ScriptedTeacher
from arm_rl.demo.tiles import Tiles, TilesTask
from arm_rl.demo.tracks import TRACKS, misfits
from tools import load_tools
from tools.execution.local import LocalTools

NUM_SAMPLES = 150
ALL_TRACKS = tuple(TRACKS.values())


def tiles(index: int) -> tuple[Task, Track]:
    return TRACKS["digits"].task(0, "train", index), TRACKS["digits"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return dataset.write(
        tmp_path_factory.mktemp("data") / "train.parquet", seed=0, split="train", num_samples=NUM_SAMPLES
    )


def test_equal_arguments_give_equal_bytes(file, tmp_path):
    assert (
        dataset.write(tmp_path / "again.parquet", seed=0, split="train", num_samples=NUM_SAMPLES).read_bytes()
        == file.read_bytes()
    )


def test_columns_and_row_groups(file):
    written = pq.ParquetFile(file)
    assert written.schema_arrow.names == ["data_source", "prompt", "images", "ability", "reward_model", "extra_info"]
    assert [written.metadata.row_group(number).num_rows for number in range(written.num_row_groups)] == [ROW_GROUP, 22]


def test_the_reader_gets_each_scene_back(file):
    samples = read_samples([str(file)], ["another_tool"])
    assert len(samples) == NUM_SAMPLES
    for index in (0, 1, 130, 149):
        sample, scene = samples[index], scenes.make_scene(0, "train", index)
        assert dataset.parse_sample_id(sample.id) == (TilesTask(scene=scene, key=(0, index)), TRACKS["digits"])
        assert (sample.label, sample.texts) == (scene.label, tuple(map(str, scene.claims)))
        assert (sample.tools, sample.expected_tools) == (("another_tool",), (Tiles.tool,))  # all of the run are offered
        assert sample.target_box == scene.asked_tile.box
        assert sample.messages[0].image_names == ("original_image",)
        assert sample.messages[0].text == phrases.request(scene.question, scene.claims)
        assert (np.asarray(images.load(sample.images[0]).pil()) == scenes.draw(scene)).all()


def test_an_id_of_something_else_is_refused():
    with pytest.raises(ValueError, match="digits, pages, texts"):
        dataset.parse_sample_id("other-train-0-1")


def test_tracks_take_turns_and_come_back_from_the_file(tmp_path):
    path = dataset.write(tmp_path / "held_out.parquet", seed=1, split="held_out", num_samples=60, tracks=ALL_TRACKS)
    samples = read_samples([str(path)], ["one", "two"])
    assert [sample.track for sample in samples[:6]] == ["digits", "pages", "texts"] * 2
    for number, sample in enumerate(samples):
        task, track = dataset.parse_sample_id(sample.id)
        assert task == ALL_TRACKS[number % 3].task(1, "held_out", number // 3)
        assert (sample.label, sample.texts, sample.expected_tools) == (task.label, task.texts, (track.tool,))
        assert sample.tools == ("one", "two")
        assert len(sample.images) == (track.name == "digits")
        assert (sample.target_box is None) == (track.name != "digits")
        if track.name == "texts":
            assert not any(text in sample.messages[0].text for text in sample.texts)


@pytest.mark.parametrize("tracks", [ALL_TRACKS[:1], ALL_TRACKS], ids=["one track", "three tracks"])
def test_scripts_repeat_and_are_well_formed(tracks, template):
    teacher = ScriptedTeacher(tracks=tracks)
    drawn = [(track.task(0, "train", index), track) for track in tracks for index in range(60)]
    for task, track in drawn:
        script = teacher.script(task, track, tools=True)
        assert script == teacher.script(task, track, tools=True)
        assert all(is_well_formed_turn(turn, template.tool_format) for turn in script)
        assert parse_judgment(script[-1]) in ("1", "2")
        calls = [template.tool_format.parse(turn) for turn in script]
        assert [call is not None for call in calls] == [True] * (len(script) - 1) + [False]
    scripts = [
        [ScriptedTeacher(seed=seed, tracks=tracks).script(*one, tools=True) for one in drawn[:20]] for seed in (0, 1)
    ]
    assert scripts[0] != scripts[1]


def test_shares_are_those_asked_for(template):
    teacher = ScriptedTeacher(call_share=0.5, right_place_share=0.5, near_place_share=0.25)
    right = other = empty = direct = 0
    num_scenes = 1000
    for index in range(num_scenes):
        scene = scenes.make_scene(0, "train", index)
        script = teacher.script(*tiles(index), tools=True)
        if len(script) == 1:
            direct += 1
            continue
        box = tuple(template.tool_format.parse(script[0]).arguments["bbox_2d"])
        if box == scene.asked_tile.box:
            right += 1
            assert script[1] == phrases.answer_turn(scene.label, phrases.conclusion(scene.asked_tile.digit))
        else:
            other += box in [tile.box for tile in scene.tiles[1:]]
            empty += box not in [tile.box for tile in scene.tiles]
            assert phrases.UNCLEAR in script[1]
    assert direct / num_scenes == pytest.approx(0.5, abs=0.05)
    assert right / (num_scenes - direct) == pytest.approx(0.5, abs=0.07)
    # a random cell may hold another tile
    assert other / (num_scenes - direct) == pytest.approx(0.25 + 0.25 * 2 / 15, abs=0.06)
    assert empty / (num_scenes - direct) == pytest.approx(0.25 * 13 / 15, abs=0.06)


@pytest.mark.parametrize("track", ALL_TRACKS, ids=TRACKS)
def test_of_several_tools_the_teacher_often_takes_a_wrong_one(track, template):
    teacher = ScriptedTeacher(tracks=ALL_TRACKS, call_share=1.0, stray_share=0.6, right_place_share=1.0)
    called: dict[str, int] = {}
    num_tasks = 600
    for index in range(num_tasks):
        task = track.task(0, "train", index)
        call, answer = teacher.script(task, track, tools=True)
        name = template.tool_format.parse(call).name
        called[name] = called.get(name, 0) + 1
        assert (phrases.UNCLEAR in answer) == (name != track.tool)
        assert name != track.tool or parse_judgment(answer) == task.label
    assert called.pop(track.tool) / num_tasks == pytest.approx(0.4, abs=0.06)
    assert set(called) == {tool.tool for tool in misfits(ALL_TRACKS, track)}
    assert all(number / num_tasks == pytest.approx(0.2, abs=0.05) for number in called.values())


def test_guesses_are_right_half_the_time():
    teacher = ScriptedTeacher(call_share=0.0)
    drawn = [tiles(index) for index in range(800)]
    right = sum(parse_judgment(teacher.script(task, track, tools=True)[0]) == task.label for task, track in drawn)
    assert right / len(drawn) == pytest.approx(0.5, abs=0.06)


def test_without_tools_the_teacher_answers_at_once():
    assert len(ScriptedTeacher(call_share=1.0).script(*tiles(0), tools=False)) == 1


async def test_the_teacher_runs_through_the_real_session_loop(file, template):
    tools = load_tools(["configs/tools/digits.yaml"])
    sample = read_samples([str(file)], list(tools))[0]
    teacher = ScriptedTeacher(call_share=1.0, right_place_share=1.0)
    limits = SessionConfig(max_turns=3, last_turn_notice=phrases.NOTICE)
    done = await session.run(sample, teacher.policy(sample, template), LocalTools(tools), limits, template=template)
    assert done.trajectory.error is None
    assert done.trajectory.end == "answered"
    assert [event.call.arguments["bbox_2d"] for event in done.trajectory.tool_events] == [list(sample.target_box)]
    (shown,) = done.trajectory.tool_events[0].image_names
    crop = next(done.images[info.key] for info in done.trajectory.images if info.name == shown)
    scene = scenes.make_scene(0, "train", 0)
    assert (np.asarray(crop.pil()) == scenes.draw_cell(scene, scene.asked_tile.row, scene.asked_tile.column)).all()
    assert parse_judgment(done.trajectory.turns[-1].text) == sample.label
