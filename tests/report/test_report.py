"""The report: complete, self-contained, and safe against whatever a model writes."""

import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arm_rl.core import trajectory_file
from arm_rl.core.types import ToolCall
from arm_rl.report import curves, pictures, run_data, selection, table, trajectories
from arm_rl.report.contents import ContentReader
from arm_rl.report.index import Index
from arm_rl.report.selection import Selection
from arm_rl.report.static_report import write_report
from tests.support.trajectories import looked, make_image, make_sample, make_scored, make_turn, zoom_event

HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(1)>'


def write_run(folder: Path, stages=("sft", "stage1", "stage2")) -> Path:
    summary = {
        stage: {
            "accuracy": 0.5 + 0.1 * number,
            "tool_calls": 1.0,
            "tool_rate": 1.0,
            "box_hit": 0.25,
            "num_samples": 480,
        }
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
    path = folder / "trajectories" / trajectory_file.file_name(stage, step)
    trajectory_file.write(
        path, [scored for scored, _ in made], samples or {"s0": make_sample()}, images, stage=stage, step=step
    )


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


def index_of(folder: Path) -> Index:
    index = Index(folder=folder)
    index.refresh(run_data.read(folder).order)
    return index


def data_of(page: str) -> dict:
    """What the page's script reads."""
    return json.loads(page.split('id="data">')[1].split("</script>")[0])


def looked_at(sample: str, correct: bool = True, **changes):
    """As `looked`, of another sample, or in a group."""
    scored, images = looked(correct=correct)
    reward = changes.pop("reward", float(correct))
    trajectory = dataclasses.replace(scored.trajectory, sample_id=sample, **changes)
    return dataclasses.replace(scored, reward=reward, trajectory=trajectory), images


def test_everything_is_in_one_file(tmp_path):
    page = write_report(write_run(tmp_path)).read_text()
    elements = Elements(page)
    assert not elements.of("link")
    assert all("src" not in script for script in elements.of("script"))
    pictures = data_of(page)["pictures"]
    assert elements.of("img")
    assert all(
        "src" not in image and pictures[image["data-key"]]["uri"].startswith("data:image/")
        for image in elements.of("img")
    )
    assert not re.search(r"https?:|@import|url\(|\$[a-z]", page)


def test_the_parts_are_there(tmp_path):
    page = write_report(write_run(tmp_path)).read_text()
    assert "<strong>50.0%</strong>" in page
    assert "<strong>70.0%</strong>" in page
    assert page.split('id="curves"')[0].count('<th scope="row">') == 3
    assert "1 min 15 s" in page
    assert len(Elements(page).of("article")) == 3
    assert "One sample, judged after each stage" in page
    assert "image_zoom_in_tool(image=&quot;original_image&quot;" in page
    assert set(data_of(page)["rows"]) == {f"{stage}-evaluation-000003/0" for stage in ("sft", "stage1", "stage2")}


def test_only_the_page_s_own_script_may_run(tmp_path):
    page = write_report(write_run(tmp_path)).read_text()
    script = page.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [meta["content"] for meta in Elements(page).of("meta") if "http-equiv" in meta]
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy


def test_a_run_with_nothing_yet_has_a_report(tmp_path):
    page = write_report(tmp_path).read_text()
    for missing in ("has not been evaluated", "No stage", "No steps", "No trajectories"):
        assert missing in page


def test_boxes_at_an_image_s_edge_are_not_clipped(tmp_path):
    page = write_report(write_run(tmp_path)).read_text()
    (rule,) = re.findall(r"\.image > div \{(.*?)\}", page)
    assert "overflow" not in rule


def test_what_a_model_writes_is_only_text(tmp_path):
    call = ToolCall(name=HOSTILE, arguments={"image": HOSTILE, HOSTILE: "\ud800"}, error=HOSTILE)
    event = dataclasses.replace(zoom_event(status="bad_arguments"), call=call, text=HOSTILE)
    scored = make_scored(
        make_turn(f"{HOSTILE}<think>{HOSTILE}</think><tool_call>{HOSTILE}", event), parts={HOSTILE: 1.0}
    )
    sample = make_sample(label=HOSTILE, texts=(HOSTILE,))
    write_log(tmp_path, HOSTILE.replace("/", ""), [(scored, {})], samples={"s0": sample})
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "stage": HOSTILE, "reward/mean": 1.0}) + "\n")
    (tmp_path / "summary.json").write_text(
        json.dumps({HOSTILE: {"accuracy": 1.0}, "x": {"accuracy": 1.0}, "seconds": {HOSTILE: 1.0}})
    )
    page = write_report(tmp_path).read_text()
    elements = Elements(page)
    assert len(elements.of("script")) == 2
    (row,) = data_of(page)["rows"].values()
    shown = Elements(row["question"] + row["card"])
    assert not {"script", "img", "iframe", "svg"} & {tag for tag, _ in shown.found}
    assert not [attributes for _, attributes in (*elements.found, *shown.found) if "onerror" in attributes]


