"""The demos as data, and how their numbers are shown."""

import io
import json

import pytest
from rich.console import Console

from arm_rl.core.config_file import load
from arm_rl.core.stage_config import SftConfig, TrainConfig
from arm_rl.demo import demos
from arm_rl.demo.demos import DIGITS, THREE_TRACKS
from arm_rl.demo.lessons import MAX_CALLS
from arm_rl.demo.phrases import NOTICE
from arm_rl.demo.tables import evaluation_tables, is_shown
from arm_rl.demo.tracks import misfits
from arm_rl.report.static_report import write_report
from tools import load_tools

SPECS = pytest.mark.parametrize("spec", [DIGITS, THREE_TRACKS], ids=lambda spec: spec.name)
STAGE = {"tool_calls": 1.0, "tool_rate": 1.0, "box_hit": 0.5, "accuracy_without_tools": 0.5, "num_samples": 480.0}
BEFORE = {
    "accuracy": 0.5,
    "accuracy/digits": 0.5,
    "accuracy/texts": 0.4,
    "first_tool/none/digits": 1.0,
    "first_tool/none/texts": 1.0,
}
AFTER = {
    "accuracy": 0.9,
    "accuracy/digits": 0.95,
    "accuracy/texts": 0.85,
    "first_tool/zoom": 0.5,
    "first_tool/zoom/digits": 0.99,
}
SUMMARY = {"base": {**STAGE, **BEFORE, "first_tool/never/texts": 0.0}, "stage2": {**STAGE, **AFTER}}


@SPECS
def test_phases_configurations_and_lessons_agree(spec):
    assert list(spec.titles) == list(spec.usual_seconds)
    grpo, sft = load(TrainConfig, spec.config, list(spec.stage1)), load(SftConfig, spec.sft_config, [])
    assert (grpo.reward.name, grpo.run.root) == ("stage1", f"runs/{spec.name}")
    assert (grpo.session.max_turns - 1, grpo.session.last_turn_notice) == (MAX_CALLS, NOTICE)
    assert grpo.template == sft.template
    assert grpo.tools.files == sft.tools.files
    for size in (spec.full, spec.short):
        load(TrainConfig, spec.config, list(size.overrides))


@SPECS
def test_the_tool_file_offers_what_the_tracks_need_and_their_own_documents(spec, tmp_path):
    for track in spec.tracks:
        track.prepare(tmp_path / "here", 0)
    file = tmp_path / "tools.yaml"
    demos.write_tool_file(spec, tmp_path / "here", file)
    offered = load_tools([str(file)])
    assert {tool.tool for tool in (*spec.tracks, *misfits(spec.tracks))} <= set(offered)
    assert ("here/index" in file.read_text()) == (spec is THREE_TRACKS)
    assert "runs/" not in file.read_text()
    assert len(offered) > (20 if spec is THREE_TRACKS else 0)


def test_stage_1_rewards_only_a_tool_that_fits():
    stage1 = load(TrainConfig, THREE_TRACKS.config, list(THREE_TRACKS.stage1)).reward
    assert (stage1.name, stage1.other_tool) == ("stage1", 0)
    assert load(TrainConfig, THREE_TRACKS.config, []).reward.name == "stage2"


def test_the_tables_tell_each_track_s_accuracy_and_first_tools():
    console = Console(width=120, record=True, file=io.StringIO())
    for table in evaluation_tables(SUMMARY, ["digits", "texts"]):
        console.print(table)
    lines = [" ".join(line.replace("│", " ").split()) for line in console.export_text().splitlines()]
    for line in ("digits accuracy 0.500 0.950", "texts accuracy 0.400 0.850", "zoom 0.000 0.990", "none 1.000 0.000"):
        assert line in lines
    assert not any("never" in line for line in lines)  # a tool that nobody called is not worth a line
    assert len(list(evaluation_tables({"base": {**STAGE, "accuracy": 0.5}}, ["digits"]))) == 1


def test_the_summary_keeps_what_is_told_of_tracks():
    shown = [
        key for key in (*STAGE, *BEFORE, *AFTER, "format", "tool_calls/digits", "broken_sessions") if is_shown(key)
    ]
    assert set(shown) == {*STAGE, *BEFORE, *AFTER}


def test_the_report_shows_tracks_where_there_are_several(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    lines = [
        {"step": step, "stage": "stage2", "rollout/accuracy": 0.5, "rollout/accuracy/<digits>": 0.1 * step}
        for step in (1, 2)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_report(tmp_path).read_text()
    assert "Accuracy: &lt;digits&gt;" in page
    assert '<th scope="row">texts</th>' in page
    assert "first call: zoom" in page
    assert "never" not in page.split("<main>")[1].split("How it judges")[0]
    (tmp_path / "summary.json").write_text(json.dumps({"base": {**STAGE, "accuracy": 0.5, "first_tool/none": 1.0}}))
    assert "first call" not in write_report(tmp_path).read_text()
