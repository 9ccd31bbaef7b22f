"""The summary of the benchmarks: ratios with their spread, goals met or missed, a table and a plot."""

import json
from xml.etree import ElementTree

import pytest

from arm_rl.experiments.bench import summary
from arm_rl.experiments.bench.result import Result

FAST = Result.of(key="fast", what="x", goal=2.0, unit="1/s", ours=[6.0, 4.0, 5.0], other=[2.0, 2.0, 1.0])
SLOW = Result.of(key="slow", what="x", goal=4.0, unit="s", ours=[9.0], other=[2.0], less_is_better=True)


def test_ratios_are_taken_repeat_by_repeat():
    assert (FAST.ratio, FAST.ratio_low, FAST.ratio_high) == (3.0, 2.0, 5.0)
    assert FAST.met
    assert not SLOW.met
    assert Result.of(key="x", what="x", goal=4.0, unit="s", ours=[7.0], other=[2.0], less_is_better=True).met


def test_the_summary_is_written_and_read(tmp_path):
    summary.save(tmp_path / "one.json", [FAST, SLOW])
    assert summary.read(tmp_path / "one.json") == [FAST, SLOW]
    written = json.loads(summary.write(tmp_path / "bench", [FAST, SLOW]).read_text())
    assert written["results"]["fast"]["met"] is True
    assert written["results"]["slow"]["ratio"] == 4.5
    assert written["machine"]["cores"] >= 1
    lines = (tmp_path / "bench/table.md").read_text().splitlines()
    assert lines[2] == "| fast | 5 | 2 | 1/s | 3.00 (2.00 to 5.00) | 2 | yes |"
    assert lines[3].endswith("| at most 4 | no |")


def test_the_plot_is_measured_in_goals():
    (axes,) = summary.draw([FAST, SLOW]).axes
    (fast,), (slow,) = axes.containers
    assert fast.get_width() == pytest.approx(1.5)
    assert slow.get_width() == pytest.approx(4 / 4.5)
    assert fast.get_facecolor() != slow.get_facecolor()


def test_the_plot_names_what_it_shows_and_is_always_the_same():
    drawn = summary.plot([FAST, SLOW])
    texts = [text.text.strip() for text in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert sorted(texts) == ["3.00 (goal 2)", "4.50 (goal 4)", "fast", "slow"]
    assert drawn == summary.plot([FAST, SLOW])