def test_a_folder_of_stages_is_one_run(tmp_path):
    for stage in ("sft", "stage1"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "metrics.jsonl").write_text(
            json.dumps({"step": 1, "stage": stage, "learner/loss": 1.0}) + "\n"
        )
        write_log(tmp_path / stage, stage, [looked()])
    run = run_data.read(tmp_path)
    assert run.stage_names == ["sft", "stage1"]
    assert [file.stage for file in index_of(tmp_path).files] == ["sft", "stage1"]


def test_the_newest_log_of_each_stage_is_shown_and_evaluations_first(tmp_path):
    for stage, step in (("stage1", 5), ("stage1-evaluation", 2), ("stage1-evaluation", 10), ("stage2-evaluation", 4)):
        write_log(tmp_path, stage, [looked()], step=step)
    assert [(file.stage, file.step) for file in selection.newest_files(index_of(tmp_path))] == [
        ("stage1-evaluation", 10),
        ("stage2-evaluation", 4),
    ]


def test_lines_of_one_step_are_one(tmp_path):
    run = run_data.read(write_run(tmp_path))
    joined = [line for line in run.lines if (line["stage"], line["step"]) == ("stage2", 2)]
    assert [(line["reward/mean"], line["evaluation/accuracy"]) for line in joined] == [(0.2, 0.625)]


def test_the_followed_sample_is_one_that_was_learned(tmp_path):
    samples = {name: make_sample(name) for name in ("always", "learned", "never")}
    for stage, right in (("sft", {"always"}), ("stage2", {"always", "learned"})):
        write_log(tmp_path, stage, [looked_at(name, name in right) for name in samples], samples=samples)
    followed = selection.choose_followed(index_of(tmp_path))
    assert [(file.stage, rows) for file, rows in followed] == [("sft", [1]), ("stage2", [1])]


def write_groups(folder: Path, rewards: dict[str, list[float | None]], step: int = 1) -> None:
    """A training step's groups, each of a sample of its own."""
    samples = {name: make_sample(name) for name in rewards}
    made = [
        looked_at(name, bool(reward), group_id=name, index=index, reward=reward)
        for name, group in rewards.items()
        for index, reward in enumerate(group)
    ]
    write_log(folder, "stage2", made, step=step, samples=samples)


def test_advantages_are_those_of_the_whole_group(tmp_path):
    write_groups(tmp_path, {"a": [1.0, 0.0, None, 0.5], "flat": [1.0, 1.0]})
    (file,) = index_of(tmp_path).files
    contents = ContentReader(index=index_of(tmp_path)).read(file, [0, 2, 5])
    assert [content["advantage"] for content in contents] == [pytest.approx(1.0, abs=1e-5), None, 0.0]
    assert "advantage <strong>+1.00</strong>" in contents[0]["card"]
    (tmp_path / "config.yaml").write_text("algorithm: {scale_by_std: false}")
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "trajectories").rename(other / "trajectories")
    (tmp_path / "config.yaml").rename(other / "config.yaml")
    (file,) = index_of(other).files
    assert ContentReader(index=index_of(other)).read(file, [0])[0]["advantage"] == pytest.approx(0.5)


def test_a_file_holds_whole_groups_of_all_steps_and_those_that_differ_first(tmp_path):
    for step in (1, 2, 3, 4):
        write_groups(tmp_path, {"flat": [1.0, 1.0], "split": [0.0, 1.0]}, step)
    index = index_of(tmp_path)
    units = [(file.step, rows) for ((file, rows),) in selection.training_units(index)]
    assert units == [(step, rows) for rows in ([2, 3], [0, 1]) for step in (4, 1, 2, 3)]
    chosen = Selection(contents=ContentReader(index=index), max_bytes=10_000)
    selection.fill_selection(chosen, index)
    assert 0 < chosen.num_bytes <= 10_000
    names = list(chosen.rows)
    assert names[:4] == ["stage2-000004/2", "stage2-000004/3", "stage2-000001/2", "stage2-000001/3"]
    assert len(names) < 16
    assert len(names) % 2 == 0


def test_held_out_samples_come_with_all_their_judgments_and_changed_ones_first(tmp_path):
    samples = {name: make_sample(name) for name in ("right", "wrong", "lost", "won")}
    for stage, right in (("sft", {"right", "lost"}), ("stage2", {"right", "won"})):
        write_log(
            tmp_path, f"{stage}-evaluation", [looked_at(name, name in right) for name in samples], samples=samples
        )
    units = [[(file.model, rows) for file, rows in unit] for unit in selection.evaluation_units(index_of(tmp_path))]
    assert units == [[("sft", [row]), ("stage2", [row])] for row in (2, 3, 1, 0)]


