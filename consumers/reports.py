"""Outcomes, made durable. Reporting is retried apart from the work: it never runs anything again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import structlog

from laxity.consumers.errors import NotWritten
from laxity.consumers.leases import Sleep
from laxity.schemas.addresses import Address
from laxity.schemas.masking import masked
from laxity.schemas.records import Dispatch, Original, Outcome
from laxity.schemas.timing import Clock

MESSAGE_BYTES_MAX: Final = 1_024  # of an outcome: it travels in events, too
CODE_CHARS_MAX: Final = 64  # a metric label and a column
RETRY_MS: Final = 100  # doubles
RETRY_MS_MAX: Final = 2_000

_log = structlog.get_logger("laxity.agents")


class OutcomeSink(Protocol):
    """Writes to `outcomes`."""

    async def write(self, partition: int, key: bytes, outcome: Outcome) -> None:
        """Durable (acknowledged by all replicas) when it returns, however long that takes; NotWritten if it surely is not.

        A caller that is cancelled leaves its record: it may still be written.
        """
        ...

    def partitions(self) -> int:
        """How many shards there are."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How one attempt ended: what is reported, apart from whose attempt it was."""

    kind: str
    code: str = ""
    message: str = ""
    retryable: bool = False
    retry_after_ms: int = 0
    result: bytes | None = None
    content_type: str = "application/json"
    checkpoint: bytes | None = None


def always() -> bool:
    """Go on trying."""
    return True


class Reporter:
    """Writes one runner's outcomes to the shard that asked."""

    def __init__(
        self,
        sink: OutcomeSink,
        *,
        runner: str,
        clock: Clock,
        sleep: Sleep,
        mask: Callable[[str], str] = masked,
    ) -> None:
        """`mask` takes secrets out of messages: an agent's error may quote its keys, and outcomes and events are kept for weeks."""
        self._mask = mask
        self._sink = sink
        self._runner = runner
        self._clock = clock
        self._sleep = sleep

    async def started(self, dispatch: Dispatch, *, while_: Callable[[], bool]) -> bool:
        """Durable `started`. False if `while_` ended before it could be written; it may have been, even so."""
        return await self._write(dispatch.shard, dispatch.task_id, self._outcome(dispatch, "started"), while_)

    async def progress(
        self, dispatch: Dispatch, checkpoint: bytes, usage: Mapping[str, int], *, while_: Callable[[], bool]
    ) -> bool:
        """A durable checkpoint; False as for `started`."""
        outcome = self._outcome(dispatch, "progress", checkpoint=checkpoint, usage=dict(usage))
        return await self._write(dispatch.shard, dispatch.task_id, outcome, while_)

    async def bounced(self, dispatch: Dispatch, code: str, message: str = "") -> None:
        """An answer, no attempt: it was not carried out here."""
        outcome = self._outcome(dispatch, "bounced", code=code, message=self._cut(message))
        await self._write(dispatch.shard, dispatch.task_id, outcome, always)

    async def ended(
        self, dispatch: Dispatch, verdict: Verdict, *, used: Mapping[str, int], usage: Mapping[str, int]
    ) -> None:
        """The end of an attempt; tried until it is durable."""
        outcome = self._outcome(
            dispatch,
            verdict.kind,
            code=verdict.code[:CODE_CHARS_MAX],
            message=self._cut(verdict.message),
            retryable=verdict.retryable,
            retry_after_ms=verdict.retry_after_ms,
            result=verdict.result,
            content_type=verdict.content_type,
            checkpoint=verdict.checkpoint,
            used=dict(used),
            usage=dict(usage),
        )
        await self._write(dispatch.shard, dispatch.task_id, outcome, always)

    async def poison(self, shard: int, address: Address | None, original: Original, message: str) -> None:
        """A dispatch that cannot be decoded, with its bytes; `address`: whose it is, where its headers say so."""
        outcome = Outcome(
            kind="failed",
            task_id=address.task_id if address else "",
            generation=address.generation if address else 0,
            dispatch_no=address.dispatch_no if address else 0,
            runner=self._runner,
            at_ms=self._clock.now_ms(),
            code="poison",
            message=self._cut(message),
            original=original,
        )
        key = original.key.decode("utf-8", "replace") if original.key else ""
        await self._write(shard, key, outcome, always)

    def shards(self) -> int:
        """How many there are."""
        return self._sink.partitions()

    def _outcome(self, dispatch: Dispatch, kind: str, **more: Any) -> Outcome:
        return Outcome(
            kind=kind,
            task_id=dispatch.task_id,
            generation=dispatch.generation,
            dispatch_no=dispatch.dispatch_no,
            attempt=dispatch.attempt,
            runner=self._runner,
            at_ms=self._clock.now_ms(),
            **more,
        )

    def _cut(self, message: str) -> str:
        """Masked, and at most MESSAGE_BYTES_MAX of valid UTF-8."""
        return self._mask(message).encode("utf-8", "replace")[:MESSAGE_BYTES_MAX].decode("utf-8", "ignore")

    async def _write(self, shard: int, key: str, outcome: Outcome, while_: Callable[[], bool]) -> bool:
        pause_ms = RETRY_MS
        while while_():
            try:
                await self._sink.write(shard, key.encode("utf-8", "replace"), outcome)
            except NotWritten as error:
                _log.warning("outcome.not_written", task=key, kind=outcome.kind, error=str(error))
                if error.permanent:
                    raise
                await self._sleep(pause_ms)
                pause_ms = min(2 * pause_ms, RETRY_MS_MAX)
            else:
                return True
        return False
