"""The report: complete, self-contained, and safe against whatever a model writes."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arm_rl import trajectory_log
from arm_rl.core.types import ToolCall
from arm_rl.report import curves, pictures, run_data, trajectories, write_report
from arm_rl.report.trajectories import Shown
from tests.trajectories import looked, make_image, make_sample, make_scored, make_turn, zoom_event

HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(1)>'


def write_run(folder: Path, stages=("sft", "stage1", "stage2")) -> Path:
    summary = {
        stage: {"accuracy": 0.5 + 0.1 * number, "tool_calls": 1.0, "tool_rate": 1.0, "box_hit": 0.25, "num_samples": 480}
        for number, stage in enumerate(stages)
    }
    (folder / "summary.json").write_text(json.dumps({**summary, "seconds": {"sft": 30.0, "stage1": 75.0}}))
    lines = [{"step": 1, "stage": "sft", "learner/loss": 0.7}]
    lines += [{"step": step, "stage": stage, "reward/mean": 0.1 * step} for stage in stages[1:] for step in (1, 2, 3)]
    lines += [{"step": 2, "stage": "stage2", "evaluation/accuracy": 0.625, "rollout/accuracy": None}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for stage in stages:
        write_log(folder, f"{stage}-evaluation", [looked(correct=stage == "stage2")])
    return folder


def write_log(folder: Path, stage: str, made, step: int = 3, samples=None) -> None:
    images = {key: image for _, kept in made for key, image in kept.items()}
    path = folder / "trajectories" / trajectory_log.file_name(stage, step)
    trajectory_log.write(path, [scored for scored, _ in made], samples or {"s0": make_sample()}, images, stage=stage, step=step)


class Elements(HTMLParser):
    """The elements of a page, with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_everything_is_in_one_file(tmp_path):
    page = write_report(write_run(tmp_path)).read_text()
    elements = Elements(page)
    assert not elements.of("link")
    assert all("src" not in script for script in elements.of("script"))
    assert all((image["src"] or "").startswith("data:image/") for image in elements.of("img"))
    assert not re.search(r"https?:|@import|url\(|\$[a-z]", page)


def test_the_parts_are_there(tmp_path):
    page = write_report(write_run(tmp_path)).read_text()
    assert "<strong>50.0%</strong>" in page
    assert "<strong>70.0%</strong>" in page
    assert page.count('<th scope="row">') == 3
    assert "1 min 15 s" in page
    assert len(Elements(page).of("article")) == 3
    assert "One sample, judged after each stage" in page
    assert "image_zoom_in_tool(image=&quot;original_image&quot;" in page


def test_a_run_with_nothing_yet_has_a_report(tmp_path):
    page = write_report(tmp_path).read_text()
    for missing in ("has not been evaluated", "No stage", "No steps", "No trajectories"):
        assert missing in page


def test_what_a_model_writes_is_only_text(tmp_path):
    call = ToolCall(name=HOSTILE, arguments={"image": HOSTILE, HOSTILE: "\ud800"}, error=HOSTILE)
    event = dataclasses.replace(zoom_event(status="bad_arguments"), call=call, text=HOSTILE)
    scored = make_scored(make_turn(f"{HOSTILE}<think>{HOSTILE}</think><tool_call>{HOSTILE}", event), parts={HOSTILE: 1.0})
    sample = make_sample(label=HOSTILE, texts=(HOSTILE,))
    write_log(tmp_path, HOSTILE.replace("/", ""), [(scored, {})], samples={"s0": sample})
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "stage": HOSTILE, "reward/mean": 1.0}) + "\n")
    (tmp_path / "summary.json").write_text(json.dumps({HOSTILE: {"accuracy": 1.0}, "x": {"accuracy": 1.0}, "seconds": {HOSTILE: 1.0}}))
    elements = Elements(write_report(tmp_path).read_text())
    assert len(elements.of("script")) == 1
    assert not [attributes for _, attributes in elements.found if "onerror" in attributes]


def test_a_folder_of_stages_is_one_run(tmp_path):
    for stage in ("sft", "stage1"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "metrics.jsonl").write_text(json.dumps({"step": 1, "stage": stage, "learner/loss": 1.0}) + "\n")
        write_log(tmp_path / stage, stage, [looked()])
    run = run_data.read(tmp_path)
    assert run.stage_names == ["sft", "stage1"]
    assert [log.stage for log in run.logs] == ["sft", "stage1"]