def test_a_small_budget_leaves_out_trajectories_and_then_old_steps_of_the_index(tmp_path):
    for step in range(1, 41):
        write_groups(tmp_path, {f"s{number}": [0.0, 1.0] for number in range(10)}, step)
    large, small = (write_report(tmp_path, max_mb=size).stat().st_size for size in (20.0, 0.03))
    assert large > 1_000_000
    assert small < 30_000 + 120_000  # the page itself
    about = data_of(write_report(tmp_path, max_mb=0.03).read_text())["about"]
    assert about["total"] == 800
    assert 0 < about["listed"] < 800


def test_an_index_reads_what_is_new_and_only_that(tmp_path):
    write_groups(tmp_path, {"a": [0.0, 1.0]}, step=1)
    index = index_of(tmp_path)
    (first,) = index.files
    write_groups(tmp_path, {"a": [0.0, 1.0]}, step=2)
    index.refresh([])
    assert [file.step for file in index.files] == [1, 2]
    assert index.files[0] is first


def test_tools_are_counted_by_status(tmp_path):
    refused, unknown = zoom_event(status="bad_arguments"), zoom_event(status="unknown_tool", name="made_up")
    scored = make_scored(make_turn("", zoom_event(), refused), make_turn("", zoom_event(), zoom_event(), unknown))
    write_log(tmp_path, "stage2", [(scored, {})])
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "stage": "stage2", "reward/mean": 1.0}\n')
    cells = re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", table.tools(index_of(tmp_path)).split("<tbody>")[1])
    assert cells[:8] == ["stage2", "image_zoom_in_tool", "4", "4.00", "75.0%", "25.0%", "0.0%", "500"]
    assert cells[8:] == ["", "other names", "1", "1.00", "0.0%", "0.0%", "100.0%", "500"]
    assert table.tool_lines(index_of(tmp_path)) == [{"stage": "stage2", "step": 3, "calls/image_zoom_in_tool": 4.0}]


def test_parts_of_the_reward_are_lines_of_one_chart(tmp_path):
    lines = [
        {"step": step, "stage": "s", "reward/part/format": 0.3, "reward/part/<b>": 0.1 * step, "reward/part/never": 0.0}
        for step in (1, 2)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    chart = curves.draw(run_data.read(tmp_path))
    assert re.findall(r'class="part p\d"><span>([^<]*)</span> <b>([^<]*)</b>', chart) == [
        ("&lt;b&gt;", "0.2"),
        ("format", "0.3"),
    ]
    assert chart.count("<polyline") == 2


def boxes(page: str) -> list[tuple[str, str]]:
    spans = [attributes for attributes in Elements(page).of("span") if "box" in (attributes.get("class") or "").split()]
    return [(attributes["class"] or "", attributes["style"] or "") for attributes in spans]


def test_boxes_lie_where_the_call_put_them(tmp_path):
    write_log(tmp_path, "stage2", [looked(box=(250, 0, 500, 125))])
    assert boxes(write_report(tmp_path).read_text()) == [
        ("box target", "left:0%;top:0%;width:25%;height:25%"),
        ("box zoomed", "left:25%;top:0%;width:25%;height:12.5%"),
    ]
    write_log(tmp_path, "stage2", [looked(box=(250, 0, 500, 125))], samples={"s0": make_sample(target_box=None)})
    assert [kind for kind, _ in boxes(write_report(tmp_path).read_text())] == ["box zoomed"]


@pytest.mark.parametrize(
    ("box", "drawn"),
    [
        ([500, 300, 250, 100], [250, 100, 500, 300]),
        ([-50, 0, 2000, 10], [0, 0, 1000, 10]),
        ([-(10**400), 0, 10**400, 10], [0, 0, 1000, 10]),
        ([0, 0, float("inf"), 1], None),
        (["0", 0, 1, 1], None),
        ([0, 0, 1], None),
        ("everything", None),
    ],
)
def test_a_box_is_drawn_if_it_can_be(box, drawn):
    event = dataclasses.replace(
        zoom_event(), call=ToolCall(name="zoom", arguments={"image": "original_image", "bbox_2d": box})
    )
    assert trajectories._box_of(event) == drawn


def test_pieces_of_a_turn_lose_nothing():
    text = "before <think>a</think> between <tool_call>{}</tool_call><answer>yes"
    pieces = [("other", "before"), ("think", "a"), ("other", "between"), ("tool_call", "{}"), ("answer", "yes")]
    assert list(trajectories._split_pieces(text)) == pieces


def test_a_large_image_is_made_smaller_and_keeps_its_size_in_words():
    large, small = pictures.encode_picture(make_image("red", 3000)), pictures.encode_picture(make_image("red", 40))
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
    assert curves.smooth(line) == pytest.approx(line)
    assert max(curves.smooth([0.0] * 30 + [1.0] + [0.0] * 30)) == pytest.approx(1 / 7)
