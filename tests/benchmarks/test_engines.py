"""A benchmark through own engines, tools and executors; the trajectories are written by tasks of their own."""

import json

import pytest

from arm_rl.core import trajectory_file
from jobs import evaluate
from tests.benchmarks import published

SMALL = [
    "model.dtype=float32",
    "placement.use_gpu=false",
    "session.max_prompt_tokens=3500",
    "session.max_response_tokens=64",
    "session.max_turns=2",
    "rollout.max_model_len=4096",
    "rollout.max_num_seqs=16",
    "rollout.max_images=4",
]


@pytest.mark.slow
def test_own_engines(local_ray, judge_folder, tmp_path, capsys):
    bench = f"vstar={published.vstar(tmp_path)}"
    command = [str(judge_folder), bench, "--both", "--out", str(tmp_path / "run"), *SMALL]
    assert evaluate.main(command) == 0
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "run/summary.json").read_text())["vstar"]
    assert {way: (one["num_items"], one["missing"]) for way, one in found.items()} == {
        "tools": (4, 0),
        "no tools": (4, 0),
    }
    logs = {
        way: trajectory_file.read(tmp_path / f"run/trajectories/vstar-{way}-evaluation-000000.parquet")
        for way in ("tools", "no-tools")
    }
    for log in logs.values():
        assert len(log.scored) == 4
        assert all(one.trajectory.num_sampled_tokens for one in log.scored)
        assert {info.key for one in log.scored for info in one.trajectory.images} == set(log.images)
    assert {sample.tools for sample in logs["no-tools"].samples.values()} == {()}
    assert {sample.tools for sample in logs["tools"].samples.values()} == {("image_zoom_in_tool",)}
    assert evaluate.main(command) == 0, "nothing is left to ask: no engine is started"
    assert capsys.readouterr().out == out
