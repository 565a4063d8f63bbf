"""The ready table: per lane and tier the tasks that could start, in the order of urgency.

A lane is a set of resources. When a resource refuses the head of a lane the whole lane waits for it, so nothing is done per
waiting task, and lanes that do not need the resource go on. Keyed slots (`account:acme`) are too many for lanes: a task refused
by one leaves its lane alone and waits under that key.

Memory holds a bounded front per lane and tier. It changes only in `apply`, after the commit, from the writes themselves. A lane is
forgotten once it stands empty and there are many: what tasks ask for is up to their senders, and must not add up for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush, merge
from itertools import islice
from typing import NamedTuple

from laxity.streams import choose
from laxity.streams.state import keys
from laxity.streams.state.front import Front
from laxity.streams.state.store import Store, Write

_PREFIX = len(keys.READY) + keys.LANE_BYTES + 1
_POSITION_STEP = 512  # tombstones a restart may have to walk over per lane and tier
TIERS = 5
LANES_KEPT = 512  # more than a deployment has in use; beyond it lanes that stand empty are forgotten, the longest first
FORGET_MAX = 32  # per batch: each takes a read per tier


class Lane:
    """Tasks that need the same resources."""

    __slots__ = ("fronts", "id", "parked", "resources")

    def __init__(
        self, store: Store, lane: bytes, resources: tuple[str, ...], positions: dict[bytes, bytes]
    ) -> None:
        self.id = lane
        self.resources = resources
        prefixes = [keys.ready_prefix(lane, tier) for tier in range(TIERS)]
        self.fronts = [Front(store, p, positions.get(p, b"")) for p in prefixes]
        self.parked = 0  # tasks of it that wait for a keyed slot

    def is_empty(self) -> bool:
        """Nothing waits here, nor will come back here."""
        return not self.parked and all(next(iter(front), None) is None for front in self.fronts)


class Pending:
    """What this batch has changed but not committed, per lane and tier."""

    def __init__(self, writes: Iterable[Write]) -> None:
        self._inserted: dict[bytes, list[tuple[bytes, bytes]]] = {}
        self.removed: set[bytes] = set()
        self.lanes: dict[bytes, tuple[str, ...]] = {}
        for key, value in writes:
            if key[:1] == keys.LANE and value is not None:
                self.lanes[key[1:]] = tuple(value.decode().split("\x00"))
            elif key[:1] == keys.READY:
                if value is None:
                    self.removed.add(key)
                else:
                    self._inserted.setdefault(key[:_PREFIX], []).append((key, value))

    def over(self, front: Iterable[tuple[bytes, bytes]], prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The committed front with this batch's changes."""
        inserted = sorted(self._inserted.get(prefix, ()))
        return (entry for entry in merge(front, inserted) if entry[0] not in self.removed)


