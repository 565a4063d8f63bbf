"""Calls that are made one after the other on a thread of their own, which nobody has to wait for when the process ends."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

T = TypeVar("T")
Job = Callable[[], None]


class OneThread:
    """`submit` from any thread. A daemon: unlike an executor's, a call that hangs cannot keep the process alive."""

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._closed = False
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """What comes of it. One that is cancelled before its turn is never made; after `close` none is, and nothing comes."""
        future: Future[T] = Future()

        def job() -> None:
            if self._closed or not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - whoever asked gets it
                future.set_exception(error)

        self._jobs.put(job)
        return future

    def close(self, wait_s: float) -> bool:
        """Make no further call; wait so long for the one under way. Whether it ended."""
        self._closed = True
        self._jobs.put(None)
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
