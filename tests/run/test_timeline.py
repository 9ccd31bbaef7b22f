"""The timeline's file: valid, nested, bounded, mended; and what is fetched from actors."""

import asyncio
import itertools
import json
from collections import defaultdict
from pathlib import Path

import pytest

from arm_rl.core import tracing
from arm_rl.core.tracing import Recorder, Span, SpanBatch
from arm_rl.run import timeline
from arm_rl.run.timeline import Event, Timeline, read


def one(kind: str, start: int, end: int, *, lane: int = 0, **details) -> Span:
    return Span(kind, kind, "main", lane, start, end, details)


def recorded(*found: Span, num_lost: int = 0) -> SpanBatch:
    return SpanBatch(spans=list(found), num_lost=num_lost)


def parsed(path: Path) -> list[dict]:
    """As a reader of the format does it: the array may lack its end."""
    return json.loads(path.read_text().rstrip().rstrip(",") + "]")


async def sessions(recorder: Recorder, number: int) -> None:
    """Sessions that interleave, with turns and calls in them."""

    async def session(index: int) -> None:
        with recorder.span("session", track="session", index=index):
            for turn in range(3):
                with recorder.span("turn"):
                    await asyncio.sleep(0.0001 * (index % 3))
                with recorder.span("tool", name='the "zoom"\n'):
                    await asyncio.sleep(0.0001 * turn)

    with recorder.span("step"):
        await asyncio.gather(*(session(index) for index in range(number)))


def test_the_file_is_a_trace_whose_events_nest_in_their_lanes(tmp_path):
    recorder = Recorder()
    asyncio.run(sessions(recorder, 20))
    Timeline(tmp_path).write("rollout 3", recorder.take())
    events = parsed(tmp_path / "timeline.json")
    complete = [event for event in events if event["ph"] == "X"]
    assert len(complete) == 1 + 20 * 7
    assert {type(event[key]) for event in complete for key in ("ts", "dur", "pid", "tid")} == {int}
    names = {
        (event["pid"], event.get("tid")): event["args"]["name"] for event in events if event["name"].endswith("_name")
    }
    (process,) = {event["pid"] for event in complete}
    assert names[process, None] == "rollout 3"
    lanes = defaultdict(list)
    for event in complete:
        lanes[event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    assert {names[process, lane] for lane in lanes} == {"main", *(f"session {lane}" for lane in range(20))}
    for lane in lanes.values():
        for (start, end), (next_start, next_end) in itertools.combinations(lane, 2):  # in the order of the file
            assert start <= next_start
            assert next_end <= end or end <= next_start
    assert [event["args"] for event in complete if event["cat"] == "session"] == [
        {"index": index} for index in range(20)
    ]


def test_what_was_written_is_read(tmp_path):
    ours = Timeline(tmp_path)
    ours.write("driver", recorded(one("step", 10, 90)))
    ours.write("learner 1", recorded(one("train", 20, 50, error="NonFiniteError"), one("forward", 21, 30)))
    assert read(tmp_path) == [
        Event(actor="driver", lane=0, kind="step", name="step", start=10, end=90),
        Event(actor="learner 1", lane=0, kind="train", name="train", start=20, end=50, failed=True),
        Event(actor="learner 1", lane=0, kind="forward", name="forward", start=21, end=30),
    ]
    assert [event.actor_kind for event in read(tmp_path)] == ["driver", "learner", "learner"]


@pytest.mark.parametrize("cut", [1, 2, 30, 70])
def test_a_file_that_was_cut_is_read_and_gone_on_with(tmp_path, cut):
    first = Timeline(tmp_path)
    first.write("driver", recorded(one("step", 10, 90), one("step", 100, 190)))
    path = tmp_path / "timeline.json"
    whole = path.read_text()
    path.write_text(whole[:-cut])
    assert [event.start for event in read(tmp_path)] == [10]
    Timeline(tmp_path).write("driver", recorded(one("step", 200, 290)))
    assert [event.start for event in read(tmp_path)] == [10, 200]
    events = parsed(path)
    assert len({event["pid"] for event in events}) == 1  # the actor is the same when the run is started again
    assert path.read_text().count("[\n") == 1


def test_a_file_without_a_whole_line_is_begun_anew(tmp_path):
    (tmp_path / "timeline.json").write_text("")
    Timeline(tmp_path).write("driver", recorded(one("step", 1, 2)))
    assert len(read(tmp_path)) == 1
    assert parsed(tmp_path / "timeline.json")


def test_the_file_is_bounded_and_the_newest_stay(tmp_path):
    ours = Timeline(tmp_path, max_bytes=2000)
    for number in range(200):
        ours.write("driver", recorded(one("step", 10 * number, 10 * number + 5)))
    starts = [event.start for event in read(tmp_path)]
    assert starts == list(range(starts[0], 2000, 10))
    assert 20 < len(starts) < 60
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes.keys() == {timeline.FILE, timeline.OLD_FILE}
    assert max(sizes.values()) < 2200
    for path in tmp_path.iterdir():
        assert any(event["name"] == "process_name" for event in parsed(path))  # each can be looked at alone


def test_an_unknown_kind_of_actor_is_refused(tmp_path):
    with pytest.raises(ValueError):
        Timeline(tmp_path).write("cook 1", recorded())


def test_no_timeline_is_said(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path)


async def test_spans_are_fetched_while_the_driver_goes_on(tmp_path, caplog):
    with tracing.span("of another run"):
        pass
    ours = Timeline(tmp_path)
    arrived = asyncio.Event()

    async def slow() -> SpanBatch:
        await arrived.wait()
        return recorded(one("turn", 1, 2), num_lost=3)

    async def broken() -> SpanBatch:
        raise RuntimeError("the actor died")

    with tracing.span("step"):
        pass
    ours.fetch({"rollout 0": slow(), "scorer 0": broken()})
    assert [(event.actor, event.kind) for event in read(tmp_path)] == [("driver", "step")]
    arrived.set()
    await ours.close()
    assert [(event.actor, event.kind) for event in read(tmp_path)] == [("driver", "step"), ("rollout 0", "turn")]
    assert "no spans of scorer 0: RuntimeError: the actor died" in caplog.text
    assert "3 spans are missing" in caplog.text


async def test_the_end_does_not_wait_for_an_actor_that_never_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(timeline, "CLOSE_SECONDS", 0.01)
    ours = Timeline(tmp_path)
    never = asyncio.get_running_loop().create_future()
    ours.fetch({"learner 0": never})
    await ours.close()
    await asyncio.sleep(0)
    assert never.cancelled()
