"""A bell wakes all who wait, and no ring is missed."""

from __future__ import annotations

import asyncio

from haltwire_control.bell import Bell


async def test_a_ring_wakes_all():
    bell = Bell()
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(bell.wait(5)) for _ in range(3)]
        await asyncio.sleep(0)
        bell.ring()
    assert [task.result() for task in waiting] == [True, True, True]


async def test_without_a_ring_waiting_ends():
    assert await Bell().wait(0.001) is False


async def test_a_ring_after_the_count_was_taken_is_not_missed():
    bell = Bell()
    heard = bell.count
    bell.ring()
    assert await bell.wait(0, heard) is True
    assert await bell.wait(0.001, bell.count) is False