class ReadyTable:
    """All lanes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lanes: dict[bytes, Lane] = {}
        self._stored: dict[bytes, bytes] = {}
        self._popped: dict[bytes, int] = {}
        self._left: dict[
            bytes, None
        ] = {}  # lanes that something has left, the longest ago first: they may be empty
        self._parking: Counter[bytes] = Counter()  # of the batch under way, by lane

    def load(self) -> None:
        """Read the lanes and positions; put every task that waited for a keyed slot back into its lane."""
        self._unpark_all()
        positions = self._store.scan(keys.POSITION, keys.POSITION + keys.MAX_KEY)
        self._stored = {key[1:]: value for key, value in positions}
        self._popped = {}
        self._lanes, self._left = {}, {}
        for key, text in list(self._store.scan(keys.LANE, keys.LANE + keys.MAX_KEY)):
            self._add_lane(key[1:], tuple(text.decode().split("\x00")))

    def _add_lane(self, lane: bytes, resources: tuple[str, ...]) -> Lane:
        if lane not in self._lanes:
            self._lanes[lane] = Lane(self._store, lane, resources, self._stored)
            self._left[lane] = None
        return self._lanes[lane]

    def _unpark_all(self) -> None:
        writes: list[Write] = []
        for key, task_id in list(self._store.scan(keys.PARKED, keys.PARKED + keys.MAX_KEY)):
            writes += [(key, None), (keys.ready_of_parked(key), task_id)]
        if writes:
            positions = self._store.scan(keys.POSITION, keys.POSITION + keys.MAX_KEY)
            writes += [(key, None) for key, _ in list(positions)]
            self._store.write(writes)

    def lanes(self, pending: Pending) -> Iterator[Lane]:
        """All lanes in the order of their ids, this batch's new ones included."""
        for lane, resources in pending.lanes.items():
            self._add_lane(
                lane, resources
            )  # an empty lane more or less decides nothing, so this needs no commit
        return (self._lanes[lane] for lane in sorted(self._lanes))

    def ordered(
        self,
        pending: Pending,
        windows: Sequence[tuple[Lane, int]],
        credits_: choose.Credits,
        floors: Sequence[int],
        policy: str,
    ) -> tuple[list[bool], Iterator[Nominee]]:
        """Which tiers have work in these lanes, and their tasks in the order of choose(), from each lane at most its window."""
        heaps = [_TierHeads(pending, windows, tier) for tier in range(TIERS)]
        left = {lane.id: window for lane, window in windows}
        eligible = [heap.head(left) is not None for heap in heaps]
        return eligible, _in_order(heaps, left, credits_, floors, policy, waiting=eligible)

    def parked(self, keyed: str, most: int) -> list[Write]:
        """Writes that put the `most` most urgent tasks of each tier that wait for a keyed slot back into their lanes: choose() picks."""
        writes: list[Write] = []
        for tier in range(TIERS):
            prefix = keys.parked_prefix(keyed) + bytes((tier,))
            for key, task_id in islice(self._store.scan(prefix, prefix + keys.MAX_KEY), most):
                writes += [(key, None), (keys.ready_of_parked(key), task_id)]
        return writes

    def is_parked_on(self, keyed: str) -> bool:
        """Whether any task waits for this keyed slot, as committed."""
        prefix = keys.parked_prefix(keyed)
        return next(iter(self._store.scan(prefix, prefix + keys.MAX_KEY)), None) is not None

    def housekeeping(self, writes: Sequence[Write]) -> list[Write]:
        """What to store with these writes besides: positions, and the end of lanes that nobody uses."""
        self._parking = self._parked_by(writes)
        return self._positions(writes) + self._forgotten(writes)

    def _parked_by(self, writes: Sequence[Write]) -> Counter[bytes]:
        """How many tasks more wait for keyed slots, by lane. A delete may name what is not there."""
        found: Counter[bytes] = Counter()
        there: dict[bytes, bool] = {}
        for key, value in writes:
            if key[:1] == keys.PARKED:
                before = there[key] if key in there else self._store.get(key) is not None
                there[key] = value is not None
                found[_lane_of(keys.ready_of_parked(key))] += there[key] - before
        return found

    def _forgotten(self, writes: Sequence[Write]) -> list[Write]:
        if len(self._lanes) <= LANES_KEPT:
            return []
        used = {_lane_of(key) for key, value in writes if key[:1] == keys.READY and value is not None}
        used |= {lane for lane, more in self._parking.items() if more > 0}
        found: list[Write] = []
        for lane in list(islice(self._left, min(FORGET_MAX, len(self._lanes) - LANES_KEPT))):
            if lane in used or not self._lanes[lane].is_empty():
                del self._left[lane]  # when something leaves it again, it is looked at again
                continue
            prefixes = [keys.ready_prefix(lane, tier) for tier in range(TIERS)]
            found += [(keys.LANE + lane, None), *((keys.POSITION + p, None) for p in prefixes)]
        return found

    def _positions(self, writes: Sequence[Write]) -> list[Write]:
        """Lowered by inserts below, raised now and then behind the pops."""
        lowest: dict[bytes, bytes] = {}
        for key, value in writes:
            if key[:1] != keys.READY:
                continue
            prefix = key[:_PREFIX]
            if value is None:
                self._popped[prefix] = self._popped.get(prefix, 0) + 1
            else:
                lowest[prefix] = min(key, lowest.get(prefix, key))
        lowered: list[Write] = [
            (keys.POSITION + p, key) for p, key in lowest.items() if key < self._stored.get(p, p)
        ]
        return lowered + [(keys.POSITION + p, self._bound(p, lowest)) for p in self._worn()]

    def _worn(self) -> list[bytes]:
        """Prefixes with so many pops since the stored position that a restart would walk over their tombstones."""
        worn = [prefix for prefix, pops in self._popped.items() if pops >= _POSITION_STEP]
        for prefix in worn:
            self._popped[prefix] = 0
        return worn

    def _bound(self, prefix: bytes, lowest: Mapping[bytes, bytes]) -> bytes:
        bound = self._lanes[prefix[1 : 1 + keys.LANE_BYTES]].fronts[prefix[-1]].lower_bound()
        return min(bound, lowest.get(prefix, bound))

    def apply(self, writes: Iterable[Write]) -> None:
        """Committed writes, of which `housekeeping` was told."""
        for key, value in writes:
            if key[:1] == keys.LANE and value is not None:
                self._add_lane(key[1:], tuple(value.decode().split("\x00")))
            elif key[:1] == keys.LANE:
                self._forget(key[1:])
            elif key[:1] == keys.POSITION and value is not None:
                self._stored[key[1:]] = value
        for key, value in writes:
            if key[:1] != keys.READY:
                continue
            front = self._lanes[_lane_of(key)].fronts[key[_PREFIX - 1]]
            if value is None:
                front.remove(key)
                self._leave(_lane_of(key))
            else:
                front.insert(key, value)
        for lane, more in self._parking.items():
            self._lanes[lane].parked += more
            self._leave(lane)
        self._parking = Counter()

    def _leave(self, lane: bytes) -> None:
        self._left.pop(lane, None)
        self._left[lane] = None

    def _forget(self, lane: bytes) -> None:
        self._lanes.pop(lane, None)
        self._left.pop(lane, None)
        for prefix in (keys.ready_prefix(lane, tier) for tier in range(TIERS)):
            self._stored.pop(prefix, None)
            self._popped.pop(prefix, None)

    def __contains__(self, lane: bytes) -> bool:
        """Whether the lane is known."""
        return lane in self._lanes

    def __len__(self) -> int:
        """Lanes that are known."""
        return len(self._lanes)

    def resources(self) -> set[str]:
        """Resources that some lane needs."""
        return {name for lane in self._lanes.values() for name in lane.resources}


