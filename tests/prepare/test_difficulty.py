"""What a model can do already is left out of the data; and the commands on real engines."""

import json

import pyarrow.parquet as pq
import pytest

from arm_rl.core.json_lines import JsonLines, LinesError
from arm_rl.data.preferences import ROW_GROUP
from arm_rl.data.samples import read_samples
from arm_rl.demo import dataset
from arm_rl.prepare import difficulty
from arm_rl.prepare.difficulty import SampleRollouts, known_rollouts, report, write_filtered
from jobs import prepare_data
from tools import load_tools

NUM_SAMPLES = ROW_GROUP + 12


def judged(id, right, of=5):
    return SampleRollouts(id=id, track="digits", num_right=right, num_rollouts=of)


@pytest.fixture
def file(tmp_path):
    return dataset.write(tmp_path / "train.parquet", seed=0, split="train", num_samples=NUM_SAMPLES)


def rights(samples):
    """Right rollouts of each: all of them, none, some."""
    return {sample.id: judged(sample.id, (5, 0, 3)[number % 3]) for number, sample in enumerate(samples)}


@pytest.mark.parametrize(("never_right", "kept"), [("keep", {1, 2}), ("drop", {2})])
def test_rows_that_teach_something_are_kept_as_they_are(file, never_right, kept):
    samples = read_samples([str(file)], ["one"])
    out, num_rows = write_filtered(file, rights(samples), never_right, name=file.stem)
    assert out == file.with_name("train-filtered.parquet")
    wanted = [number for number in range(NUM_SAMPLES) if number % 3 in kept]
    assert num_rows == len(wanted)
    assert pq.read_table(out).equals(pq.read_table(file).take(wanted))


def test_rows_without_ids_are_told_by_their_place(file, tmp_path):
    bare = tmp_path / "bare.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["extra_info"]), bare, row_group_size=50)
    samples = read_samples([str(bare)], ["one"])
    out, _ = write_filtered(bare, rights(samples), "drop", name=bare.stem)
    assert pq.read_table(out).equals(pq.read_table(bare).take(list(range(2, NUM_SAMPLES, 3))))


def test_what_broke_is_left_out_and_counted(file):
    samples = read_samples([str(file)], ["one"])
    known = rights(samples[3:9])
    assert write_filtered(file, known, "keep", name=file.stem)[1] == 4
    found = report(samples[:9], known, 5, "drop")
    assert found["left_out"] == {"right in all rollouts": 2, "never right": 2, "sessions broke": 3}
    assert (found["kept"], found["histogram"]) == (2, {"digits": [2, 0, 0, 2, 0, 2]})


def test_another_number_of_rollouts_is_judged_anew(file, tmp_path):
    samples = read_samples([str(file)], ["one"])[:3]
    lines = tmp_path / "lines.jsonl"
    with JsonLines(lines) as open_lines:
        for one in rights(samples[:2]).values():
            open_lines.add(
                {"id": one.id, "track": one.track, "num_right": one.num_right, "num_rollouts": one.num_rollouts}
            )
    lines.write_text(lines.read_text() + '{"id": "cut')
    with JsonLines(lines) as open_lines:
        assert known_rollouts(samples, open_lines, 5) == rights(samples[:2])
        assert known_rollouts(samples, open_lines, 4) == {}
        open_lines.add({"id": "next"})
    assert lines.read_text().endswith('}\n{"id": "next"}\n')
    lines.write_text("no line\n{}\n")
    with pytest.raises(LinesError, match="lines.jsonl: line 1: not a JSON object"):
        JsonLines(lines)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_real_engines(local_ray, judge_folder, tmp_path, capsys, monkeypatch):
    """An untrained judge is never right, and never teaches: both commands say so, and neither asks twice."""
    file = dataset.write(tmp_path / "train.parquet", seed=0, split="train", num_samples=6)
    config = [
        "configs/demo.yaml",
        f"run.root={tmp_path}",
        f"model.path={judge_folder}",
        f"data.train=[{file}]",
        "data.held_out=[]",
    ]
    small = ["session.max_response_tokens=48", "metrics.wandb=disabled"]
    command = ["difficulty", *config, *small, "--rollouts", "2"]
    assert prepare_data.main(command) == 0
    told = capsys.readouterr().out.strip().splitlines()
    found = json.loads((tmp_path / "stage2-difficulty/report.json").read_text())
    assert found["histogram"] == {"digits": [6, 0, 0]}
    assert told[-1].startswith(f"done: {tmp_path / 'train-filtered.parquet'} (6 rows)")
    assert read_samples([str(tmp_path / "train-filtered.parquet")], list(load_tools(["configs/tools/digits.yaml"])))
    assert prepare_data.main(["trajectories", *config, *small]) == 1
    assert "not learned from: the form is broken: 6 sessions" in capsys.readouterr().err

    monkeypatch.setattr(difficulty, "cluster", None)  # nothing is started
    assert prepare_data.main([*command, "--never-right", "drop"]) == 0
    assert "never right: 6" in capsys.readouterr().out
