"""The digits data set as the reader sees it, and the teacher's scripts."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from arm_rl.core import images, session
from arm_rl.core.config import SessionConfig
from arm_rl.core.parsing import parse_judgment, turn_is_well_formed
from arm_rl.core.session import Memory, ToolResult
from arm_rl.core.types import ToolCall
from arm_rl.data import read_samples
from arm_rl.digits import dataset, phrases, scenes
from arm_rl.digits.teacher import ScriptedTeacher

NUM_SAMPLES = 150


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return dataset.write(tmp_path_factory.mktemp("data") / "train.parquet", seed=0, split="train", num_samples=NUM_SAMPLES)


def test_equal_arguments_give_equal_bytes(file, tmp_path):
    assert dataset.write(tmp_path / "again.parquet", seed=0, split="train", num_samples=NUM_SAMPLES).read_bytes() == file.read_bytes()


def test_columns_and_row_groups(file):
    written = pq.ParquetFile(file)
    assert written.schema_arrow.names == ["data_source", "prompt", "images", "ability", "reward_model", "extra_info"]
    assert [written.metadata.row_group(number).num_rows for number in range(written.num_row_groups)] == [dataset.ROW_GROUP, 22]


def test_the_reader_gets_each_scene_back(file):
    samples = read_samples([str(file)], ["another_tool"])
    assert len(samples) == NUM_SAMPLES
    for index in (0, 1, 130, 149):
        sample, scene = samples[index], scenes.make_scene(0, "train", index)
        assert dataset.scene_of(sample.id) == (scene, (0, index))
        assert (sample.label, sample.texts) == (scene.label, tuple(map(str, scene.claims)))
        assert (sample.tools, sample.expected_tools) == ((phrases.TOOL,), (phrases.TOOL,))
        assert sample.target_box == scene.asked.box
        assert sample.messages[0].image_names == ("original_image",)
        assert sample.messages[0].text == phrases.request(scene.question, scene.claims)
        assert (np.asarray(images.load(sample.images[0]).pil()) == scenes.draw(scene)).all()


def test_an_id_of_something_else_is_refused():
    with pytest.raises(ValueError, match="digits task"):
        dataset.scene_of("other-train-0-1")


def test_scripts_repeat_and_are_well_formed(template):
    for index in range(60):
        scene = scenes.make_scene(0, "train", index)
        script = ScriptedTeacher().script(scene, (0, index), tools=True)
        assert script == ScriptedTeacher().script(scene, (0, index), tools=True)
        assert all(turn_is_well_formed(turn, template.tool_format) for turn in script)
        assert parse_judgment(script[-1]) in ("1", "2")
        calls = [template.tool_format.parse(turn) for turn in script]
        assert [call is not None for call in calls] == [True] * (len(script) - 1) + [False]
    scripts = [[ScriptedTeacher(seed=seed).script(scene, (0, number), tools=True) for number in range(20)] for seed in (0, 1)]
    assert scripts[0] != scripts[1]


def test_shares_are_those_asked_for(template):
    teacher = ScriptedTeacher(call_share=0.5, right_box_share=0.5, other_tile_share=0.25)
    right = other = empty = direct = 0
    num_scenes = 1000
    for index in range(num_scenes):
        scene = scenes.make_scene(0, "train", index)
        script = teacher.script(scene, (0, index), tools=True)
        if len(script) == 1:
            direct += 1
            continue
        box = tuple(template.tool_format.parse(script[0]).arguments["bbox_2d"])
        if box == scene.asked.box:
            right += 1
            assert script[1] == phrases.answer_turn(scene.label, phrases.seen(scene.asked.digit))
        else:
            other += box in [tile.box for tile in scene.tiles[1:]]
            empty += box not in [tile.box for tile in scene.tiles]
            assert phrases.UNCLEAR in script[1]
    assert direct / num_scenes == pytest.approx(0.5, abs=0.05)
    assert right / (num_scenes - direct) == pytest.approx(0.5, abs=0.07)
    assert other / (num_scenes - direct) == pytest.approx(0.25 + 0.25 * 2 / 15, abs=0.06)  # a random cell may hold another tile
    assert empty / (num_scenes - direct) == pytest.approx(0.25 * 13 / 15, abs=0.06)


def test_guesses_are_right_half_the_time():
    teacher = ScriptedTeacher(call_share=0.0)
    drawn = [scenes.make_scene(0, "train", index) for index in range(800)]
    right = sum(parse_judgment(teacher.script(scene, (0, index), tools=True)[0]) == scene.label for index, scene in enumerate(drawn))
    assert right / len(drawn) == pytest.approx(0.5, abs=0.06)


def test_without_tools_the_teacher_answers_at_once():
    teacher = ScriptedTeacher(call_share=1.0)
    script = teacher.script(scenes.make_scene(0, "train", 0), (0, 0), tools=False)
    assert len(script) == 1


async def test_the_teacher_runs_through_the_real_session_loop(file, template):
    sample = read_samples([str(file)], [])[0]
    teacher = ScriptedTeacher(call_share=1.0, right_box_share=1.0, other_tile_share=0.0)
    asked = []

    async def zoom(call: ToolCall, memory: Memory) -> ToolResult:
        asked.append(call.arguments["bbox_2d"])
        return ToolResult(status="ok", text="", images=(memory.images["original_image"],))

    limits = SessionConfig(max_turns=3, last_turn_notice=phrases.NOTICE)
    done = await session.run(sample, teacher.policy(sample, template), zoom, limits, template=template)
    assert done.trajectory.error is None
    assert done.trajectory.end == "answered"
    assert asked == [list(sample.target_box)]
    assert parse_judgment(done.trajectory.turns[-1].text) == sample.label
