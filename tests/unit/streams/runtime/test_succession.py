"""One ownership after the other: what begins only after what has ended, and what ends one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from laxity.schemas.timing import ManualClock, SystemClock
from laxity.streams.runtime import host as host_module
from laxity.streams.runtime.cluster import ClusterError
from laxity.streams.runtime.host import STUCK_MS_MAX, Host, ShardStuck
from laxity.streams.runtime.shard import HELD_MS, START_OVER_MS, Shard
from laxity.streams.state.rocks import StoreCorruptError, StoreError, StoreFullError, StoreLockedError

WAIT_S = 10


class Naming:
    """A board on which every shard is somebody else's, so that a shard only looks at it."""

    def __init__(self) -> None:
        self.looked = threading.Event()

    def hold(self, _shard: int) -> bool:
        self.looked.set()
        return False

    def named_by_others(self) -> frozenset[int]:
        raise AssertionError

    def drop(self, shard: int) -> None:
        raise AssertionError(shard)


def shard(naming: Naming) -> Shard:
    copies = SimpleNamespace(claimed=lambda _: nullcontext())
    around: Any = SimpleNamespace(clock=ManualClock(), naming=naming, copies=copies, failed=None)
    premises: Any = lambda _: SimpleNamespace(meter=SimpleNamespace(gone=lambda: None))  # noqa: E731
    return Shard(0, around, premises)


def old_thread(until: threading.Event) -> threading.Thread:
    thread = threading.Thread(target=until.wait, args=(WAIT_S,), daemon=True)
    thread.start()
    return thread


def test_a_shard_begins_only_after_its_last_thread_has_ended() -> None:
    naming, ended = Naming(), threading.Event()
    successor = shard(naming)
    successor.follow([old_thread(ended)])
    successor.start()
    assert not naming.looked.wait(0.2)
    ended.set()
    assert naming.looked.wait(WAIT_S)
    successor.stop()
    successor.join(WAIT_S)
    assert not successor.is_alive()


def test_one_that_is_taken_away_again_does_not_wait_for_it() -> None:
    naming, ended = Naming(), threading.Event()
    successor = shard(naming)
    successor.follow([old_thread(ended)])
    successor.start()
    successor.stop()
    successor.join(WAIT_S)
    assert not successor.is_alive()
    assert not naming.looked.is_set()
    ended.set()


class Stuck(threading.Thread):
    """A shard whose batch does not end."""

    def __init__(self, number: int) -> None:
        super().__init__(daemon=True)
        self.shard = number
        self.before: list[threading.Thread] = []
        self.released = threading.Event()
        self.may_end = threading.Event()

    def run(self) -> None:
        self.may_end.wait(WAIT_S)

    def stop(self) -> None: ...

    def follow(self, before: list[threading.Thread]) -> None:
        self.before = before


def test_the_host_tells_a_new_owner_which_threads_of_the_shard_are_left(monkeypatch: Any) -> None:
    monkeypatch.setattr(host_module, "LET_GO_MS_MAX", 0)
    made: list[Stuck] = []

    def make(number: int) -> Stuck:
        made.append(Stuck(number))
        return made[-1]

    host = Host()
    directory = SimpleNamespace(remember=lambda _me, _shards: None)
    host._parts = SimpleNamespace(  # type: ignore[assignment]
        make_shard=make, directory=directory, clock=SystemClock(), liveness=SimpleNamespace(me="p")
    )
    granted: Callable[[list[int]], None] = host._granted
    granted([0, 1])
    host._revoked([0, 1])
    granted([0])
    host._revoked([0])
    made[0].may_end.set()
    made[0].join(WAIT_S)
    granted([0, 1])
    assert made[2].before == [made[0]]
    assert made[3].before == [made[2]]
    assert made[4].before == [made[1]]
    for thread in made:
        thread.may_end.set()


