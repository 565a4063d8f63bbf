"""Stores are rebuilt from whatever the broker left of their changelogs: compacted, empty, nothing but markers, beheaded."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka import KafkaError, KafkaException
from integration.changelogs import CLEANER_MS, EAGER, TINY, Logs, Owner, hash_of_store, hashes, index_of
from integration.deployment import CLOCK, wait_for

from laxity.infra.local import Endpoints
from laxity.streams.runtime.stores import Stores
from laxity.streams.state.changelog import KEYS, STATE
from laxity.streams.state.memory import MemoryStore
from laxity.streams.state.restore import COPY_AGE_MS_MAX, OffsetGone, position
from laxity.streams.state.rocks import RocksStore, wipe

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


@pytest.fixture
def logs(stack: Endpoints) -> Logs:
    return Logs.made(stack, TINY)


@pytest.fixture
def owner(logs: Logs, tmp_path: Path) -> Iterator[Owner]:
    made = Owner.of(logs, tmp_path / "active")
    yield made
    made.close()


def restored(logs: Logs, folder: Path) -> Stores:
    stores = Stores.open(folder, logs.ids())
    for name, store in ((STATE, stores.state), (KEYS, stores.keys)):
        logs.restore(store, name)
    return stores


def check_equal(owner: Owner, logs: Logs, folder: Path) -> None:
    """Rows, and what follows from them, are those of the owner."""
    stores = restored(logs, folder)
    assert hashes(stores) == owner.hashes()
    assert index_of(stores.state) == index_of(owner.stores.state)
    stores.close()


@contextmanager
def compacting(stack: Endpoints, config: Mapping[str, str]) -> Iterator[Logs]:
    logs = Logs.made(stack, config)
    logs.set_broker(CLEANER_MS)
    yield logs
    logs.set_broker(dict.fromkeys(CLEANER_MS))


def test_compacted_while_a_copy_is_behind_and_rows_end(stack: Endpoints, tmp_path: Path) -> None:
    """A cold store and one that had half of it see the same, although most records are gone."""
    with compacting(stack, EAGER) as logs:
        owner = Owner.of(logs, tmp_path / "active")
        owner.live(1_000)
        half = restored(logs, tmp_path / "half")
        half.close()
        owner.live(1_000, first=1_000)
        owner.commit(end=[f"{n:032x}" for n in range(0, 1_000, 20)])

        def compacted() -> bool:
            owner.live(1, first=10_000)  # a segment ends with the first record after its time
            return len(logs.records(STATE)) < 6_000  # of some 11,700; the cleaner was busy all the while

        wait_for(compacted, "compacted")
        check_equal(owner, logs, tmp_path / "cold")
        check_equal(owner, logs, tmp_path / "half")
        owner.close()


def test_compacted_until_the_tombstones_are_gone_too(stack: Endpoints, tmp_path: Path) -> None:
    with compacting(stack, {**EAGER, "delete.retention.ms": "100"}) as logs:
        owner = Owner.of(logs, tmp_path / "active")
        owner.live(500)

        def without_tombstones() -> bool:
            owner.live(1, first=10_000)
            return logs.records(STATE).count(None) < 10

        assert not without_tombstones()
        wait_for(without_tombstones, "tombstones are gone")
        check_equal(owner, logs, tmp_path / "cold")
        owner.close()


def test_empty_and_marker_only(logs: Logs, owner: Owner, tmp_path: Path) -> None:
    store = MemoryStore()
    assert logs.restore(store, STATE).next == 0
    transactions = owner.transactions
    for _ in range(3):  # aborted: records that nobody ever reads, and markers
        transactions.fence()
        producer = transactions._producer
        assert producer is not None
        producer.begin_transaction()
        producer.produce(logs.prefix + STATE, b"junk", b"junk", partition=0)
        producer.flush(10)
        producer.abort_transaction(10)
    done = logs.restore(store, STATE)
    assert (done.rows, done.next, done.wiped) == (0, 6, "")
    assert logs.restore(MemoryStore(), STATE).next == 6
    transactions.fence()
    owner.live(20)
    check_equal(owner, logs, tmp_path / "cold")


def test_the_head_is_deleted_under_a_copy_and_under_the_reader(
    logs: Logs, owner: Owner, tmp_path: Path
) -> None:
    """What lies below the new head had ended: the rest is read again, and nothing of before stays."""
    owner.live(400)
    store = RocksStore(tmp_path / "copy")
    logs.restore(store, STATE)
    owner.commit(put=dict(owner.tasks))
    head = logs.cluster().end(logs.prefix + STATE, 0)
    owner.commit(put=dict(owner.tasks))
    before = position(store)
    assert before is not None
    assert before.next < head
    logs.behead(STATE, 0, head)
    cold = MemoryStore()
    assert logs.restore(cold, STATE).wiped == ""
    assert "not within" in logs.restore(store, STATE).wiped
    assert hash_of_store(store, STATE) == hash_of_store(cold, STATE)
    assert hash_of_store(cold, STATE).tables["task"].rows == len(owner.tasks)
    store.close()


def test_retention_runs_while_it_is_read(logs: Logs, owner: Owner) -> None:
    """The reader stands at an offset that is deleted before it asks for more: told, never skipped."""
    for _ in range(3):
        owner.live(200)
    log = logs.cluster().changelog(logs.prefix + STATE, 0, should_stop=lambda: False)
    consumer = log._consumer()
    end = logs.cluster().end(logs.prefix + STATE, 0)
    log._consumer = lambda: consumer
    batches = log.read(0)
    logs.behead(STATE, 0, end - 1)
    with pytest.raises(OffsetGone):
        list(batches)


def test_an_owner_writes_on_while_it_is_read(logs: Logs, owner: Owner, tmp_path: Path) -> None:
    """As under a reader that is no owner: whatever the moment, a prefix of what was committed, and in the end all of it."""
    writing = threading.Thread(target=owner.live, args=(600,))
    store, seen = MemoryStore(), -1
    writing.start()
    while writing.is_alive():
        done = logs.restore(store, STATE)
        assert done.next >= seen
        seen = done.next
    writing.join()
    logs.restore(store, STATE)
    assert hash_of_store(store, STATE) == owner.hashes()[STATE]


@pytest.mark.parametrize("why", ["stale", "made anew", "rows without a position"])
def test_a_copy_of_no_use_is_emptied(logs: Logs, owner: Owner, tmp_path: Path, why: str) -> None:
    owner.live(50)
    store = RocksStore(tmp_path / "copy")
    logs.restore(store, STATE)
    now_ms = CLOCK.now_ms()
    if why == "stale":
        now_ms += COPY_AGE_MS_MAX + 60_000
    elif why == "made anew":
        owner.stores.close()
        logs.delete()
        wait_for(lambda: _created_again(logs), "the topics exist again")
        wipe(tmp_path / "active")
        owner.stores, owner.tasks = Stores.open(tmp_path / "active", logs.ids()), {}
        owner.live(30, first=100)
    else:
        store.write([(b"~position", None)])
    assert logs.restore(store, STATE, now_ms=now_ms).wiped
    assert hash_of_store(store, STATE).sha256 == owner.hashes()[STATE].sha256
    store.close()


def _created_again(logs: Logs) -> bool:
    try:
        logs.create(TINY)
    except KafkaException as error:  # the deletion is still under way
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise
        return False
    return True
