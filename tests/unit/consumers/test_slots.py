"""Places: bounded, in order, never lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laxity.consumers.slots import BACK, Slots, SlotsClosed, slot_of
from laxity.consumers.testing import settle


async def test_whoever_comes_back_goes_first_then_the_earlier_deadline() -> None:
    slots, order = Slots(1), list[str]()
    await slots.take(0)

    async def wait(name: str, deadline_ms: int, rank: int) -> None:
        await slots.take(deadline_ms, rank)
        order.append(name)
        slots.give()

    tasks = [
        asyncio.create_task(wait("late", 30, 1)),
        asyncio.create_task(wait("early", 10, 1)),
        asyncio.create_task(wait("back", 90, BACK)),
    ]
    await settle()
    assert slots.queued == 3
    slots.give()
    await asyncio.gather(*tasks)
    assert order == ["back", "early", "late"]
    assert slots.taken == 0


async def test_a_cancelled_wait_leaves_the_place_to_the_next() -> None:
    slots = Slots(1)
    await slots.take(0)
    first = asyncio.create_task(slots.take(1))
    second = asyncio.create_task(slots.take(2))
    await settle()
    slots.give()  # handed to the first ...
    first.cancel()  # ... which is cancelled before it runs
    await asyncio.gather(first, return_exceptions=True)
    await asyncio.wait_for(second, 1)
    assert slots.taken == 1


async def test_closing_turns_away_the_new_but_not_those_who_come_back() -> None:
    slots = Slots(1)
    await slots.take(0)
    new, back = asyncio.create_task(slots.take(1)), asyncio.create_task(slots.take(1, BACK))
    await settle()
    slots.close()
    with pytest.raises(SlotsClosed):
        await new
    with pytest.raises(SlotsClosed):
        await slots.take(1)
    slots.give()
    await asyncio.wait_for(back, 1)
    slots.give()
    assert slots.taken == 0


async def test_waits_side_by_side_give_the_place_back_once() -> None:
    slots = Slots(1)
    async with slot_of(slots, 1) as slot:
        leave = [asyncio.Event(), asyncio.Event()]

        async def away(event: asyncio.Event) -> None:
            async with slot.away():
                await event.wait()

        tasks = [asyncio.create_task(away(event)) for event in leave]
        await settle()
        assert (slots.taken, slots.away) == (0, 1)
        leave[0].set()
        await settle()
        assert (slots.taken, slots.away) == (0, 1)
        leave[1].set()
        await asyncio.gather(*tasks)
        assert (slots.taken, slots.away) == (1, 0)
    assert slots.taken == 0


async def test_an_attempt_that_ends_while_it_waits_leaks_nothing() -> None:
    slots = Slots(1)
    leave = asyncio.Event()
    async with slot_of(slots, 1) as slot:

        async def away() -> None:
            async with slot.away():
                await leave.wait()

        left_behind = asyncio.create_task(away())
        await settle()
    leave.set()
    await left_behind
    assert (slots.taken, slots.away) == (0, 0)


@settings(max_examples=60, deadline=None)
@given(
    capacity=st.integers(1, 3),
    plans=st.lists(st.lists(st.integers(0, 3), max_size=4), max_size=8),
    data=st.data(),
)
def test_never_more_than_capacity_and_none_lost(capacity: int, plans: list[list[int]], data: Any) -> None:
    cancel = data.draw(st.lists(st.booleans(), min_size=len(plans), max_size=len(plans)))

    async def run() -> None:
        slots, held = Slots(capacity), 0

        async def one(plan: list[int]) -> None:
            nonlocal held
            async with slot_of(slots, len(plan)) as slot:
                for turns in plan:
                    held += 1
                    assert held <= capacity
                    try:
                        for _ in range(turns):
                            await asyncio.sleep(0)
                    finally:
                        held -= 1
                    async with slot.away():
                        for _ in range(turns):
                            await asyncio.sleep(0)

        tasks = [asyncio.create_task(one(plan)) for plan in plans]
        for task, stop in zip(tasks, cancel, strict=True):
            await asyncio.sleep(0)
            if stop:
                task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert not [r for r in results if isinstance(r, AssertionError)]
        assert (slots.taken, slots.away, slots.queued) == (0, 0, 0)

    asyncio.run(run())
