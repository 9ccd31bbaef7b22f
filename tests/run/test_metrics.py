"""Numbers of a step, worked out by hand."""

import pytest

from arm_rl.run.metrics import box_hit_rate, evaluation_metrics, intersection_over_union, rollout_metrics, zoomed_box
from tests.support.trajectories import make_sample, make_scored, make_turn, zoom_event

ANSWER = make_turn("<think>t</think><answer>Overall Judgment: Answer 1 is better.</answer>", num_tokens=4)


def zooming(*events, **changes):
    return make_scored(
        *(make_turn("call", event, num_tokens=6, num_observation_tokens=7) for event in events), ANSWER, **changes
    )


@pytest.fixture
def step():
    """Two groups of two, a broken session and a scorer that failed."""
    return [
        zooming(
            zoom_event(seconds=0.2),
            index=0,
            reward=1.5,
            parts={"format": 0.3, "success": 0.5},
            correct=True,
            format_ok=True,
        ),
        zooming(
            zoom_event(status="bad_arguments", seconds=0.4), index=1, reward=0.5, parts={"format": 0.3}, format_ok=True
        ),
        zooming(group_id="g1", index=0, reward=1.0, parts={"format": 0.3}, correct=True, format_ok=True, seconds=3.0),
        zooming(group_id="g1", index=1, reward=1.0, end="length"),
        make_scored(end="aborted", reward=None, error="broken", group_id="g2"),
        zooming(zoom_event(status="timeout", seconds=0.9), reward=None, error="scorer", group_id="g2", correct=True),
    ]


def test_rollout_metrics(step):
    metrics = rollout_metrics(step)
    expected = {
        "rollout/num_trajectories": 6,
        "rollout/broken_sessions": 1 / 6,
        "reward/scorer_failures": 1 / 5,
        "reward/mean": 4 / 4,
        "reward/std": 0.125**0.5,
        "reward/group_std": (0.5 + 0) / 2,
        "reward/flat_groups": 1 / 2,
        "reward/format": 3 / 4,
        "reward/part/format": 0.9 / 4,
        "reward/part/success": 0.5 / 4,
        "rollout/accuracy": 2 / 4,
        "rollout/prompt_tokens": 10,
        "rollout/response_tokens": (10 + 10 + 4 + 4 + 10) / 5,
        "rollout/response_tokens_max": 10,
        "rollout/observation_tokens": 21 / 5,
        "rollout/turns": 8 / 5,
        "rollout/session_seconds": 7 / 5,
        "rollout/end/answered": 4 / 5,
        "rollout/end/length": 1 / 5,
        "rollout/end/turn_limit": 0,
        "tools/calls": 3 / 5,
        "tools/rate": 3 / 5,
        "tools/success_rate": 1 / 5,
        "tools/status/ok": 1 / 3,
        "tools/status/bad_arguments": 1 / 3,
        "tools/status/unknown_tool": 0,
        "tools/status/timeout": 1 / 3,
        "tools/status/failed": 0,
        "tools/seconds": 0.5,
        "tools/seconds_max": 0.9,
    }
    assert metrics == pytest.approx(expected)


def test_rollout_metrics_of_nothing():
    assert set(rollout_metrics([]).values()) == {0.0}


def test_rollout_metrics_by_track():
    metrics = rollout_metrics(
        [zooming(zoom_event(), track="a", reward=1.5, correct=True), zooming(track="b", reward=0.5)]
    )
    assert (metrics["reward/mean/a"], metrics["reward/mean/b"]) == (1.5, 0.5)
    assert (metrics["rollout/accuracy/a"], metrics["rollout/accuracy/b"]) == (1.0, 0.0)
    assert (metrics["tools/calls/a"], metrics["tools/calls/b"]) == (1.0, 0.0)


def test_tools_by_name_are_those_that_were_offered():
    called = [zoom_event(), zoom_event(status="failed", seconds=1.5), zoom_event(name="made up")]
    metrics = rollout_metrics([zooming(*called), zooming()], {"s0": make_sample()})
    found = {
        name.removeprefix("tools/by_name/"): value
        for name, value in metrics.items()
        if name.startswith("tools/by_name/")
    }
    zoom = "image_zoom_in_tool"
    assert found == {f"{zoom}/calls": 2 / 2, f"{zoom}/ok": 1 / 2, f"{zoom}/seconds": 1.0}