def _lane_of(ready: bytes) -> bytes:
    return ready[len(keys.READY) : len(keys.READY) + keys.LANE_BYTES]


class Nominee(NamedTuple):
    """A ready task in its place."""

    key: bytes
    task_id: str
    tier: int
    lane: Lane


def _in_order(
    heaps: Sequence[_TierHeads],
    left: dict[bytes, int],
    credits_: choose.Credits,
    floors: Sequence[int],
    policy: str,
    *,
    waiting: Sequence[bool],
) -> Iterator[Nominee]:
    while True:
        heads = [heap.head(left) for heap in heaps]
        tier = choose.choose(heads, credits_, policy)
        if tier is None:
            return
        nominee = heaps[tier].pop()
        left[nominee.lane.id] -= 1
        present = [head is not None for head in heads]
        credits_ = choose.charge(credits_, floors, present, tier, waiting=waiting)
        yield nominee


class _TierHeads:
    """The heads of all lanes in one tier."""

    def __init__(self, pending: Pending, windows: Sequence[tuple[Lane, int]], tier: int) -> None:
        self._tier = tier
        self._heap: list[tuple[bytes, bytes, bytes, Lane, Iterator[tuple[bytes, bytes]]]] = []
        for lane, _ in windows:
            self._push(lane, pending.over(lane.fronts[tier], keys.ready_prefix(lane.id, tier)))

    def _push(self, lane: Lane, rest: Iterator[tuple[bytes, bytes]]) -> None:
        first = next(rest, None)
        if first is not None:
            heappush(self._heap, (first[0][_PREFIX:], lane.id, first[1], lane, rest))

    def head(self, left: Mapping[bytes, int]) -> choose.Head | None:
        """The most urgent task of a lane whose window is open."""
        while self._heap and not left[self._heap[0][1]]:
            heappop(self._heap)
        if not self._heap:
            return None
        order, _, task_id, _, _ = self._heap[0]
        return keys.read_u64(order, 0), keys.read_u64(order, 8), task_id

    def pop(self) -> Nominee:
        """Take the head; its lane's next task follows."""
        order, lane_id, task_id, lane, rest = heappop(self._heap)
        self._push(lane, rest)
        return Nominee(keys.ready_prefix(lane_id, self._tier) + order, task_id.decode(), self._tier, lane)