def test_the_newest_log_of_each_stage_is_shown_and_evaluations_first(tmp_path):
    for stage, step in (("stage1", 5), ("stage1-evaluation", 2), ("stage1-evaluation", 10), ("stage2-evaluation", 4)):
        write_log(tmp_path, stage, [looked()], step=step)
    assert [(log.stage, log.step) for log in run_data.read(tmp_path).logs] == [("stage1-evaluation", 10), ("stage2-evaluation", 4)]


def test_lines_of_one_step_are_one(tmp_path):
    run = run_data.read(write_run(tmp_path))
    joined = [line for line in run.lines if (line["stage"], line["step"]) == ("stage2", 2)]
    assert [(line["reward/mean"], line["evaluation/accuracy"]) for line in joined] == [(0.2, 0.625)]


def test_the_followed_sample_is_one_that_was_learned(tmp_path):
    samples = {name: make_sample(name) for name in ("always", "learned", "never")}
    for stage, right in (("sft", {"always"}), ("stage2", {"always", "learned"})):
        made = []
        for name in samples:
            scored, images = looked(correct=name in right)
            made.append((dataclasses.replace(scored, trajectory=dataclasses.replace(scored.trajectory, sample_id=name)), images))
        write_log(tmp_path, stage, made, samples=samples)
    logs = run_data.read(tmp_path).logs
    followed = trajectories._followed([[Shown(scored=one, log=log) for one in log.scored] for log in logs])
    assert [(one.trajectory.sample_id, one.scored.correct) for one in followed] == [("learned", False), ("learned", True)]


def boxes(page: str) -> list[tuple[str, str]]:
    spans = [attributes for attributes in Elements(page).of("span") if "box" in (attributes.get("class") or "").split()]
    return [(attributes["class"] or "", attributes["style"] or "") for attributes in spans]


def test_boxes_lie_where_the_call_put_them(tmp_path):
    write_log(tmp_path, "stage2", [looked(box=(250, 0, 500, 125))])
    assert boxes(write_report(tmp_path).read_text()) == [
        ("box target", "left:0%;top:0%;width:25%;height:25%"),
        ("box zoomed", "left:25%;top:0%;width:25%;height:12.5%"),
    ]


@pytest.mark.parametrize(
    ("box", "drawn"),
    [
        ([500, 300, 250, 100], [250, 100, 500, 300]),
        ([-50, 0, 2000, 10], [0, 0, 1000, 10]),
        ([0, 0, float("inf"), 1], None),
        (["0", 0, 1, 1], None),
        ([0, 0, 1], None),
        ("everything", None),
    ],
)
def test_a_box_is_drawn_if_it_can_be(box, drawn):
    event = dataclasses.replace(zoom_event(), call=ToolCall(name="zoom", arguments={"image": "original_image", "bbox_2d": box}))
    assert trajectories._box_of(event) == drawn


def test_an_image_that_was_not_kept_is_said_to_be_missing(tmp_path):
    scored, _ = looked()
    write_log(tmp_path, "stage2", [(scored, {})])
    assert "original_image: the image was not kept" in write_report(tmp_path).read_text()


def test_pieces_of_a_turn_lose_nothing():
    text = "before <think>a</think> between <tool_call>{}</tool_call><answer>yes"
    pieces = [("other", "before"), ("think", "a"), ("other", "between"), ("tool_call", "{}"), ("answer", "yes")]
    assert list(trajectories._split(text)) == pieces


def test_a_large_image_is_made_smaller_and_keeps_its_size_in_words():
    large, small = pictures.picture(make_image("red", 3000)), pictures.picture(make_image("red", 40))
    assert (large.width, large.height, large.is_small) == (3000, 3000, False)
    assert large.uri.startswith("data:image/jpeg;")
    assert small.uri.startswith("data:image/png;")
    assert small.is_small


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.none() | st.just(0.0))
def test_an_axis_encloses_its_values(values, low):
    ticks = curves.axis_ticks(values, low, None)
    invisible = 1e-6 + 1e-9 * (max(values) - min(values))
    assert ticks[0] <= min(values) + invisible
    assert ticks[-1] >= max(values) - invisible
    assert 2 <= len(ticks) <= 7


def test_axis_ticks_are_round():
    assert curves.axis_ticks([0.2, 0.9], 0, 1) == [0, 0.25, 0.5, 0.75, 1]
    assert curves.axis_ticks([3.0], None, None) == pytest.approx([1.0, 2.0, 3.0, 4.0, 5.0], abs=1)


def test_smoothing_neither_lags_nor_shifts():
    line = [float(number) for number in range(60)]
    assert curves.smoothed(line) == pytest.approx(line)
    assert max(curves.smoothed([0.0] * 30 + [1.0] + [0.0] * 30)) == pytest.approx(1 / 7)