def test_evaluation_leaves_out_what_is_no_judgment(step):
    metrics = evaluation_metrics({"s0": make_sample()}, step)
    assert metrics == pytest.approx(
        {
            "accuracy": 2 / 4,
            "tool_calls": 2 / 4,
            "tool_rate": 2 / 4,
            "box_hit": 1.0,
            "format": 3 / 4,
            "num_samples": 1,
            "broken_sessions": 1,
            "scorer_failures": 1,
            "first_tool/image_zoom_in_tool": 2 / 4,
            "first_tool/none": 2 / 4,
            "first_tool/other": 0.0,
        }
    )


def test_evaluation_by_track():
    samples = {"s0": make_sample(track="a"), "s1": make_sample("s1", track="b", target_box=None)}
    metrics = evaluation_metrics(
        samples, [zooming(zoom_event(), track="a", correct=True), zooming(sample_id="s1", track="b")]
    )
    assert (metrics["accuracy"], metrics["accuracy/a"], metrics["accuracy/b"]) == (0.5, 1.0, 0.0)
    assert (metrics["tool_rate/a"], metrics["tool_rate/b"], metrics["num_samples"]) == (1.0, 0.0, 2)


def test_the_first_tool_of_each_track():
    """Two tracks: what a session called first counts, whatever came of it; names that a policy makes up are one."""
    offered = {"tools": ("image_zoom_in_tool", "read_page", "count"), "target_box": None}
    samples = {
        "a": make_sample("a", track="zoom", **offered, expected_tools=("image_zoom_in_tool",)),
        "b": make_sample("b", track="pages", **offered, expected_tools=("read_page",)),
    }
    sessions = [
        zooming(zoom_event(name="count", status="bad_arguments"), zoom_event(), sample_id="a"),
        zooming(zoom_event(), sample_id="a"),
        zooming(sample_id="b", track="pages"),
        zooming(zoom_event(name="<made up/>", status="unknown_tool"), sample_id="b", track="pages"),
        zooming(zoom_event(name=""), sample_id="b", track="pages"),
        zooming(zoom_event(), sample_id="b", track="pages"),
    ]
    metrics = evaluation_metrics(samples, sessions)
    chosen = {
        name.removeprefix("first_tool/"): value for name, value in metrics.items() if name.startswith("first_tool/")
    }
    overall = {"count": 1 / 6, "image_zoom_in_tool": 2 / 6, "read_page": 0, "none": 1 / 6, "other": 2 / 6}
    zoom = {"count/zoom": 1 / 2, "image_zoom_in_tool/zoom": 1 / 2, "read_page/zoom": 0, "none/zoom": 0, "other/zoom": 0}
    pages = {
        "count/pages": 0,
        "image_zoom_in_tool/pages": 1 / 4,
        "read_page/pages": 0,
        "none/pages": 1 / 4,
        "other/pages": 2 / 4,
    }
    assert chosen == pytest.approx({**overall, **zoom, **pages})


@pytest.mark.parametrize(
    ("event", "counts"),
    [
        (zoom_event(), True),
        (zoom_event(status="failed"), False),
        (zoom_event(image="observation_1"), False),
        (zoom_event(name="another_tool"), False),
    ],
)
def test_only_successful_zooms_into_the_whole_image_have_a_box(event, counts):
    assert (zoomed_box(event) is not None) == counts


def test_box_hit_is_a_share_of_calls():
    hit, half, miss = zoom_event((0, 0, 250, 250)), zoom_event((0, 0, 250, 125)), zoom_event((250, 250, 500, 500))
    samples = {"s0": make_sample(), "no target": make_sample("no target", target_box=None)}
    assert box_hit_rate(
        samples, [zooming(hit, miss), zooming(half), zooming(miss, sample_id="no target")]
    ) == pytest.approx(2 / 3)
    assert box_hit_rate(samples, [zooming()]) == 0


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ((0, 0, 10, 10), 1.0),
        ((0, 0, 10, 5), 0.5),
        ((5, 5, 15, 15), 25 / 175),
        ((10, 0, 20, 10), 0.0),
        ((30, 30, 40, 40), 0.0),
        ((3, 3, 3, 3), 0.0),
    ],
)
def test_intersection_over_union(second, expected):
    assert intersection_over_union((0, 0, 10, 10), second) == pytest.approx(expected)
    assert intersection_over_union(second, (0, 0, 10, 10)) == pytest.approx(expected)
