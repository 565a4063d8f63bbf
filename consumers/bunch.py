"""Many coroutines, one round trip: what is asked while an answer is under way goes together into the next question."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class Bunch(Generic[Q, A]):
    """`put` carries out up to `size_max` questions and answers them in their order; what it raises, each of them raises."""

    def __init__(self, put: Callable[[Sequence[Q]], Awaitable[Sequence[A]]], *, size_max: int) -> None:
        self._put = put
        self._size_max = size_max
        self._waiting: list[tuple[Q, asyncio.Future[A]]] = []
        self._running: asyncio.Task[None] | None = None

    async def ask(self, question: Q) -> A:
        """The answer. A caller that is cancelled leaves its question: it may be carried out."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[A] = loop.create_future()
        self._waiting.append((question, future))
        if self._running is None:
            self._running = loop.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while self._waiting:
            some, self._waiting = self._waiting[: self._size_max], self._waiting[self._size_max :]
            await self._carry_out(some)
        self._running = None

    async def _carry_out(self, some: Sequence[tuple[Q, asyncio.Future[A]]]) -> None:
        try:
            answers = await self._put([question for question, _ in some])
        except Exception as error:  # noqa: BLE001 - every caller gets it
            for _, future in some:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), answer in zip(some, answers, strict=True):
            if not future.done():
                future.set_result(answer)
