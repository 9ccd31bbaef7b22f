"""The recorder: nesting, lanes of tasks and threads, errors, bounds."""

import asyncio
import inspect
import itertools
import threading

import pytest

from arm_rl.core import tracing
from arm_rl.core.tracing import Recorder, Span, recorded


def recorder(**arguments) -> Recorder:
    """One whose clock gives 0, 1, 2, ... microseconds."""
    return Recorder(clock=itertools.count(0, 1000).__next__, **arguments)


def by_name(recorder: Recorder) -> dict[str, Span]:
    return {span.name: span for span in recorder.take().spans}


def test_spans_of_one_task_share_a_lane_and_nest():
    ours = recorder()
    with ours.span("session", track="session", group="g"):
        with ours.span("turn", prompt_tokens=7):
            pass
        with ours.span("tool", name="zoom", track="call"):
            pass
    session, turn, tool = ours.take().spans
    assert session == Span("session", "session", "session", 0, 0, 5, {"group": "g"})
    assert turn == Span("turn", "turn", "session", 0, 1, 2, {"prompt_tokens": 7})
    # in the lane of what encloses it, whatever track it would have alone
    assert tool == Span("tool", "zoom", "session", 0, 3, 4, {})


def test_what_encloses_comes_first_where_both_begin_at_once():
    ours = Recorder(clock=iter((0, 1, 2, 9000)).__next__)
    with ours.span("outer"), ours.span("inner"):
        pass
    assert [(span.kind, span.start, span.end) for span in ours.take().spans] == [("outer", 0, 9), ("inner", 0, 0)]


def test_tasks_have_lanes_of_their_own_and_free_lanes_are_used_again():
    ours = recorder()
    start_c = asyncio.Event()

    async def session(name: str, wait: asyncio.Event | None, then: asyncio.Event | None) -> None:
        with ours.span("session", name=name, track="session"):
            if wait:
                await wait.wait()
            with ours.span("turn", name=f"{name}'s turn"):
                await asyncio.sleep(0)
        if then:
            then.set()

    async def all_of_them() -> None:
        end_b = asyncio.Event()
        running = [asyncio.create_task(session("a", None, start_c)), asyncio.create_task(session("b", end_b, None))]
        await start_c.wait()
        await asyncio.gather(session("c", None, end_b), *running)

    asyncio.run(all_of_them())
    found = by_name(ours)
    assert {name: span.lane for name, span in found.items()} == {
        "a": 0,
        "a's turn": 0,
        "b": 1,
        "b's turn": 1,
        "c": 0,
        "c's turn": 0,
    }
    assert found["a"].end <= found["c"].start


def test_tasks_begun_inside_a_span_do_not_share_its_lane():
    ours = recorder()

    async def child(name: str) -> None:
        with ours.span("child", name=name):
            await asyncio.sleep(0)

    async def parent() -> None:
        with ours.span("parent"):
            await asyncio.gather(child("one"), child("two"))

    asyncio.run(parent())
    assert {name: span.lane for name, span in by_name(ours).items()} == {"parent": 0, "one": 1, "two": 2}


def test_threads_have_lanes_of_their_own():
    ours = recorder()
    inside, leave = threading.Event(), threading.Event()

    def work() -> None:
        with ours.span("work", name="thread"):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(10)
    with ours.span("work", name="here"):
        leave.set()
        thread.join()
    assert {name: span.lane for name, span in by_name(ours).items()} == {"thread": 0, "here": 1}


def test_an_error_passes_and_is_named():
    ours = recorder()
    with pytest.raises(KeyError), ours.span("load", file="f"):
        raise KeyError
    (span,) = ours.take().spans
    assert span.details == {"file": "f", "error": "KeyError"}
    with ours.span("after"):
        pass
    assert by_name(ours)["after"].lane == 0  # the lane was left


def test_the_newest_of_each_kind_are_kept_and_the_lost_are_counted():
    ours = recorder(max_spans=3)
    with ours.span("step"):
        for number in range(10):
            with ours.span("turn", name=str(number)):
                pass
    taken = ours.take()
    assert [span.name for span in taken.spans] == ["step", "7", "8", "9"]
    assert taken.num_lost == 7
    assert ours.take() == tracing.SpanBatch(spans=[], num_lost=0)


def test_an_open_span_is_handed_over_when_it_is_finished():
    ours = recorder()
    with ours.span("long"):
        assert ours.take().spans == []
    assert [span.kind for span in ours.take().spans] == ["long"]


def test_decorated_functions_stay_what_they_are():
    @recorded("plain")
    def plain(value: int) -> int:
        """Doubles."""
        return 2 * value

    @recorded("awaited", track="weights")
    async def awaited(value: int) -> int:
        await asyncio.sleep(0)
        return 3 * value

    tracing.take()
    assert plain(2) == 4
    assert inspect.iscoroutinefunction(awaited)
    assert asyncio.run(awaited(value=2)) == 6
    assert plain.__doc__ == "Doubles."
    assert [(span.kind, span.track) for span in tracing.take().spans] == [("plain", "main"), ("awaited", "weights")]


def test_times_are_those_of_the_wall_clock():
    import time

    before = time.time_ns() // 1000
    with tracing.span("now"):
        pass
    found = next(span for span in tracing.take().spans if span.kind == "now")
    assert abs(found.start - before) < 10_000_000
    assert found.end >= found.start
