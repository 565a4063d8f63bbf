"""Round trips are shared, answers are not mixed up."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from laxity.consumers.bunch import Bunch
from laxity.consumers.testing import settle


class Desk:
    """Answers each number with its double once it is let."""

    def __init__(self) -> None:
        self.bunches: list[list[int]] = []
        self.let = asyncio.Event()
        self.error: Exception | None = None

    async def put(self, questions: Sequence[int]) -> Sequence[int]:
        self.bunches.append(list(questions))
        await self.let.wait()
        if self.error is not None:
            raise self.error
        return [2 * question for question in questions]


async def test_what_is_asked_meanwhile_goes_together() -> None:
    desk = Desk()
    bunch: Bunch[int, int] = Bunch(desk.put, size_max=3)
    first = asyncio.create_task(bunch.ask(1))
    await settle()
    others = [asyncio.create_task(bunch.ask(number)) for number in range(2, 9)]
    await settle()
    assert desk.bunches == [[1]]
    desk.let.set()
    assert await asyncio.gather(first, *others) == [2, 4, 6, 8, 10, 12, 14, 16]
    assert desk.bunches == [[1], [2, 3, 4], [5, 6, 7], [8]]
    assert await bunch.ask(9) == 18


async def test_an_error_is_everybodys_and_the_next_question_is_asked_all_the_same() -> None:
    desk = Desk()
    desk.let.set()
    desk.error = ValueError("away")
    bunch: Bunch[int, int] = Bunch(desk.put, size_max=3)
    results = await asyncio.gather(bunch.ask(1), bunch.ask(2), return_exceptions=True)
    assert [str(result) for result in results] == ["away", "away"]
    desk.error = None
    assert await bunch.ask(3) == 6


async def test_a_cancelled_caller_harms_nobody() -> None:
    desk = Desk()
    bunch: Bunch[int, int] = Bunch(desk.put, size_max=3)
    tasks = [asyncio.create_task(bunch.ask(number)) for number in (1, 2)]
    await settle()
    tasks[0].cancel()
    desk.let.set()
    assert await tasks[1] == 4
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
