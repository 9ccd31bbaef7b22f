"""What is written to disk comes back, all of it."""

import dataclasses
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arm_rl import trajectory_log
from arm_rl.core.types import Scored, ToolCall
from tests.trajectories import looked, make_sample, make_scored, make_turn, zoom_event


def roundtrip(folder: Path, scored, samples, images=None, **where):
    path = folder / "trajectories" / "x.parquet"
    trajectory_log.write(path, scored, {sample.id: sample for sample in samples}, images or {}, **where)
    return trajectory_log.read(path)


def test_nothing_is_lost(tmp_path):
    right, images = looked()
    broken = make_scored(end="aborted", reward=None, error="Traceback ...", index=1)
    refused = make_scored(make_turn("", zoom_event(status="bad_arguments"), logprobs=(), num_tokens=0), reward=0.0, index=2, group_id="g1")
    samples = [make_sample(), make_sample("s1", target_box=None, images=(), tools=(), expected_tools=("a", "b"))]
    unscored = dataclasses.replace(right, reward=None, parts={}, error="the scorer failed")
    other = dataclasses.replace(right, trajectory=dataclasses.replace(right.trajectory, sample_id="s1", error="é\n", seconds=1 / 3))
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
    assert trajectory_log.read(tmp_path / "trajectories" / "x.parquet").scored == (scored,)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=30)
@given(name=st.text(st.characters(codec=None), max_size=5), arguments=st.dictionaries(st.text(), JSON, max_size=3), text=st.text())
def test_whatever_a_model_calls_comes_back(tmp_path_factory, name, arguments, text):
    event = dataclasses.replace(zoom_event(), call=ToolCall(name=name, arguments=arguments, error=None), text=text)
    scored: Scored = make_scored(make_turn(text, event))
    assert roundtrip(tmp_path_factory.mktemp("log"), [scored], [make_sample()]).scored == (scored,)


def test_files_of_a_stage_sort_by_step():
    assert sorted([trajectory_log.file_name("stage2", 100), trajectory_log.file_name("stage2", 20)])[0] == "stage2-000020.parquet"
