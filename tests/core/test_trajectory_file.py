"""What is written to disk comes back, all of it."""

import dataclasses
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arm_rl.core import trajectory_file
from arm_rl.core.types import ImageInfo, ScoredTrajectory, ToolCall
from tests.support.trajectories import looked, make_image, make_sample, make_scored, make_turn, zoom_event


def roundtrip(folder: Path, scored, samples, images=None, **where):
    path = folder / "trajectories" / "x.parquet"
    trajectory_file.write(path, scored, {sample.id: sample for sample in samples}, images or {}, **where)
    return trajectory_file.read(path)


def test_nothing_is_lost(tmp_path):
    right, images = looked()
    broken = make_scored(end="aborted", reward=None, error="Traceback ...", index=1)
    refused = make_scored(
        make_turn("", zoom_event(status="bad_arguments"), logprobs=(), num_tokens=0), reward=0.0, index=2, group_id="g1"
    )
    samples = [make_sample(), make_sample("s1", target_box=None, images=(), tools=(), expected_tools=("a", "b"))]
    unscored = dataclasses.replace(right, reward=None, parts={}, error="the scorer failed")
    other = dataclasses.replace(
        right, trajectory=dataclasses.replace(right.trajectory, sample_id="s1", error="é\n", seconds=1 / 3)
    )
    log = roundtrip(tmp_path, [right, broken, refused, unscored, other], samples, images, stage="stage2", step=40)
    assert log.scored == (right, broken, refused, unscored, other)
    assert log.samples == {sample.id: sample for sample in samples}
    assert log.images == images
    assert (log.stage, log.step) == ("stage2", 40)


def test_an_image_is_written_once_and_only_if_it_is_shown(tmp_path):
    scored, images = looked()
    _, unrelated = looked()
    roundtrip(tmp_path, [scored] * 5, [make_sample()], images | {"unused": next(iter(unrelated.values()))})
    assert sorted(pq.read_table(tmp_path / "trajectories/images/x.parquet").column("key").to_pylist()) == sorted(images)


def test_a_missing_image_leaves_its_key(tmp_path):
    scored, _ = looked()
    log = roundtrip(tmp_path, [scored], [make_sample()])
    assert log.images == {}
    assert log.scored[0].trajectory.images == scored.trajectory.images


def test_no_trajectories_are_a_file_too(tmp_path):
    assert roundtrip(tmp_path, [], [], stage="sft", step=1).scored == ()


def test_a_failed_write_leaves_the_earlier_file(tmp_path):
    scored, images = looked()
    roundtrip(tmp_path, [scored], [make_sample()], images)
    broken = dataclasses.replace(scored, reward="not a number")
    with pytest.raises(Exception, match="not a number"):
        roundtrip(tmp_path, [broken], [make_sample()], images)
    assert trajectory_file.read(tmp_path / "trajectories" / "x.parquet").scored == (scored,)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=30)
@given(
    name=st.text(st.characters(codec=None), max_size=5),
    arguments=st.dictionaries(st.text(), JSON, max_size=3),
    text=st.text(),
)
def test_whatever_a_model_calls_comes_back(tmp_path_factory, name, arguments, text):
    event = dataclasses.replace(zoom_event(), call=ToolCall(name=name, arguments=arguments, error=None), text=text)
    scored: ScoredTrajectory = make_scored(make_turn(text, event))
    assert roundtrip(tmp_path_factory.mktemp("log"), [scored], [make_sample()]).scored == (scored,)


def test_files_of_a_stage_sort_by_step():
    assert (
        sorted([trajectory_file.file_name("stage2", 100), trajectory_file.file_name("stage2", 20)])[0]
        == "stage2-000020.parquet"
    )


def many(folder: Path, num_rows: int = 150) -> Path:
    """Rows of several row groups, each with an image of its own."""
    scored, images = [], {}
    for row in range(num_rows):
        one, _ = looked()
        image = make_image((row, 0, 0))
        infos = (ImageInfo(name="original_image", key=image.key),)
        trajectory = dataclasses.replace(one.trajectory, index=row, sample_id=f"s{row}", images=infos)
        scored.append(dataclasses.replace(one, trajectory=trajectory))
        images[image.key] = image
    samples = {f"s{row}": make_sample(f"s{row}") for row in range(num_rows)}
    path = folder / "trajectories" / "many.parquet"
    trajectory_file.write(path, scored, samples, images, stage="stage2", step=7)
    return path


def test_some_rows_and_their_images_are_read_without_the_others(tmp_path):
    path = many(tmp_path)
    assert pq.ParquetFile(path).num_row_groups == 3
    log = trajectory_file.read(path)
    found = trajectory_file.read_rows(path, [149, 0, 64])
    assert [scored for scored, _ in found] == [log.scored[row] for row in (149, 0, 64)]
    assert [sample.id for _, sample in found] == ["s149", "s0", "s64"]
    keys = [scored.trajectory.images[0].key for scored, _ in found]
    assert trajectory_file.read_images(path, [*keys, "unknown"]) == {key: log.images[key] for key in keys}
    for row in (150, -1):
        with pytest.raises(IndexError):
            trajectory_file.read_rows(path, [row])


def test_a_file_that_was_written_again_is_read_again(tmp_path):
    path = many(tmp_path, 3)
    trajectory_file.read_rows(path, [2])
    path = many(tmp_path, 2)
    with pytest.raises(IndexError):
        trajectory_file.read_rows(path, [2])


def test_light_rows_have_calls_but_no_tokens(tmp_path):
    path = many(tmp_path)
    assert trajectory_file.read_stage_and_step(path) == ("stage2", 7)
    rows = list(trajectory_file.read_summaries(path))
    assert [row["index"] for row in rows] == list(range(150))
    assert [[event["status"] for event in turn["tool_events"]] for turn in rows[80]["turns"]] == [["ok"], []]
    assert "token_ids" not in rows[0]["turns"][0]


def test_text_is_found_wherever_it_stands(tmp_path):
    path = many(tmp_path)
    everywhere = list(range(150))
    assert trajectory_file.find_rows_with_text(path, "TOO SMALL") == everywhere  # a thought
    assert trajectory_file.find_rows_with_text(path, "which digit") == everywhere  # the question
    assert trajectory_file.find_rows_with_text(path, "t.o small") == []  # a text, no pattern
    refused = make_scored(make_turn("é", zoom_event(status="failed")), make_turn(""))
    roundtrip(tmp_path, [make_scored(make_turn("x")), refused], [make_sample()])
    path = tmp_path / "trajectories" / "x.parquet"
    assert trajectory_file.find_rows_with_text(path, "error: NO") == [1]  # an observation
    assert trajectory_file.find_rows_with_text(path, "É") == [1]
