"""Submits a load open-loop: each trigger at its intended instant, whatever became of the ones before."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from laxity.infra.demo.generator import Request
from laxity.infra.demo.stories import Sent
from laxity.infra.demo.submission import headers, trigger
from laxity.producers.publisher import AsyncPublisher, PublishFailed
from laxity.schemas.timing import Clock


@dataclass(slots=True, kw_only=True)
class Progress:
    """What was sent so far, and to what kind of provider. `late_ms` is how far behind its intended instant a trigger was handed over, at worst."""

    acknowledged: dict[str, Sent] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    deduplicates: bool = True  # the provider knows a repeated call
    last_deadline_ms: int = 0
    late_ms: int = 0


async def replay(
    publisher: AsyncPublisher, load: Sequence[Request], run: str, clock: Clock, progress: Progress
) -> None:
    """Returns when every trigger is answered for. InvalidTrigger: the configuration does not fit the load."""
    try:
        await _send_all(publisher, load, run, clock, progress)
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


async def _send_all(
    publisher: AsyncPublisher, load: Sequence[Request], run: str, clock: Clock, progress: Progress
) -> None:
    start_ms, begun_ms = clock.now_ms(), clock.monotonic_ms()
    async with asyncio.TaskGroup() as group:
        for request in sorted(load, key=lambda request: request.arrival_ms):
            early_ms = request.arrival_ms - (clock.monotonic_ms() - begun_ms)
            if early_ms > 0:
                await asyncio.sleep(early_ms / 1_000)
            progress.late_ms = max(progress.late_ms, -early_ms)
            progress.last_deadline_ms = max(progress.last_deadline_ms, start_ms + request.deadline_ms)
            group.create_task(_submit(publisher, request, run, start_ms, progress))


async def _submit(
    publisher: AsyncPublisher, request: Request, run: str, start_ms: int, progress: Progress
) -> None:
    try:
        made = trigger(request, run, start_ms, deduplicates=progress.deduplicates)
        done = await publisher.publish(made, request.tier, headers(run))
    except PublishFailed as error:
        progress.failures.append(str(error))
        return
    progress.acknowledged[done.task_id] = Sent(
        task_id=done.task_id, tier=request.tier, tenant=request.tenant, appended_ms=None
    )
