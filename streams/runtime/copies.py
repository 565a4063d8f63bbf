"""Warm copies of shards that run in other processes: both stores of each, in the folder where the shard's own thread will look for them.

That thread claims the stores before it opens them, and until it ends nothing here touches them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from laxity.schemas.timing import Clock
from laxity.streams.runtime.logs import Event, logger
from laxity.streams.runtime.stores import StateDirectory, Stores, wipe_damaged
from laxity.streams.state.changelog import CHANGELOGS, KEYS, STATE
from laxity.streams.state.restore import Batch, Copy, Derive
from laxity.streams.state.rocks import StoreCorruptError


class _Warm:
    """Both stores of one shard, each with how it follows its changelog."""

    def __init__(self, stores: Stores, how: Mapping[str, Derive], now_ms: int) -> None:
        self.stores = stores
        both = {STATE: stores.state, KEYS: stores.keys}
        self.copies = {n: Copy(both[n], stores.topic_ids[n], how[n], now_ms) for n in CHANGELOGS}

    @classmethod
    def open(cls, stores: Stores, how: Mapping[str, Derive], now_ms: int) -> _Warm:
        try:
            return cls(stores, how, now_ms)
        except BaseException:
            stores.close()
            raise


class Copies:
    """Thread-safe. A copy whose files are damaged is thrown away and absent, as is one that was claimed. Raises StoreError for a disk that refuses."""

    def __init__(
        self,
        directory: StateDirectory,
        how: Mapping[str, Derive],
        clock: Clock,
        *,
        gone: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`gone` is told of each copy that ends."""
        self._directory, self._how, self._clock, self._gone = directory, how, clock, gone
        self._lock = threading.Lock()
        self._warm: dict[int, _Warm] = {}
        self._claimed: set[int] = set()

    # from the threads of shards

    @contextmanager
    def claimed(self, shard: int) -> Iterator[None]:
        """For the shard's own thread: while it lasts, the shard's stores are not open here. One thread at a time for a shard."""
        with self._lock:
            self._claimed.add(shard)
            self._close(shard, "the shard comes here")
        try:
            yield
        finally:
            with self._lock:
                self._claimed.discard(shard)

    # from the thread that follows

    def shards(self) -> frozenset[int]:
        """Those that are open."""
        with self._lock:
            return frozenset(self._warm)

    def open(self, shard: int, topic_ids: Mapping[str, str]) -> bool:
        """Whether it is open now; not where the shard's thread has it."""
        with self._lock:
            if shard in self._claimed:
                return False
            try:
                stores = Stores.open(self._directory.shard(shard), topic_ids)
                warm = self._warm[shard] = _Warm.open(stores, self._how, self._clock.now_ms())
            except StoreCorruptError as error:
                wipe_damaged(error)
                return False
            wiped = {name: copy.wiped for name, copy in warm.copies.items() if copy.wiped}
            logger(shard=shard).info(Event.STANDBY, kept=True, wiped=wiped, next=self._nexts(warm))
            return True

    def nexts(self, shard: int) -> Mapping[str, int | None]:
        """By changelog, the offset to read on from; None: from the first record there is. Empty: there is no copy."""
        with self._lock:
            warm = self._warm.get(shard)
            return {} if warm is None else self._nexts(warm)

    @staticmethod
    def _nexts(warm: _Warm) -> Mapping[str, int | None]:
        return {name: copy.next for name, copy in warm.copies.items()}

    def apply(self, shard: int, name: str, batch: Batch) -> None:
        """The records that follow. Raises ForeignRowError, Undecodable."""
        self._with(shard, lambda warm: warm.copies[name].apply(batch, self._clock.now_ms()))

    def clear(self, shard: int, name: str) -> None:
        """The changelog no longer has what comes next: begin again from its first record."""
        self._with(shard, lambda warm: warm.copies[name].clear(self._clock.now_ms()))

    def _with(self, shard: int, do: Callable[[_Warm], None]) -> None:
        with self._lock:
            warm = self._warm.get(shard)
            if warm is None:
                return
            try:
                do(warm)
            except StoreCorruptError as error:
                self._close(shard, str(error))
                wipe_damaged(error)

    def close(self, shard: int, why: str) -> None:
        """Flush and unlock."""
        with self._lock:
            self._close(shard, why)

    def close_made_anew(self, topic_ids: Mapping[str, str]) -> None:
        """Those of topics with other ids: opened again they are judged by the new ones."""
        with self._lock:
            for shard, warm in list(self._warm.items()):
                if warm.stores.topic_ids != topic_ids:
                    self._close(shard, "a changelog was made anew")

    def _close(self, shard: int, why: str) -> None:
        warm = self._warm.pop(shard, None)
        if warm is None:
            return
        self._gone(shard)
        logger(shard=shard).info(Event.STANDBY, kept=False, why=why)
        try:
            warm.stores.close()
        except StoreCorruptError as error:
            wipe_damaged(error)
