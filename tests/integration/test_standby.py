"""A warm copy of a shard that another process runs: equal to its active, gone when the shard comes, nothing uncommitted in it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from integration.changelogs import CLEANER_MS, EAGER, SHARDS, TINY, Logs, Owner, hashes, index_of
from integration.deployment import CLOCK, Process, World, deployed, wait_for
from prometheus_client import CollectorRegistry, Gauge

from laxity.infra.inspect.hashes import ShardHash, hashes_under
from laxity.infra.local import Endpoints
from laxity.schemas import kafka_properties as tables
from laxity.streams.runtime.copies import Copies
from laxity.streams.runtime.rendezvous import SETTLE_MS, Wishes
from laxity.streams.runtime.standby import Standby
from laxity.streams.runtime.stores import StateDirectory, Stores, derivations
from laxity.streams.state.changelog import STATE
from laxity.streams.state.rocks import RocksStore

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


@dataclass
class Tail:
    """A standby that is to copy every shard, beside owners in the same test."""

    logs: Logs
    root: Path
    failures: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.directory = StateDirectory.take(self.root)
        how = derivations(self.logs.codec)
        self.lag = Gauge("lag", "Lag.", ["shard"], registry=CollectorRegistry())
        self.copies = Copies(self.directory, how, CLOCK, gone=lambda shard: self.lag.remove(str(shard)))
        self.thread = Standby(
            copies=self.copies,
            wishes=Wishes("me", shards=SHARDS, count=1),
            living=lambda: {"me": (), "owner": range(SHARDS)},
            topic_ids=self.logs.ids,
            prefix=self.logs.prefix,
            consumer=lambda: self.logs.consumer(tables.STANDBY),
            clock=CLOCK,
            lag=self.lag,
            failed=self.failures.append,
        )
        self.thread.start()

    def follows(self, shard: int = 0) -> bool:
        return shard in self.copies.shards()

    def is_level(self, shard: int = 0) -> bool:
        nexts = self.copies.nexts(shard)
        end = self.logs.cluster().end
        return bool(nexts) and all(nexts[n] == end(self.logs.prefix + n, shard) for n in nexts)

    def check(self, owner: Owner) -> None:
        """Level with its active, it holds the same: rows, and what follows from them."""
        wait_for(lambda: self.is_level(owner.shard), "level", ms=20_000)
        with self.copies.claimed(owner.shard):
            stores = Stores.open(self.directory.shard(owner.shard), self.logs.ids())
            assert hashes(stores) == owner.hashes()
            assert index_of(stores.state) == index_of(owner.stores.state)
            stores.close()

    def stop(self) -> None:
        self.thread.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()
        self.directory.release()
        assert self.failures == []


@pytest.fixture
def logs(stack: Endpoints) -> Logs:
    return Logs.made(stack, TINY)


@pytest.fixture
def tail(logs: Logs, tmp_path: Path) -> Iterator[Tail]:
    made = Tail(logs, tmp_path / "standby")
    yield made
    made.stop()


def test_it_equals_its_active_while_that_writes_on(logs: Logs, tail: Tail, tmp_path: Path) -> None:
    """Claimed in the middle of the writing it is closed at once, and holds a prefix; given back it catches up."""
    owners = [Owner.of(logs, tmp_path / f"active{shard}", shard) for shard in range(SHARDS)]
    owners[0].live(100)
    writing = threading.Thread(target=owners[0].live, args=(1_500,), kwargs={"first": 100})
    writing.start()
    owners[1].live(300)
    wait_for(lambda: tail.follows(0) and tail.follows(1), "it follows both")
    with tail.copies.claimed(0):
        assert not tail.follows(0)
        RocksStore(tail.directory.shard(0) / STATE).close()
        assert tail.follows(1)
    writing.join()
    for owner in owners:
        tail.check(owner)
        owner.close()
    assert {sample.labels["shard"] for metric in tail.lag.collect() for sample in metric.samples} <= {
        "0",
        "1",
    }


def test_what_is_not_committed_is_never_in_it(logs: Logs, tail: Tail, tmp_path: Path) -> None:
    owner = Owner.of(logs, tmp_path / "active")
    owner.live(50)
    wait_for(tail.is_level, "level")
    before = owner.hashes()
    owner.transactions.fence()
    producer = owner.transactions._producer
    assert producer is not None
    producer.begin_transaction()
    for n in range(200):
        producer.produce(owner.outbox.state_topic, b"junk", b"t%d" % n, partition=0)
    producer.flush(10)
    other = Owner.of(logs, tmp_path / "other", 1)
    other.live(20)
    wait_for(lambda: tail.is_level(1), "the other shard goes on")
    with tail.copies.claimed(0):
        stores = Stores.open(tail.directory.shard(0), logs.ids())
        assert hashes(stores) == before
        stores.close()
    producer.abort_transaction(10)
    owner.transactions.fence()
    owner.live(50, first=50)
    tail.check(owner)
    for one in (owner, other):
        one.close()


def test_it_survives_compaction_and_a_lost_head(stack: Endpoints, tmp_path: Path) -> None:
    logs = Logs.made(stack, EAGER)
    logs.set_broker(CLEANER_MS)
    tail = Tail(logs, tmp_path / "standby")
    owner = Owner.of(logs, tmp_path / "active")
    try:
        for n in range(10):
            owner.live(300, first=300 * n)
        tail.check(owner)
        wait_for(lambda: _compacted(logs, owner), "compacted")
        tail.check(owner)
        with tail.copies.claimed(0):
            owner.commit(put=dict(owner.tasks))
            head = logs.cluster().end(logs.prefix + STATE, 0)
            owner.commit(put=dict(owner.tasks))
            logs.behead(STATE, 0, head)
        wait_for(lambda: tail.is_level(0), "level again")
        cold = Stores.open(tmp_path / "cold", logs.ids())
        logs.restore(cold.state, STATE)
        with tail.copies.claimed(0):
            warm = Stores.open(tail.directory.shard(0), logs.ids())
            assert hashes(warm)[STATE] == hashes(cold)[STATE]
            assert hashes(warm)[STATE].tables["task"] == owner.hashes()[STATE].tables["task"]
            warm.close()
        cold.close()
    finally:
        logs.set_broker(dict.fromkeys(CLEANER_MS))
        owner.close()
        tail.stop()


def _compacted(logs: Logs, owner: Owner) -> bool:
    owner.live(1, first=100_000)
    return len(logs.records(STATE)) < 10_000


def damage(folder: Path) -> None:
    """Every table of the closed store is rotten."""
    for table in (folder / STATE).glob("*.sst"):
        table.write_bytes(bytes(byte ^ 0xFF for byte in table.read_bytes()))


def test_damaged_files_are_made_anew(logs: Logs, tail: Tail, tmp_path: Path) -> None:
    owner = Owner.of(logs, tmp_path / "active")
    owner.live(300)
    wait_for(tail.is_level, "level")
    with tail.copies.claimed(0):
        damage(tail.directory.shard(0))
    owner.live(10, first=300)
    tail.check(owner)
    owner.close()


# real processes


@pytest.fixture
def world(stack: Endpoints, tmp_path: Path) -> Iterator[World]:
    with deployed(stack, stack.redis, tmp_path) as made:
        yield made


def lags(process: Process) -> dict[str, float]:
    return process.gauges("laxity_standby_lag")


def level(*processes: Process) -> Callable[[], bool]:
    """All shards are copied, and the copies lack nothing."""
    return lambda: (
        sum(len(lags(p)) for p in processes) == 4 and not any(sum(lags(p).values()) for p in processes)
    )


def test_two_processes_hold_each_other_and_a_takeover_restores_next_to_nothing(world: World) -> None:
    a, b = world.started(), world.started()
    wait_for(lambda: (a.shards(), b.shards()) == (2, 2), "two shards each")
    world.publish(400)
    world.check(400)
    wait_for(level(a, b), "warm")
    before = len(b.said("shard.restored"))
    a.kill()
    wait_for(lambda: b.shards() == 4, "taken over")
    restored = b.said("shard.restored")[before:]
    assert not [line for line in b.said("shard.wiped") if line.get("why")]
    rows = sum(line["rows"] for line in restored)
    assert rows < 100, f"{rows} rows of some 3,000 were restored"
    world.publish(50, start=400)
    world.check(450)


@pytest.mark.slow
def test_standby_and_active_have_equal_hashes(world: World, tmp_path: Path) -> None:
    """Both are killed at once: whatever their stores hold, at the same offset it is the same."""
    a, b = world.started(), world.started()
    wait_for(lambda: (a.shards(), b.shards()) == (2, 2), "two shards each")
    world.publish(300)
    world.check(300)
    wait_for(level(a, b), "warm")
    wait_for(lambda: _quiet(world), "nothing is written any more")
    wait_for(level(a, b), "warm")
    for process in (a, b):
        process.popen.send_signal(signal.SIGKILL)
    for process in (a, b):
        process.popen.wait()
    copies: dict[int, list[ShardHash]] = {}
    for found in hashes_under(tmp_path):
        copies.setdefault(found.shard, []).append(found)
    assert {shard: len(found) for shard, found in copies.items()} == dict.fromkeys(range(4), 2)
    for one, other in copies.values():
        assert (one.state.sha256, one.keys.sha256) == (other.state.sha256, other.keys.sha256)
        assert one.keys.rows > 0


def _quiet(world: World) -> bool:
    before = len(world.read("state"))
    wait_for(_after(SETTLE_MS // 2), "a while")
    return len(world.read("state")) == before


def _after(ms: int) -> Callable[[], bool]:
    until = CLOCK.monotonic_ms() + ms
    return lambda: CLOCK.monotonic_ms() >= until
