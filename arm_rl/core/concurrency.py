"""Asynchronous work on many items, a limited number of them at a time."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import TypeVar

from arm_rl.core.errors import UserError

Item = TypeVar("Item")


async def for_each(items: Collection[Item], work: Callable[[Item], Awaitable[None]], *, at_a_time: int) -> None:
    """Await `work(item)` for every item, in order, with at most `at_a_time` of them running.

    Raises:
        UserError: If `work` raises one. The first cancels what runs.
    """
    waiting = iter(items)

    async def work_on_next() -> None:
        for item in waiting:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(at_a_time, len(items))):
                group.create_task(work_on_next())
    except* UserError as errors:
        raise errors.exceptions[0] from None
