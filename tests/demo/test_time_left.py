"""The estimate of the time left, with a clock that the test moves."""

import threading

import pytest

from arm_rl.demo.time_left import MIN_SHARE, PhaseTimer, repeat_every

EXPECTED = {"data": 10.0, "base": 100.0, "stage": 200.0}


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_before_anything_is_measured_the_expected_time_is_told_as_such(clock):
    timer = PhaseTimer(EXPECTED, {}, clock=clock)
    assert timer.seconds_left() == 310
    assert timer.describe() == "about 5 min on two idle cores"


def test_finished_phases_set_the_pace(clock):
    timer = PhaseTimer(EXPECTED, {}, clock=clock)
    timer.start("data")
    clock.now += 30
    timer.finish()
    assert timer.finished == {"data": 30}
    assert timer.seconds_left() == pytest.approx(3 * 300), "three times as slow as expected"
    timer.start("base")
    clock.now += 300
    timer.finish()
    assert timer.seconds_left() == pytest.approx(3 * 200)
    assert timer.describe() == "about 10 min left"
    timer.start("stage")
    clock.now += 150
    timer.finish()
    assert timer.seconds_left() == 0


def test_phases_that_an_earlier_run_finished_count(clock):
    assert PhaseTimer(EXPECTED, {"data": 5.0, "base": 50.0}, clock=clock).seconds_left() == pytest.approx(100)


def test_inside_a_phase_its_progress_sets_its_time_and_the_pace_of_the_rest(clock):
    timer = PhaseTimer(EXPECTED, {"data": 10.0}, clock=clock)
    timer.start("base")
    clock.now += 100  # the machine has become busy: a quarter takes as long as all was expected to
    assert timer.seconds_left(0.25) == pytest.approx(300 + 200 * (10 + 100) / (10 + 25))
    assert timer.seconds_left(None) == pytest.approx(200), "without progress, the expected time runs down"
    clock.now += 50
    assert timer.seconds_left(None) == pytest.approx(200), "and not below nothing"


def test_the_first_steps_of_a_phase_do_not_count(clock):
    timer = PhaseTimer(EXPECTED, {"data": 10.0}, clock=clock)
    timer.start("base")
    clock.now += 40
    assert timer.seconds_left(MIN_SHARE / 2) == pytest.approx(100 - 40 + 200)


def test_a_phase_that_goes_on_counts_what_was_done_since(clock):
    timer = PhaseTimer(EXPECTED, {"data": 10.0}, clock=clock)
    timer.start("base", 0.5)
    assert timer.seconds_left(0.5) == pytest.approx(50 + 200)
    clock.now += 50
    assert timer.seconds_left(0.75) == pytest.approx(50 + 200 * (10 + 50) / (10 + 25))


def test_what_is_repeated_ends_with_the_block():
    said, twice = [], threading.Event()

    def say() -> None:
        said.append("x")
        if len(said) == 2:
            twice.set()

    with repeat_every(0.001, say):
        assert twice.wait(30)
    number = len(said)
    assert not threading.Event().wait(0.05)
    assert len(said) == number
