"""One thread and one connection to the ledger for all shards of the process; each waits a bounded time for its own answer."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as LateError
from typing import TypeVar

from laxity.schemas.timing import Clock, Millis
from laxity.streams.ledger.pages import Pages, pages
from laxity.streams.ledger.protocol import (
    Answer,
    Exchange,
    LedgerUnavailable,
    Live,
    Reconciled,
    Report,
    ShardLedger,
)
from laxity.streams.runtime.crashpoints import reach
from laxity.streams.runtime.logs import Event, logger
from laxity.streams.runtime.one_thread import OneThread

ANSWER_MS = 20  # a batch waits no longer; what it asked is then unknown and asked again under the same ids
ANSWER_MS_MAX = 500  # after late answers, doubled each time: as long as the connection waits, so what is answered at all is heard
SILENT_MS = 1_000  # a late answer now and then is load; silence for so long is an outage
CLOSE_S_MAX = 2.0  # connecting, a script that must be loaded, an answer: each has its own 500 ms
T = TypeVar("T")


class LedgerLine:
    """Thread-safe. An answer that comes too late is dropped: asked again under the same ids, the ledger says the same."""

    def __init__(self, ledger: ShardLedger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._thread = OneThread("ledger")
        self._late: dict[int, Future[Answer]] = {}
        self._patience_ms: dict[int, Millis] = {}  # per shard
        self._silent_since_ms: Millis | None = None
        self._told = False
        self._log = logger()

    def ask(self, exchange: Exchange) -> Answer | None:
        """One round trip; None: no answer in time, everything asked is unknown. Never waits behind an earlier call of the shard."""
        late = self._late.get(exchange.shard)
        if late is not None and not late.done():
            return None
        if late is not None and not late.cancelled():
            self._look_into(late)
        reach("before_ledger")
        future = self._thread.submit(lambda: self._ledger.exchange(exchange))
        self._late[exchange.shard] = future
        patience_ms = self._patience_ms.get(exchange.shard, ANSWER_MS)
        answer = self._wait(future, patience_ms)
        reach("after_ledger")
        changed_ms = patience_ms * 2 if answer is None else patience_ms // 2
        self._patience_ms[exchange.shard] = max(ANSWER_MS, min(changed_ms, ANSWER_MS_MAX))
        return answer

    def begin_reconcile(
        self, *, shard: int, owner_epoch: int, seen_epoch: str, live: Sequence[Live]
    ) -> Future[Reconciled]:
        """After a takeover and after status `recovering`: with many live ids it takes longer than a batch may wait, so `finish` it later."""
        whole: Future[Reconciled] = Future()
        asked = pages(shard=shard, owner_epoch=owner_epoch, seen_epoch=seen_epoch, live=live)
        self._turn(asked, next(asked), whole)
        return whole

    def _turn(self, asked: Pages, page: Report, whole: Future[Reconciled]) -> None:
        """One page each turn of the thread, so that other shards' calls go between."""

        def done(reported: Future[Reconciled]) -> None:
            try:
                self._turn(asked, asked.send(reported.result()), whole)
            except StopIteration as end:
                whole.set_result(end.value)
            except BaseException as error:  # noqa: BLE001 - whoever waits for the whole gets it
                whole.set_exception(error)

        self._thread.submit(lambda: self._ledger.report(page)).add_done_callback(done)

    def finish(self, begun: Future[Reconciled], *, wait_ms: Millis = 0) -> Reconciled | None:
        """What came of it; None: nothing yet, or (where `begun.done()`) the ledger did not answer."""
        try:
            found = begun.result(wait_ms / 1000)
        except LateError:
            return None
        except LedgerUnavailable as error:
            self._fell_silent(str(error))
            return None
        self._is_back()
        return found

    @property
    def is_silent(self) -> bool:
        """Whether nothing has been answered for SILENT_MS."""
        since_ms = self._silent_since_ms
        return since_ms is not None and self._clock.monotonic_ms() - since_ms >= SILENT_MS

    def _look_into(self, late: Future[Answer]) -> None:
        """An answer that nobody waited for says nothing new, but a bug is not to be lost with it."""
        error = late.exception()
        if error is not None and not isinstance(error, LedgerUnavailable):
            raise error

    def _wait(self, future: Future[T], timeout_ms: Millis) -> T | None:
        try:
            answer = future.result(timeout_ms / 1000)
        except (LateError, LedgerUnavailable) as error:
            future.cancel()
            self._fell_silent(str(error) or f"no answer in {timeout_ms} ms")
            return None
        self._is_back()
        return answer

    def _is_back(self) -> None:
        since_ms, self._silent_since_ms = self._silent_since_ms, None
        if self._told and since_ms is not None:
            self._told = False
            self._log.info(Event.LEDGER_BACK, after_ms=self._clock.monotonic_ms() - since_ms)

    def _fell_silent(self, why: str) -> None:
        if self._silent_since_ms is None:
            self._silent_since_ms = self._clock.monotonic_ms()
        if self.is_silent and not self._told:
            self._told = True
            self._log.warning(Event.LEDGER_SILENT, why=why)

    def close(self) -> None:
        """Drop what is queued; the call under way ends by its socket's timeouts, and is not waited for beyond CLOSE_S_MAX."""
        if not self._thread.close(CLOSE_S_MAX):
            self._log.warning(Event.LEDGER_SILENT, why=f"a call did not end within {CLOSE_S_MAX} s")
