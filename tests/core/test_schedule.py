"""Learning rates against numbers worked out by hand."""

import pytest

from arm_rl.core.schedule import learning_rate


def rates(num_steps: int, schedule, warmup_ratio: float = 0.0) -> list[float]:
    return [
        learning_rate(step, num_steps=num_steps, peak=8.0, schedule=schedule, warmup_ratio=warmup_ratio)
        for step in range(num_steps)
    ]


def test_constant():
    assert rates(3, "constant") == [8.0] * 3


def test_linear():
    assert rates(4, "linear") == pytest.approx([8.0, 6.0, 4.0, 2.0])


def test_cosine():
    assert rates(4, "cosine") == pytest.approx([8.0, 6.828427, 4.0, 1.171573])


def test_warm_up_rises_to_the_peak_and_then_the_schedule_begins():
    assert rates(8, "linear", 0.5) == pytest.approx([2.0, 4.0, 6.0, 8.0, 8.0, 6.0, 4.0, 2.0])
    assert rates(10, "constant", 0.11)[:3] == pytest.approx([4.0, 8.0, 8.0])  # 1.1 steps are 2


def test_a_run_that_goes_on_stays_at_zero():
    assert learning_rate(9, num_steps=4, peak=8.0, schedule="cosine") == pytest.approx(0.0)


def test_no_step_before_the_first():
    with pytest.raises(ValueError, match="no step -1"):
        learning_rate(-1, num_steps=4, peak=1.0, schedule="constant")
