"""Warm standby: this process tails the changelogs of shards that others run into its own state directory, so that a takeover restores little.

What is tailed is read_committed, so a copy holds nothing that was not committed. One thread and one consumer serve all copies.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TypeAlias

from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, TopicPartition
from prometheus_client import Gauge

from laxity.schemas.limits import MIB
from laxity.schemas.serde import Undecodable
from laxity.schemas.timing import Clock, Millis
from laxity.streams.runtime.cluster import ClusterError, batch_of, burst
from laxity.streams.runtime.copies import Copies
from laxity.streams.runtime.logs import Event, logger
from laxity.streams.runtime.rendezvous import Processes, Wishes
from laxity.streams.state.changelog import CHANGELOGS, ForeignRowError
from laxity.streams.state.restore import OffsetGone
from laxity.streams.state.rocks import StoreLockedError

GATHER_MS = 1_000  # a task changes several times a second, and of its changes only the last is written
GATHER_BYTES_MAX = 8 * MIB  # beyond it at most one burst of what the client has prefetched (4 MiB)
POLL_S = 0.1
CHOOSE_EVERY_MS = 500
IDS_EVERY_MS = 10_000  # a topic made anew is noticed so late; what was read meanwhile carries the old id and is thrown away
REST_PER_WORK = 3  # a copy that catches up leaves three quarters of the interpreter to the shards
ASIDE_MS = 60_000  # after rows of a newer release, a lock, or a topic that cannot be read

_OVERHEAD_BYTES = 200  # of a message beside its value

Gathered: TypeAlias = "Mapping[tuple[str, int], list[Message[bytes, bytes]]]"
"""By full name of the changelog and shard."""


class Standby(threading.Thread):
    """Daemon thread; `stop` and join."""

    def __init__(
        self,
        *,
        copies: Copies,
        wishes: Wishes,
        living: Callable[[], Processes],
        topic_ids: Callable[[], Mapping[str, str]],
        prefix: str,
        consumer: Callable[[], Consumer],
        clock: Clock,
        lag: Gauge,
        failed: Callable[[BaseException], None],
    ) -> None:
        """`living` is empty while the board is away: then all stays as it is. `topic_ids`: of the changelogs, without prefix; ClusterError."""
        super().__init__(name="standby", daemon=True)
        self._copies, self._wishes, self._living, self._topic_ids = copies, wishes, living, topic_ids
        self._names = {prefix + name: name for name in CHANGELOGS}
        self._make_consumer, self._clock, self._lag, self._failed = consumer, clock, lag, failed
        self._reading: set[int] = set()  # what the consumer is assigned
        self._aside_ms: dict[int, Millis] = {}
        self._ids: Mapping[str, str] = {}
        self._ids_ms = self._chosen_ms = clock.monotonic_ms()
        self._ending = threading.Event()
        self._log = logger()

    def stop(self) -> None:
        """End; join afterwards."""
        self._ending.set()

    def run(self) -> None:
        """Until stopped. A disk that refuses ends the process, as it would under a shard."""
        try:
            self._consumer = self._make_consumer()
            while not self._ending.is_set():
                self._choose()
                gathered = self._gather()
                begun_ms = self._clock.monotonic_ms()
                self._follow(gathered)
                self._ending.wait(REST_PER_WORK * (self._clock.monotonic_ms() - begun_ms) / 1000)
            self._consumer.close()
            for shard in self._copies.shards():
                self._copies.close(shard, "the process ends")
        except Exception as error:  # noqa: BLE001 - the process says so and ends
            self._failed(error)

    # which

    def _choose(self) -> None:
        now_ms = self._clock.monotonic_ms()
        processes = self._living()
        if now_ms - self._chosen_ms < CHOOSE_EVERY_MS or not processes:
            return
        self._chosen_ms = now_ms
        wanted = self._wishes.settled(processes, now_ms)
        wanted -= {shard for shard, until_ms in self._aside_ms.items() if now_ms < until_ms}
        for shard in self._copies.shards() - wanted:
            self._copies.close(shard, "another process keeps it")
        if wanted and (not self._ids or now_ms - self._ids_ms >= IDS_EVERY_MS):
            self._look_at_topics(now_ms)
        self._unread(self._reading - self._copies.shards())
        if self._ids:
            for shard in sorted(wanted - self._copies.shards()):
                self._open(shard)

    def _look_at_topics(self, now_ms: Millis) -> None:
        try:
            self._ids, self._ids_ms = self._topic_ids(), now_ms
        except ClusterError:
            return  # asked again in a moment; reading tells what is wrong
        self._copies.close_made_anew(self._ids)

    def _open(self, shard: int) -> None:
        try:
            self._copies.open(shard, self._ids)
        except StoreLockedError as error:
            self._put_aside(shard, error)
        else:
            self._read(shard, self._copies.nexts(shard))

    def _put_aside(self, shard: int, error: Exception) -> None:
        self._aside_ms[shard] = self._clock.monotonic_ms() + ASIDE_MS
        self._copies.close(shard, str(error))
        self._log.warning(Event.STANDBY, shard=shard, kept=False, why=str(error))

    def _read(self, shard: int, nexts: Mapping[str, int | None]) -> None:
        starts = {full: nexts[name] for full, name in self._names.items() if name in nexts}
        if starts:
            self._reading.add(shard)
            self._consumer.incremental_assign(
                [
                    TopicPartition(full, shard, OFFSET_BEGINNING if at is None else at)
                    for full, at in starts.items()
                ]
            )

    def _unread(self, shards: set[int]) -> None:
        if shards:
            self._consumer.incremental_unassign([TopicPartition(f, s) for s in shards for f in self._names])
            self._reading -= shards

    # what

    def _gather(self) -> Gathered:
        """What comes within GATHER_MS, or until it is much."""
        found: dict[tuple[str, int], list[Message[bytes, bytes]]] = {}
        until_ms, size = self._clock.monotonic_ms() + GATHER_MS, 0
        while size < GATHER_BYTES_MAX and self._clock.monotonic_ms() < until_ms and not self._ending.is_set():
            for message in burst(self._consumer, POLL_S):
                topic, shard = message.topic(), message.partition()
                if topic in self._names and shard is not None:
                    found.setdefault((topic, shard), []).append(message)
                    size += len(message) + _OVERHEAD_BYTES
        return found

    def _follow(self, gathered: Gathered) -> None:
        for (full, shard), messages in gathered.items():
            try:
                batch = batch_of(messages)
                if batch is not None:
                    self._copies.apply(shard, self._names[full], batch)
                    self._measure(shard)
            except OffsetGone as error:
                self._read_again(full, shard, str(error))
            except (ClusterError, ForeignRowError, Undecodable) as error:
                self._put_aside(shard, error)  # rows that cannot be read may be of a newer release

    def _read_again(self, full: str, shard: int, why: str) -> None:
        """From the first record there is: the topic has lost what comes next."""
        self._log.warning(Event.WIPED, shard=shard, changelog=self._names[full], why=why)
        self._copies.clear(shard, self._names[full])
        self._unread({shard})
        self._read(shard, self._copies.nexts(shard))

    def _measure(self, shard: int) -> None:
        nexts, behind = self._copies.nexts(shard), 0
        for full, name in self._names.items():
            _, high = self._consumer.get_watermark_offsets(TopicPartition(full, shard), cached=True)
            behind += max(0, high - (nexts.get(name) or 0))
        if nexts:
            self._lag.labels(str(shard)).set(behind)
