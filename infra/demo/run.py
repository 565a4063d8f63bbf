"""One run: replay the load, watch what becomes of it, tell the figures."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from laxity.infra.demo.display import Display, counts_of
from laxity.infra.demo.ground import Ground
from laxity.infra.demo.ledger_tail import LedgerTail
from laxity.infra.demo.load import Wish
from laxity.infra.demo.replay import Progress, replay
from laxity.infra.demo.report import document
from laxity.infra.demo.sizing import loads, offered
from laxity.infra.demo.stories import TOO_MANY_REQUESTS, tell
from laxity.infra.demo.submission import RESOURCE
from laxity.infra.demo.watcher import Watcher
from laxity.producers.publisher import AsyncPublisher
from laxity.schemas.timing import Clock

GRACE_MS: Final = 60_000  # after the last deadline; what has not ended by then is lost
REFRESH_MS: Final = 250


async def demonstrate(ground: Ground, wish: Wish, run: str, display: Display, clock: Clock) -> dict[str, Any]:
    """The document of `--json`. WatchError, LedgerError, ContractError, InvalidTrigger, KafkaException."""
    watcher = await asyncio.to_thread(Watcher, ground.settings, run, clock)
    this = _Run(
        ground=ground,
        name=run,
        clock=clock,
        watcher=watcher,
        tail=LedgerTail(ground.ledger),
        begun_ms=clock.monotonic_ms(),
        progress=Progress(deduplicates=wish.dedupe),
    )
    watcher.start()
    try:
        await this.carry_out(display)
        duration_ms = clock.monotonic_ms() - this.begun_ms
        await asyncio.to_thread(watcher.finish)
    finally:
        await asyncio.to_thread(watcher.close)
    this.tail.read()
    about = _about(ground, wish, run, duration_ms, this.progress)
    return _document(this.progress, watcher, this.tail, about)


@dataclass(slots=True, kw_only=True)
class _Run:
    """A run under way."""

    ground: Ground
    name: str
    clock: Clock
    watcher: Watcher
    tail: LedgerTail
    begun_ms: int
    progress: Progress

    async def carry_out(self, display: Display) -> None:
        """Until every acknowledged task has ended, or the grace is over."""
        ground = self.ground
        async with await AsyncPublisher.connect(ground.settings, ground.config) as publisher:
            sending = asyncio.create_task(
                replay(publisher, ground.requests, self.name, self.clock, self.progress)
            )
            try:
                while not (sending.done() and self._is_over()):
                    self._show(display)
                    await asyncio.sleep(REFRESH_MS / 1_000)
            finally:
                sending.cancel()
                await asyncio.wait([sending])
            sending.result()
        self._show(display)

    def _is_over(self) -> bool:
        if self.watcher.ended.keys() >= self.progress.acknowledged.keys():
            return True
        return self.clock.now_ms() > self.progress.last_deadline_ms + GRACE_MS

    def _show(self, display: Display) -> None:
        self.watcher.check()
        self.tail.read()
        counts = counts_of(
            self.progress.acknowledged,
            self.watcher.states,
            self.watcher.missed,
            sum(line.status == TOO_MANY_REQUESTS for line in self.tail.lines),
            of=len(self.ground.requests),
        )
        display.show(counts, self.clock.monotonic_ms() - self.begun_ms)


def _document(
    progress: Progress, watcher: Watcher, tail: LedgerTail, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Tasks are those that were acknowledged and those whose trigger is in Kafka, acknowledged or not."""
    sent = {**progress.acknowledged, **watcher.sent}
    stories = tell(
        sent.values(),
        watcher.events,
        tail.lines,
        letters=watcher.letters,
        horizon_ms=progress.last_deadline_ms + GRACE_MS,
    )
    return document(stories, about)


def _about(ground: Ground, wish: Wish, run: str, duration_ms: int, progress: Progress) -> dict[str, Any]:
    capacity = ground.capacity
    by = loads(offered(ground.requests, ground.speed), capacity)
    return {
        "run": run,
        "trace": None if wish.trace is None else str(wish.trace),
        "seed": wish.seed,
        "tasks": len(ground.requests),
        "speed": ground.speed,
        "load": round(by.highest, 3),
        "load_by": {
            "slots": round(by.slots, 3),
            "requests": round(by.requests, 3),
            "tokens": round(by.tokens, 3),
        },
        "slots": capacity.slots,
        "limits": {
            RESOURCE: {
                "requests_per_minute": capacity.requests_per_minute,
                "tokens_per_minute": capacity.tokens_per_minute,
            }
        },
        "own_stack": ground.own,
        "dedupe": wish.dedupe,
        "arrivals_ms": max(request.arrival_ms for request in ground.requests),
        "duration_ms": duration_ms,
        "sent_late_ms_max": progress.late_ms,
        "acknowledged": len(progress.acknowledged),
        "unacknowledged": len(progress.failures),
    }
