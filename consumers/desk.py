"""Where deliveries become work: each record is executed, answered or reported as poison, and its place told when it is done with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, Final
from zlib import crc32

import structlog

from laxity.consumers.errors import NotWritten
from laxity.consumers.execution import Execution
from laxity.consumers.intake import Delivery, Place
from laxity.consumers.metrics import RunnerMetrics
from laxity.consumers.reports import Reporter
from laxity.schemas.addresses import address_in
from laxity.schemas.identity import murmur2, reservation_id
from laxity.schemas.records import Dispatch
from laxity.schemas.serde import Codec, Undecodable

TASK_ID_CHARS_MAX: Final = 64  # ours have 32

_log = structlog.get_logger("laxity.agents")


class Desk:
    """On the event loop. `accept` never waits; what it starts is bounded by what the intake has read."""

    def __init__(
        self,
        *,
        runner: str,
        topic: str,
        codec: Codec,
        execution: Execution,
        reporter: Reporter,
        metrics: RunnerMetrics,
    ) -> None:
        self._runner = runner
        self._topic = topic
        self._codec = codec
        self._execution = execution
        self._reporter = reporter
        self._metrics = metrics
        self._finished: Callable[[Place], None] = lambda _: None
        self._failed: Callable[[BaseException], None] = lambda _: None
        self._places: dict[str, list[Place]] = {}  # of unfinished orders, by reservation
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, finished: Callable[[Place], None], failed: Callable[[BaseException], None]) -> None:
        """Say who hears that a record is done with, and who of a bug."""
        self._finished, self._failed = finished, failed

    @property
    def unfinished(self) -> int:
        """Records in hand."""
        return len(self._tasks)

    def accept(self, deliveries: Sequence[Delivery]) -> None:
        """Start what each record asks for."""
        for delivery in deliveries:
            try:
                dispatch = self._codec.decode(Dispatch, delivery.record.value)
            except Undecodable as error:
                self._start(self._poison(delivery, error.reason, str(error)))
                continue
            problem = _problem(dispatch, self._reporter.shards())
            if problem:
                self._start(self._poison(delivery, "invalid", problem))
            else:
                self._sort(dispatch, delivery)

    async def idle(self, within_ms: int) -> bool:
        """Wait until nothing is in hand, at most so long; whether that is so."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=within_ms / 1_000)
        return not self._tasks

    def close(self) -> None:
        """Leave what is in hand to its lease."""
        for task in self._tasks:
            task.cancel()

    def _sort(self, dispatch: Dispatch, delivery: Delivery) -> None:
        name = reservation_id(dispatch.task_id, dispatch.generation, dispatch.dispatch_no)
        places = self._places.get(name)
        if places is not None:
            places.append(delivery.place)  # its partition came back while it was carried out here: it goes on
        elif delivery.question:
            self._start(self._answer(dispatch, "redelivered", delivery.place))
        elif dispatch.runner != self._runner:
            self._start(self._answer(dispatch, "other_runner", delivery.place))
        else:
            self._places[name] = [delivery.place]
            self._start(self._execution.execute(dispatch, lambda: self._done(name)))

    async def _answer(self, dispatch: Dispatch, code: str, place: Place) -> None:
        await self._reporter.bounced(dispatch, code)
        self._metrics.bounces.labels(code).inc()
        self._finished(place)

    async def _poison(self, delivery: Delivery, reason: str, text: str) -> None:
        """Its headers may say whose it is; else any shard keeps its bytes."""
        record, shards = delivery.record, self._reporter.shards()
        self._metrics.poison.inc()
        _log.warning("dispatch.poison", partition=record.partition, offset=record.offset, reason=reason)
        address = address_in(record.headers)
        if address is not None and address.shard >= shards:
            address = None
        shard = address.shard if address else murmur2(record.key or b"") % shards
        original = record.original(self._topic)
        try:
            await self._reporter.poison(shard, address, original, text)
        except NotWritten as error:
            if not error.permanent:
                raise
            # it inflated beyond what `outcomes` takes: its place and its check sum must do
            size, crc = len(record.value or b""), crc32(record.value or b"")
            pointer = replace(original, key=None, value=None, headers=())
            await self._reporter.poison(shard, address, pointer, f"{text}; {size} bytes, CRC-32 {crc:08x}")
        self._finished(delivery.place)

    def _done(self, name: str) -> None:
        for place in self._places.pop(name, ()):
            self._finished(place)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.error("runner.bug", exc_info=error)
            self._failed(error)


def _problem(dispatch: Dispatch, shards: int) -> str:
    """Why neither a shard nor the ledger could be told of this dispatch; empty if they can."""
    if not 0 <= dispatch.shard < shards:
        return f"shard {dispatch.shard}: there are {shards}"
    if not 0 < len(dispatch.task_id) <= TASK_ID_CHARS_MAX:
        return f"task_id has {len(dispatch.task_id)} characters, limit {TASK_ID_CHARS_MAX}"
    return ""
