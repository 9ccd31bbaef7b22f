"""Checkpoints: whole or not there, the newest few, the newest good one."""

import errno
import logging
import re

import pytest

from arm_rl.run import checkpoint
from arm_rl.run.checkpoint import CheckpointError, latest, steps, write_checkpoint


def write(root, step, *, keep=2, content="weights", **state):
    with write_checkpoint(root, step, {"step": step, **state}, keep) as folder:
        (folder / "model").write_text(content)


def break_off(root, step, error):
    """Writes half a checkpoint."""
    with write_checkpoint(root, step, {}, 2) as folder:
        (folder / "half").write_text("half")
        raise error


def names(root):
    return sorted(path.name for path in root.iterdir())


def test_a_checkpoint_holds_what_was_written(tmp_path):
    write(tmp_path, 3, cursor={"epoch": 1, "position": 5})
    found = latest(tmp_path)
    assert (found.step, found.state) == (3, {"step": 3, "cursor": {"epoch": 1, "position": 5}})
    assert (found.folder / "model").read_text() == "weights"


def test_none_yet(tmp_path):
    assert latest(tmp_path) is None
    assert latest(tmp_path / "not there") is None


def test_the_newest_is_the_highest_step_not_the_last_in_the_alphabet(tmp_path):
    for step in (9, 10, 20, 100):
        write(tmp_path, step, keep=10)
    assert latest(tmp_path).step == 100
    assert steps(tmp_path) == [9, 10, 20, 100]


def test_the_newest_few_are_kept(tmp_path):
    for step in (1, 2, 9, 10, 11):
        write(tmp_path, step, keep=2)
        assert latest(tmp_path).step == step
    assert names(tmp_path) == ["10", "11"]
    write(tmp_path, 12, keep=1)
    assert names(tmp_path) == ["12"]


def test_nothing_is_removed_before_the_new_one_is_there(tmp_path):
    write(tmp_path, 1, keep=1)
    with write_checkpoint(tmp_path, 2, {}, 1) as folder:
        assert latest(tmp_path).step == 1
        (folder / "model").write_text("half")
        assert latest(tmp_path).step == 1
    assert latest(tmp_path).step == 2


def test_one_that_was_broken_off_is_not_there(tmp_path):
    write(tmp_path, 1)
    with pytest.raises(KeyboardInterrupt):
        break_off(tmp_path, 2, KeyboardInterrupt())
    assert latest(tmp_path).step == 1
    write(tmp_path, 3)
    assert names(tmp_path) == ["1", "3"], "what was left of it is removed with the next one"


def test_one_may_be_written_again(tmp_path):
    write(tmp_path, 1, content="first")
    write(tmp_path, 1, content="second")
    assert (latest(tmp_path).folder / "model").read_text() == "second"
    assert names(latest(tmp_path).folder) == ["checksums.json", "model", "state.json"]
    assert names(tmp_path) == ["1"]


def test_a_full_disk_leaves_the_one_before_and_says_so(tmp_path):
    write(tmp_path, 1)
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(
        CheckpointError,
        match=r"/2: the checkpoint could not be written: .*No space left on device; the ones before it stand",
    ):
        break_off(tmp_path, 2, full)
    assert names(tmp_path) == ["1"], "half a checkpoint does not keep the disk full"
    assert latest(tmp_path).step == 1


def test_folders_of_other_names_and_without_a_state_are_left_alone(tmp_path):
    for name in ("notes", "7", "8.partial", "-1"):
        (tmp_path / name).mkdir()
    (tmp_path / "9").write_text("a file")
    assert latest(tmp_path) is None
    write(tmp_path, 1, keep=1)
    assert latest(tmp_path).step == 1
    assert {"notes", "7", "-1", "9"} <= set(names(tmp_path))


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


BREAKS = {
    "flipped bit": (lambda folder: flip_bit(folder / "model"), r"2/model: its content is not what was written"),
    "cut file": (lambda folder: (folder / "model").write_text("wei"), r"2/model: its content is not what was written"),
    "missing file": (lambda folder: (folder / "model").unlink(), r"2/model: missing"),
    "state": (
        lambda folder: (folder / "state.json").write_text("{"),
        r"2/state.json: its content is not what was written",
    ),
    "no checksums": (lambda folder: (folder / "checksums.json").unlink(), r"2/checksums.json: not readable"),
    "broken checksums": (lambda folder: (folder / "checksums.json").write_text("{"), r"2/checksums.json: not readable"),
    "missing rank file": (lambda folder: (folder / "deep" / "rank_1").unlink(), r"2/deep/rank_1: missing"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_one_is_passed_over_and_named(tmp_path, caplog, name):
    change, message = BREAKS[name]
    for step in (1, 2):
        with write_checkpoint(tmp_path, step, {"step": step}, 2) as folder:
            (folder / "model").write_text("weights")
            (folder / "deep").mkdir()
            (folder / "deep" / "rank_1").write_text("shard")
    change(tmp_path / "2")
    with caplog.at_level(logging.WARNING):
        assert latest(tmp_path).step == 1
    assert re.search(message, caplog.text)
    write(tmp_path, 2, keep=2)
    assert latest(tmp_path).step == 2, "written again, the good one takes its place"
    assert names(tmp_path) == ["1", "2"]


def test_a_run_that_went_back_does_not_count_the_broken_ones_ahead_of_it(tmp_path):
    for step in (10, 20, 30):
        write(tmp_path, step, keep=3)
    flip_bit(tmp_path / "20" / "model")
    flip_bit(tmp_path / "30" / "model")
    assert latest(tmp_path).step == 10
    write(tmp_path, 15, keep=2)
    assert names(tmp_path) == ["10", "15"]


def test_where_all_are_broken_the_run_does_not_begin_anew_by_itself(tmp_path):
    for step in (1, 2):
        write(tmp_path, step)
        flip_bit(tmp_path / str(step) / "model")
    with pytest.raises(
        CheckpointError, match=r"2/model: its content .*there is no other one that is whole: remove .* to begin anew"
    ):
        latest(tmp_path)


def test_a_state_must_be_json(tmp_path):
    with pytest.raises(TypeError), write_checkpoint(tmp_path, 1, {"cursor": object()}, 2):
        pass
    assert checkpoint.latest(tmp_path) is None
