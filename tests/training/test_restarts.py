"""Learners that are lost: started anew as long as the run gets further."""

import pytest
from ray.exceptions import ObjectLostError, RayTaskError

from actors.learner.ranks import LearnerLost
from arm_rl.training.group import RunStopped
from arm_rl.training.restarts import StageProgress, with_restarts

LOST = LearnerLost("a learner rank was lost: its process ended")


def stage(*reached, error=LOST):
    """Gets to these steps, one start after the other, and is lost there; after the last one it is done."""
    left = list(reached)
    told = []

    async def run(progress: StageProgress) -> None:
        told.append(progress.metrics()["recovery/learner"])
        if not left:
            return
        progress.reached(left.pop(0))
        raise error

    return run, told


async def test_a_run_that_gets_further_goes_on_however_often_its_learners_die():
    run, told = stage(1, 2, 3, 3, 4, 9)
    await with_restarts(run, limit=2)
    assert told == [0, 1, 1, 1, 1, 1, 1]


async def test_one_that_dies_at_the_same_step_again_and_again_ends_with_the_cause():
    run, told = stage(5, 7, 6, 7, 7)
    with pytest.raises(
        RunStopped, match="^a learner rank was lost: its process ended: 3 times without getting beyond step 7"
    ):
        await with_restarts(run, limit=2)
    assert len(told) == 4


async def test_no_restart_where_none_is_wanted():
    run, told = stage(5)
    with pytest.raises(RunStopped):
        await with_restarts(run, limit=0)
    assert len(told) == 1


async def test_what_went_with_its_node_is_a_loss_too():
    lost = RayTaskError("score", "its trace", ObjectLostError("ab" * 28, None, "a call"))
    run, told = stage(1, 2, error=lost)
    await with_restarts(run, limit=1)
    assert told == [0, 1, 1]


async def test_what_is_no_loss_ends_the_run_at_once():
    run, told = stage(5, error=OSError("disk full"))
    with pytest.raises(OSError, match="disk full"):
        await with_restarts(run, limit=9)
    assert len(told) == 1