def test_a_rescue_names_a_shard_while_it_ends_its_transaction_and_leaves_alone_what_somebody_alive_has() -> (
    None
):
    told: list[tuple[str, int]] = []

    def hold(number: int) -> bool:
        told.append(("hold", number))
        return number != 1

    def make_transactions(number: int) -> Any:
        def fence(_: object) -> None:
            told.append(("fence", number))

        return SimpleNamespace(fence=fence, close=lambda: None)

    host = Host()
    liveness = SimpleNamespace(hold=hold, drop=lambda number: told.append(("drop", number)))
    host._parts = SimpleNamespace(liveness=liveness, make_transactions=make_transactions)  # type: ignore[assignment]
    for number in (0, 1):
        host._end_transaction("dead", number)
    assert told == [("hold", 0), ("fence", 0), ("drop", 0), ("hold", 1)]


@pytest.mark.parametrize("leaving", [False, True])
def test_a_shard_whose_transaction_never_ends_ends_the_process(*, leaving: bool) -> None:
    """Its siblings run and the process looks well: without this the shard would stand for ever."""
    host, stuck = Host(), SimpleNamespace(shard=1, under_way_ms=lambda: STUCK_MS_MAX, is_alive=lambda: True)
    if leaving:
        host._leaving = [stuck]  # type: ignore[list-item]
    else:
        host._shards = {1: stuck}  # type: ignore[dict-item]
    host._watch()
    assert not host._stopping.is_set()
    stuck.under_way_ms = lambda: STUCK_MS_MAX + 1
    host._watch()
    assert isinstance(host._failure, ShardStuck)
    assert host._stopping.is_set()
    assert host.left_behind


def test_a_damaged_store_is_thrown_away_before_the_shard_starts_over(tmp_path: Path) -> None:
    (tmp_path / "000001.sst").write_bytes(b"rotten")
    dropped: list[int] = []
    reading = SimpleNamespace(detach=lambda _: [])
    naming = SimpleNamespace(hold=lambda _: True, drop=dropped.append)
    around: Any = SimpleNamespace(
        clock=ManualClock(), naming=naming, reading=reading, producer_properties=lambda _: {}
    )
    premises: Any = lambda _: SimpleNamespace(meter=SimpleNamespace(started_over=lambda: None))  # noqa: E731
    found = Shard(0, around, premises)

    def own(*_: object) -> None:
        raise StoreCorruptError(tmp_path, "Corruption: block checksum mismatch")

    found._own = own  # type: ignore[assignment]
    assert found._one_ownership() == START_OVER_MS
    assert not tmp_path.exists()
    assert dropped == [0]


@pytest.mark.parametrize(
    ("error", "failed"),
    [
        (StoreFullError(Path("/"), "No space left on device"), 1),
        (StoreError(Path("/"), "Permission denied"), 1),
        (StoreLockedError(Path("/"), "lock hold by other"), 0),
        (ClusterError("no answer"), 0),
    ],
    ids=["full", "refused", "locked", "cluster"],
)
def test_a_disk_that_refuses_ends_the_process_and_what_may_pass_does_not(
    error: Exception, failed: int
) -> None:
    failures: list[BaseException] = []
    reading = SimpleNamespace(detach=lambda _: [])
    naming = SimpleNamespace(hold=lambda _: True, drop=lambda _: None)
    copies = SimpleNamespace(claimed=lambda _: nullcontext())
    around: Any = SimpleNamespace(
        clock=ManualClock(),
        naming=naming,
        reading=reading,
        copies=copies,
        producer_properties=lambda _: {},
        failed=failures.append,
    )
    premises: Any = lambda _: SimpleNamespace(  # noqa: E731
        meter=SimpleNamespace(started_over=lambda: None, gone=lambda: None)
    )
    found = Shard(0, around, premises)

    def own(*_: object) -> None:
        found.stop()
        raise error

    found._own = own  # type: ignore[assignment]
    found.run()
    assert failures == ([error] * failed)
    assert str(error) in (found.refusal or str(failures))


def test_a_name_on_the_board_is_looked_at_again_soon() -> None:
    assert shard(Naming())._one_ownership() == HELD_MS < START_OVER_MS
