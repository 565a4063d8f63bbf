"""From nothing to running: what a shard does each time it becomes ours, in the order that makes it safe.

1. Name the shard on the liveness board.      4. Commit owner_epoch + 1 in a transaction of its own.
2. Fence: init_transactions.                  5. Reconcile with the ledger.
3. Restore state, then keys, to their ends.   6. Check positions against marks; read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from laxity.schemas.serde import Codec
from laxity.schemas.timing import Clock
from laxity.streams.runtime.cluster import Cluster, ClusterError, Place
from laxity.streams.runtime.core import Core, MakeCore
from laxity.streams.runtime.crashpoints import reach
from laxity.streams.runtime.logs import Event, logger
from laxity.streams.runtime.meter import ShardMeter
from laxity.streams.runtime.positions import Input, Start, start_of
from laxity.streams.runtime.sources import INPUTS
from laxity.streams.runtime.stores import Stores, derivations
from laxity.streams.state.changelog import CHANGELOGS, KEYS, STATE
from laxity.streams.state.restore import Derive, OffsetGone, restore
from laxity.streams.state.store import Store

PROGRESS_EVERY_MS = 2_000  # of log lines while restoring


class Stopped(Exception):  # noqa: N818 - not an error
    """The shard was taken away or the process ends; whatever was under way is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Premises:
    """What taking over needs of the process."""

    shard: int
    prefix: str
    codec: Codec
    clock: Clock
    cluster: Cluster
    meter: ShardMeter
    accepted: Collection[str]  # TOPIC:PARTITION:OFFSET
    make_core: MakeCore
    should_stop: Callable[[], bool]


def changelog_ids(cluster: Cluster, prefix: str) -> dict[str, str]:
    """Kafka's ids of the changelogs, by name without prefix. Raises ClusterError."""
    found = cluster.topic_ids([prefix + name for name in CHANGELOGS])
    return {name: found[prefix + name] for name in CHANGELOGS}


def restore_stores(premises: Premises, stores: Stores) -> None:
    """State first, then keys; both before anything starts (docs/adr/0007)."""
    how = derivations(premises.codec)
    _restore(premises, STATE, stores.state, how[STATE])
    _restore(premises, KEYS, stores.keys, how[KEYS])


def _restore(premises: Premises, name: str, store: Store, derive: Derive) -> None:
    clock, log = premises.clock, logger(shard=premises.shard, changelog=name)
    begun_ms = said_ms = clock.monotonic_ms()

    def progress(rows: int, offset: int) -> None:
        nonlocal said_ms
        if premises.should_stop():
            raise Stopped
        if clock.monotonic_ms() - said_ms >= PROGRESS_EVERY_MS:
            said_ms = clock.monotonic_ms()
            log.info(Event.RESTORING, rows=rows, next=offset)

    changelog = premises.cluster.changelog(
        premises.prefix + name, premises.shard, should_stop=premises.should_stop
    )
    try:
        done = restore(store, changelog, derive, now_ms=clock.now_ms(), progress=progress)
    except OffsetGone as error:
        raise ClusterError(f"it loses its head faster than it can be read: {error}") from error
    if premises.should_stop():
        raise Stopped
    took_ms = clock.monotonic_ms() - begun_ms
    if done.wiped:
        log.warning(Event.WIPED, why=done.wiped)
    log.info(Event.RESTORED, rows=done.rows, next=done.next, took_ms=took_ms)
    premises.meter.restored(name, done.rows, took_ms)


def make_core(premises: Premises, stores: Stores) -> Core:
    """A core with its caches built from the restored stores."""
    reach("mid_takeover")
    return premises.make_core(premises.shard, stores.state, stores.keys)


def starts(premises: Premises, core: Core) -> dict[str, Start]:
    """Where to read each input from. Raises SkipRefused, ClusterError."""
    names = {premises.prefix + name: name for name in INPUTS}
    ids = premises.cluster.topic_ids(list(names))
    places = premises.cluster.places(list(names), premises.shard)
    return {name: _start(premises, core, ids[full], full, places[full]) for full, name in names.items()}


def _start(premises: Premises, core: Core, topic_id: str, full: str, place: Place) -> Start:
    name = full.removeprefix(premises.prefix)
    found = Input(
        topic=full,
        partition=premises.shard,
        topic_id=topic_id,
        low=place.low,
        high=place.high,
        committed=place.committed,
        mark=core.mark(name),
        mark_topic_id=core.topic_id(name),
    )
    return start_of(
        found,
        premises.accepted,
        lambda first, end: premises.cluster.record_between(full, premises.shard, first, end),
    )
