"""Checkpoints: whole or not there, the newest few, the newest one."""

import pytest

from arm_rl import checkpoint
from arm_rl.checkpoint import CheckpointError, latest, writing


def write(root, step, *, keep=2, content="weights", **state):
    with writing(root, step, {"step": step, **state}, keep) as folder:
        (folder / "model").write_text(content)


def break_off(root, step, error):
    """Writes half a checkpoint."""
    with writing(root, step, {}, 2) as folder:
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
    for step in (9, 10, 100, 20):
        write(tmp_path, step, keep=10)
    assert latest(tmp_path).step == 100


def test_the_newest_few_are_kept(tmp_path):
    for step in (1, 2, 9, 10, 11):
        write(tmp_path, step, keep=2)
        assert latest(tmp_path).step == step
    assert names(tmp_path) == ["10", "11"]
    write(tmp_path, 12, keep=1)
    assert names(tmp_path) == ["12"]


def test_nothing_is_removed_before_the_new_one_is_there(tmp_path):
    write(tmp_path, 1, keep=1)
    with writing(tmp_path, 2, {}, 1) as folder:
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
    with pytest.raises(OSError, match="disk full"):
        break_off(tmp_path, 1, OSError("disk full"))
    write(tmp_path, 1, content="first")
    write(tmp_path, 1, content="second")
    assert (latest(tmp_path).folder / "model").read_text() == "second"
    assert names(latest(tmp_path).folder) == ["model", "state.json"]


def test_folders_of_other_names_and_without_a_state_are_left_alone(tmp_path):
    for name in ("notes", "7", "8.partial", "-1"):
        (tmp_path / name).mkdir()
    (tmp_path / "9").write_text("a file")
    assert latest(tmp_path) is None
    write(tmp_path, 1, keep=1)
    assert latest(tmp_path).step == 1
    assert {"notes", "7", "-1", "9"} <= set(names(tmp_path))


def test_a_state_that_cannot_be_read_is_named(tmp_path):
    write(tmp_path, 1)
    write(tmp_path, 2)
    (tmp_path / "2" / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"2/state.json: not readable: .* remove the folder to go on from an older one"):
        latest(tmp_path)


def test_a_state_must_be_json(tmp_path):
    with pytest.raises(TypeError), writing(tmp_path, 1, {"cursor": object()}, 2):
        pass
    assert checkpoint.latest(tmp_path) is None
