"""The benchmarks' command line: one benchmark keeps its numbers, and all of them make a summary."""

import argparse
import json

import pytest

from arm_rl.core.config import ConfigError
from arm_rl.core.errors import UserError
from arm_rl.experiments.bench import summary
from arm_rl.experiments.bench.benchmark import Measurement, SpeedBenchmark, Workspace
from arm_rl.experiments.bench.result import Result
from jobs import bench


def result(key: str) -> Result:
    return Result.of(key=key, what="w", goal=1.0, unit="steps/s", ours=[2.0, 3.0], other=[2.0, 2.0])


def test_one_benchmark_keeps_its_numbers(local_ray, tmp_path, monkeypatch, capsys):
    asked = []

    def measure(settings: str, workspace: Workspace) -> Measurement:
        asked.append((settings, workspace.kept, workspace.temporary.is_dir()))
        return Measurement(ours=[2.0, 3.0], other=[2.0, 2.0], notes=[], details={})

    benchmark = SpeedBenchmark(
        key="vs_trl", what="w", unit="steps/s", goal=1.0, settings="full", quick="small", measure=measure
    )
    monkeypatch.setattr(bench, "load_benchmarks", lambda: {"vs_trl": (benchmark,)})
    line = bench.measure_one(argparse.Namespace(out=tmp_path, key="vs_trl", quick=True))
    assert asked == [("small", tmp_path, True)]
    assert str(tmp_path / "vs_trl.json") in line
    assert summary.read(tmp_path / "vs_trl.json") == [result("vs_trl")]
    assert "1.25" in capsys.readouterr().out


def test_the_help_lists_each_benchmark():
    assert list(bench.BENCHMARKS) == list(bench.load_benchmarks())


def test_a_summary_is_made_of_what_was_measured_before(tmp_path):
    for key in bench.BENCHMARKS:
        summary.save(tmp_path / f"{key}.json", [result(key)])
    line = bench.measure_all(argparse.Namespace(out=tmp_path, resume=True, quick=False))
    assert str(tmp_path / "summary.json") in line
    written = json.loads((tmp_path / "summary.json").read_text())
    assert list(written["results"]) == list(bench.BENCHMARKS)
    assert all(one["met"] for one in written["results"].values())
    assert "1.25 (1.00 to 1.50)" in (tmp_path / "table.md").read_text()
    drawn = (tmp_path / "plot.svg").read_text()
    assert all(drawn.count(f">{key}</text>") == 1 for key in bench.BENCHMARKS)


def test_numbers_of_other_sizes_are_not_mixed_in(tmp_path):
    for key in bench.BENCHMARKS:
        summary.save(tmp_path / f"{key}.json", [result(key)])
    bench.measure_all(argparse.Namespace(out=tmp_path, resume=True, quick=True))
    with pytest.raises(ConfigError, match=r"--quick: False now, True before; .*choose another --out"):
        bench.measure_all(argparse.Namespace(out=tmp_path, resume=True, quick=False))
    with pytest.raises(ConfigError, match="--quick: False now"):
        bench.measure_one(argparse.Namespace(out=tmp_path, key="vs_trl", quick=False))


def test_numbers_of_other_sizes_are_replaced_where_all_are_measured_again(tmp_path, monkeypatch):
    (tmp_path / "settings.json").write_text(json.dumps({"--quick": True}))
    summary.save(tmp_path / "vs_trl.json", [result("vs_trl")])
    monkeypatch.setattr(bench, "BENCHMARKS", {"vs_trl": ""})
    monkeypatch.setattr(bench.subprocess, "run", lambda command, check: argparse.Namespace(returncode=0))
    bench.measure_all(argparse.Namespace(out=tmp_path, resume=False, quick=False))
    assert json.loads((tmp_path / "settings.json").read_text()) == {"--quick": False}


@pytest.mark.slow
def test_a_benchmark_that_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "BENCHMARKS", {"vs_nobody": ""})  # the process that is started knows no such key
    with pytest.raises(UserError, match="vs_nobody"):
        bench.measure_all(argparse.Namespace(out=tmp_path, resume=False, quick=True))
    assert not (tmp_path / "summary.json").exists()
