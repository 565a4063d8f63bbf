"""One scheduler process: two readers, a thread per shard, the ledger's line, liveness, health; started together, stopped in order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass

from laxity.schemas.timing import Clock, Millis
from laxity.streams.ledger.wakes import ANY
from laxity.streams.runtime.health import HealthServer
from laxity.streams.runtime.inbox import Inbox
from laxity.streams.runtime.ledger_line import LedgerLine
from laxity.streams.runtime.liveness import Liveness
from laxity.streams.runtime.logs import Event, logger
from laxity.streams.runtime.metrics import Metrics
from laxity.streams.runtime.reader import Membership, Reader
from laxity.streams.runtime.shard import Shard
from laxity.streams.runtime.standby import Standby
from laxity.streams.runtime.stores import StateDirectory, StateDirectoryError
from laxity.streams.runtime.transactions import TransactionError, Transactions
from laxity.streams.state.rocks import StoreError

SHARDS_MAX = 8  # threads share one interpreter: beyond it another process serves better
LET_GO_MS_MAX = 1_000  # for batches under way when shards are revoked; then fencing protects, not waiting
END_S_MAX = 5.0  # for each shard when the process ends
BEAT_MS_MAX = 15_000  # a reader that has not polled for so long hangs
STUCK_MS_MAX = 20_000  # of a transaction: its calls have limits of their own, 9 s together, which the client did not always keep
BUSY_MS = 200  # a shard that ran a batch so recently shares the processor with us
JOIN_S_MAX = 10.0
SIGNAL_S_MAX = (
    0.5  # after SIGSTOP and SIGCONT a signal may interrupt another thread than the one that has to hear it
)

MakeShard = Callable[[int], Shard]


class ShardStuck(Exception):  # noqa: N818 - a state of the world
    """The client does not come back from a call."""


class Readers:
    """The urgent and the bulk reader as one, for the shards."""

    def __init__(self, urgent: Reader, bulk: Reader) -> None:
        self.urgent = urgent
        self.bulk = bulk

    def attach(self, inbox: Inbox, positions: Mapping[str, int]) -> list[Future[None]]:
        """Begin to fill the inbox."""
        return [reader.attach(inbox, positions) for reader in (self.urgent, self.bulk)]

    def detach(self, shard: int) -> list[Future[None]]:
        """Stop filling it."""
        return [reader.detach(shard) for reader in (self.urgent, self.bulk)]

    def group_metadata(self) -> object:
        """Only the urgent reader is a member."""
        return self.urgent.group_metadata()

    def lags(self) -> Mapping[tuple[str, int], int]:
        """Records not yet read."""
        return {**self.urgent.lags(), **self.bulk.lags()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a host is made of."""

    clock: Clock
    readers: Readers
    liveness: Liveness
    standby: Standby
    line: LedgerLine
    directory: StateDirectory
    metrics: Metrics
    make_shard: MakeShard
    make_transactions: Callable[[int], Transactions]
    listen: Callable[
        [Callable[[str], None], threading.Event], None
    ]  # to the ledger's wakes, until told to stop
    make_health: Callable[[Host], HealthServer]
    close: Callable[[], None]  # connections, last of all


