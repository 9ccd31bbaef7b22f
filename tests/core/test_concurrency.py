"""Work on many items: in order, no more at a time than allowed, and stopped by the first error of a user's making."""

import asyncio

import pytest

from arm_rl.core.concurrency import for_each
from arm_rl.core.errors import UserError


@pytest.mark.parametrize("at_a_time", [1, 3, 100])
async def test_all_are_worked_on_in_order_and_few_at_a_time(at_a_time):
    begun, running, most = [], 0, 0

    async def work(number):
        nonlocal running, most
        begun.append(number)
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1

    await for_each(range(7), work, at_a_time=at_a_time)
    assert begun == list(range(7))
    assert most == min(at_a_time, 7)


async def test_nothing_is_done_without_items():
    await for_each([], pytest.fail, at_a_time=3)


async def test_the_first_error_of_a_user_ends_all_and_is_raised_itself():
    begun, cancelled = [], []

    async def work(number):
        begun.append(number)
        if number == 1:
            raise UserError("the second is wrong")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise

    with pytest.raises(UserError, match="the second is wrong"):
        await for_each(range(9), work, at_a_time=2)
    assert (begun, cancelled) == ([0, 1], [0])


async def test_other_errors_keep_their_group():
    async def work(number):
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as raised:
        await for_each(range(3), work, at_a_time=2)
    assert raised.group_contains(ZeroDivisionError)
