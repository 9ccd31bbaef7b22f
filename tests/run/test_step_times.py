"""The table of a step's time, against a timeline made by hand; and the job that prints it."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from arm_rl.core.tracing import Span, SpanBatch
from arm_rl.run.step_times import TimeRow, difference, intersection, step_times, total, union
from arm_rl.run.timeline import Event, Timeline
from jobs.report import NothingToReport, show_times

SECOND = 1_000_000


def event(actor: str, kind: str, start: float, end: float) -> Event:
    return Event(actor=actor, lane=0, kind=kind, name=kind, start=int(start * SECOND), end=int(end * SECOND))


# Two steps of 10 s, with an evaluation between them. In each, by the step's own clock:
#   driver   rollout 0-6, learner 6-9, sync 9-10
#   engine 0 turns 0-2 and 1-3, tools 2-5 (so idle 3-5), a turn 5-6, an asynchronous turn 7-8, an update 9.5-10
#   engine 1 one turn 0-4, nothing more but its update 9-10
#   learner  trains 6.5-9 (forward 6.5-7.5, backward 7.5-8.5), publishes 9-9.5
STEP = (
    *(("driver", "step", 0, 10), ("driver", "rollout", 0, 6), ("driver", "learner", 6, 9), ("driver", "sync", 9, 10)),
    *(
        ("rollout 0", "turn", 0, 2),
        ("rollout 0", "turn", 1, 3),
        ("rollout 0", "tool", 2, 5),
        ("rollout 0", "turn", 5, 6),
    ),
    *(("rollout 0", "turn", 7, 8), ("rollout 0", "update", 9.5, 10)),
    *(("rollout 1", "turn", 0, 4), ("rollout 1", "update", 9, 10)),
    *(("learner 0", "train", 6.5, 9), ("learner 0", "forward", 6.5, 7.5), ("learner 0", "backward", 7.5, 8.5)),
    ("learner 0", "publish", 9, 9.5),
)
EVENTS = [
    *(event(actor, kind, start, end) for actor, kind, start, end in STEP),
    *(event("driver", "evaluation", 10, 20), event("rollout 0", "turn", 10, 20)),  # outside of the steps
    *(event(actor, kind, 20 + start, 20 + end) for actor, kind, start, end in STEP),
    event("rollout 0", "turn", 30, 31),  # after the last finished step
]


def by_name(rows: list[TimeRow]) -> dict[tuple[str, str], TimeRow]:
    return {(row.actor, row.phase): row for row in rows}


def test_phases_are_means_over_steps_and_actors():
    times = step_times(EVENTS)
    assert times.num_steps == 2
    phases = by_name(times.phases)
    assert phases["driver", "step"].seconds == 10
    assert phases["driver", "step"].share == 1
    assert phases["driver", "rollout"].seconds == 6
    assert phases["driver", "learner"].share == pytest.approx(0.3)
    assert phases["rollout", "turn"].seconds == 4.5  # (0-3, 5-6, 7-8) and (0-4)
    assert phases["rollout", "turn"].count == 5  # of both engines; the evaluation's and the last one are in no step
    assert phases["rollout", "tool"].seconds == 1.5
    assert phases["learner", "forward"].seconds == 1
    assert ("driver", "evaluation") not in phases
    # longest first
    assert [row.phase for row in times.phases if row.actor == "learner"] == ["train", "forward", "backward", "publish"]


def test_waits_say_who_waited_for_whom():
    times = step_times(EVENTS)
    seconds = {key: row.seconds for key, row in by_name(times.waits).items()}
    engine = {phase: value for (actor, phase), value in seconds.items() if actor == "engine"}
    assert engine == {
        "works: turns are sampled": 4.5,
        "idle: takes new weights": 0.75,
        "idle: its sessions wait for tools": 1.0,  # engine 0, 3-5
        "idle: waits for the learners": 2.0,  # engine 0: 6.5-7 and 8-9; engine 1: 6.5-9
        "idle: waits for new weights": 0.25,  # engine 0, 9-9.5
        "idle: other (scoring, other engines, the driver)": 1.5,  # engine 0: 6-6.5; engine 1: 4-6.5
        "works while sessions wait for tools (hidden)": 0.5,  # engine 0, 2-3
    }
    # all reasons together, without the hidden tools, are the step
    assert sum(engine.values()) - 0.5 == pytest.approx(10)
    learner = {phase: value for (actor, phase), value in seconds.items() if actor == "learner"}
    assert list(learner.values()) == [2.5, 6, 1, 0.5]
    assert seconds["both", "engines and learners work"] == 1  # 7-8
    assert seconds["both", "neither works"] == 2.5  # engines work 0-4, 5-6 and 7-8, the learner 6.5-9
    assert times.overlap == pytest.approx(1 / 2.5)


def test_turns_that_wait_while_weights_are_loaded_are_no_work():
    events = [event("driver", "step", 0, 4), event("rollout 0", "turn", 0, 4), event("rollout 0", "update", 1, 2)]
    waits = by_name(step_times(events).waits)
    assert waits["engine", "works: turns are sampled"].seconds == 3
    assert waits["engine", "idle: takes new weights"].seconds == 1
    assert step_times(events).overlap == 0  # there is no learner


def test_without_a_finished_step_there_is_no_table():
    with pytest.raises(ValueError, match="no step"):
        step_times([event("rollout 0", "turn", 0, 1)])
    with pytest.raises(ValueError, match="no step"):
        step_times([replace(event("driver", "step", 0, 1), failed=True)])


def test_intervals():
    assert union([(5, 7), (0, 2), (1, 3), (3, 4), (9, 9), (5, 6)]) == [(0, 4), (5, 7)]
    assert intersection([(0, 4), (6, 9)], [(1, 2), (3, 7), (8, 20)]) == [(1, 2), (3, 4), (6, 7), (8, 9)]
    assert difference([(0, 4), (6, 9)], [(-5, -1), (1, 2), (3, 7), (8, 20), (30, 40)]) == [(0, 1), (2, 3), (7, 8)]
    assert difference([(0, 4)], []) == [(0, 4)]
    assert difference([], [(0, 4)]) == []
    assert total([(0, 4), (6, 9)]) == 7


def written(folder, *events: Event) -> None:
    ours = Timeline(folder)
    for one in events:
        ours.write(
            one.actor, SpanBatch(spans=[Span(one.kind, one.name, "main", 0, one.start, one.end, {})], num_lost=0)
        )


def test_the_job_prints_a_table_for_each_stage(tmp_path):
    written(tmp_path / "stage1", *EVENTS)
    written(tmp_path / "stage2")  # has just begun
    (tmp_path / "data").mkdir()
    output = io.StringIO()
    last = show_times(tmp_path, Console(file=output, width=120))
    lines = output.getvalue().splitlines()
    assert sum("2 steps" in line for line in lines) == 1
    assert any("turn" in line and "4.500" in line and "45.0%" in line for line in lines)
    assert any("its sessions wait for tools" in line and "1.000" in line for line in lines)
    assert any("overlap" in line and "40.0%" in line for line in lines)
    assert "timeline.json" in last


def test_the_job_says_what_is_missing(tmp_path):
    with pytest.raises(NothingToReport, match="metrics.timeline"):
        show_times(tmp_path, Console(file=io.StringIO()))
    written(tmp_path)
    with pytest.raises(NothingToReport, match="no step"):
        show_times(tmp_path, Console(file=io.StringIO()))