class Host:
    """`run` returns the exit code: 0 after `stop`, 1 after a failure."""

    def __init__(self) -> None:
        self._parts: Parts | None = None
        self._shards: dict[int, Shard] = {}
        self._leaving: list[Shard] = []  # revoked, and not ended in time
        self._joined = False
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._log = logger()

    # told by the parts

    def membership(self) -> Membership:
        """For the urgent reader."""
        return Membership(granted=self._granted, revoked=self._revoked, lost=self._revoked)

    def failed(self, error: BaseException) -> None:
        """A part cannot go on, nor can we."""
        if self._failure is None:
            self._failure = error
            told = isinstance(error, StoreError | StateDirectoryError)  # by its text: the disk, not a bug
            trace = None if told else error
            self._log.error(Event.FAILED, kind=type(error).__name__, why=str(error), exc_info=trace)
        self._stopping.set()

    def busy_shards(self) -> int:
        """Shards that ran a batch just now."""
        parts = self._assembled()
        now_ms = parts.clock.monotonic_ms()
        return sum(now_ms - shard.busy_ms < BUSY_MS for shard in list(self._shards.values()))

    def rescue(self, process: str, shards: frozenset[int]) -> None:
        """End the open transactions of a dead process, all at once and beside the watching thread: readers of everyone stand at the oldest."""
        for shard in sorted(shards):
            threading.Thread(
                target=self._end_transaction, args=(process, shard), name=f"rescue-{shard}", daemon=True
            ).start()

    def _end_transaction(self, process: str, shard: int) -> None:
        parts = self._assembled()
        if not parts.liveness.hold(shard):
            return  # the group has given it to somebody while we waited for the broker
        transactions = parts.make_transactions(shard)
        try:
            transactions.fence(self._stopping.is_set)
        except TransactionError as error:
            self._log.warning(Event.RESCUED, process=process, shard=shard, why=str(error))
        else:
            self._log.warning(Event.RESCUED, process=process, shard=shard, why="")
        finally:
            parts.liveness.drop(shard)
            transactions.close()

    def _granted(self, shards: Sequence[int]) -> None:
        parts = self._assembled()
        self._joined = True
        for number in shards:
            self._log.info(Event.GRANTED, shard=number)
            shard = self._shards[number] = parts.make_shard(number)
            self._leaving = [old for old in self._leaving if old.is_alive()]
            shard.follow([old for old in self._leaving if old.shard == number])
            shard.start()
        if len(self._shards) > SHARDS_MAX:
            self._log.warning(Event.SHARDS_MANY, shards=len(self._shards), most=SHARDS_MAX)
        self._remember(self._shards)

    def _revoked(self, shards: Sequence[int]) -> None:
        """On the reader's thread: the group and the shards that stay wait for us, so only for batches under way, and not for long."""
        gone = [self._shards.pop(number) for number in shards if number in self._shards]
        begun_ms: Millis = self._assembled().clock.monotonic_ms()
        for shard in gone:
            shard.stop()
        for shard in gone:
            passed_ms = self._assembled().clock.monotonic_ms() - begun_ms
            shard.released.wait(max(0, LET_GO_MS_MAX - passed_ms) / 1000)
        self._leaving += gone
        for shard in gone:
            self._log.info(Event.REVOKED, shard=shard.shard, released=shard.released.is_set())
        self._remember(self._shards)

    def _remember(self, shards: Iterable[int]) -> None:
        parts = self._assembled()
        parts.directory.remember(parts.liveness.me, shards)

    def _woken(self, resource: str) -> None:
        if resource != ANY:  # after a reconnect; each refusal has a timer of its own
            for shard in list(self._shards.values()):
                shard.hear(resource)

    # health

    def live_problems(self) -> list[str]:
        """Threads that hang."""
        parts = self._assembled()
        now_ms = parts.clock.monotonic_ms()
        return [
            f"reader {reader.name} has not polled for {now_ms - reader.beat_ms} ms"
            for reader in (parts.readers.urgent, parts.readers.bulk)
            if now_ms - reader.beat_ms > BEAT_MS_MAX
        ]

    def ready_problems(self) -> list[str]:
        """Why this process does not schedule, or not all that it should."""
        found = [] if self._joined else ["not yet a member of the group"]
        for number, shard in sorted(self._shards.items()):
            if shard.status != "running":
                found.append(f"shard {number}: {shard.refusal or shard.status}")
        if self._assembled().line.is_silent:
            found.append("the ledger does not answer")
        return found

    # life

    def stop(self) -> None:
        """End in order; safe in a signal handler."""
        self._stopping.set()

    def _assembled(self) -> Parts:
        assert self._parts is not None, "run() comes first"
        return self._parts

    def run(self, parts: Parts) -> int:
        """Until stopped or failed."""
        self._parts = parts
        parts.metrics.shards.set_function(
            lambda: sum(shard.status == "running" for shard in list(self._shards.values()))
        )
        health = parts.make_health(self)
        health.start()
        wakes = threading.Thread(
            target=parts.listen, args=(self._woken, self._stopping), name="wakes", daemon=True
        )
        threads: list[threading.Thread] = [
            parts.liveness,
            wakes,
            parts.readers.bulk,
            parts.readers.urgent,
            parts.standby,
        ]
        self._log.info(Event.STARTED, directory=str(parts.directory.root), port=health.port)
        for thread in threads:
            thread.start()
        while not self._stopping.wait(SIGNAL_S_MAX):
            self._watch()
        self._end(parts, health, wakes)
        return 0 if self._failure is None else 1

    def _watch(self) -> None:
        """A call of the client that never returns leaves its shard standing while all others run: another process must take it."""
        for shard in [*self._shards.values(), *self._leaving]:
            took_ms = shard.under_way_ms()
            if took_ms > STUCK_MS_MAX:
                self.failed(ShardStuck(f"shard {shard.shard}: a transaction has not ended for {took_ms} ms"))

    @property
    def left_behind(self) -> bool:
        """Whether threads of shards could not be ended: they must not keep the process."""
        return any(shard.is_alive() for shard in [*self._shards.values(), *self._leaving])

    def _end(self, parts: Parts, health: HealthServer, wakes: threading.Thread) -> None:
        """Shards first, so that their last commits still have a member of the group behind them."""
        self._log.info(Event.STOPPING)
        shards = list(self._shards.values())
        for shard in shards:
            shard.stop()
        for shard in shards:
            shard.join(END_S_MAX)
        for reader in (parts.readers.urgent, parts.readers.bulk):
            reader.stop()
        for reader in (parts.readers.urgent, parts.readers.bulk):
            reader.join(JOIN_S_MAX)
        parts.standby.stop()
        parts.standby.join(JOIN_S_MAX)
        parts.liveness.stop()
        wakes.join(JOIN_S_MAX)
        parts.line.close()
        health.close()
        parts.close()
        with suppress(
            StateDirectoryError
        ):  # an old note is no harm: nobody living has the shards by that name
            self._remember(())
        parts.directory.release()
        self._log.info(Event.STOPPED)
