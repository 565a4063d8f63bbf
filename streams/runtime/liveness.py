"""Who is alive, by counters in Redis: so that a dead process's open transactions are ended before their timeout.

One hash holds, per process, a counter and the shards it has. A process whose counter stands still for 2 s of answered reads, by the
observer's own clock, is dead; a field that vanished may be a flush and counts the same way. Where Redis is away nobody is declared dead.
The process that had our state directory before us is dead for sure: we have its lock. If its field still stands, nobody has seen to it
and nothing was flushed since, so we need not watch it first. The survivor only ends transactions, it owns nothing by that.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from laxity.schemas.timing import Clock, Millis

RAISE_EVERY_MS = 300
LOOK_EVERY_MS = 100  # what a look is late by adds to the 2 s
DEAD_AFTER_MS = 2_000
LEFT = 0  # the count of a process that ended in order: counts of the living begin at 1
GAP_MS_MAX = 1_000  # between two answered reads: a longer silence was no watching


class Board(Protocol):
    """The hash. Each method raises BoardUnavailable where the server does not answer."""

    def put(self, process: str, text: str) -> None:
        """Set one field."""
        ...

    def read(self) -> dict[str, str]:
        """All fields."""
        ...

    def remove(self, process: str) -> None:
        """Drop one field."""
        ...


class BoardUnavailable(Exception):  # noqa: N818 - a state of the world
    """No answer, or no permission."""


@dataclass(slots=True)
class _Seen:
    count: int
    shards: frozenset[int]
    watched_ms: Millis  # answered watching since the last new count


def entry(count: int, shards: Iterable[int]) -> str:
    """The value of one field."""
    return json.dumps({"count": count, "shards": sorted(shards)}, separators=(",", ":"))


def parse(text: str) -> tuple[int, frozenset[int]]:
    """The reverse; what is no entry of ours counts as one that never rises."""
    try:
        found = json.loads(text)
        return int(found["count"]), frozenset(int(shard) for shard in found["shards"])
    except (ValueError, TypeError, KeyError):
        return -1, frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Predecessor:
    """The process that had this one's state directory before, and the shards it noted there. No name: there was none."""

    process: str = ""
    shards: frozenset[int] = frozenset()


NOBODY = Predecessor()


class Watch:
    """What one observer knows of the others. Pure but for the readings it is given."""

    def __init__(self, me: str, before: Predecessor = NOBODY) -> None:
        self._me = me
        self._before = before
        self._seen: dict[str, _Seen] = {}
        self._last_ms: Millis | None = None

    def read(self, fields: dict[str, str], now_ms: Millis) -> None:
        """One answered reading, at a monotonic time."""
        if self._last_ms is None and self._before.process:
            self._recall(fields.get(self._before.process))
        passed = 0 if self._last_ms is None else now_ms - self._last_ms
        if passed > GAP_MS_MAX:
            passed = 0
        self._last_ms = now_ms
        for process in set(fields) | set(self._seen):
            if process != self._me:
                self._note(process, fields.get(process), passed)

    def _recall(self, text: str | None) -> None:
        """Without a field it was seen to, or the board was flushed: then the living get the usual time to say what they have."""
        count, shards = parse(text) if text is not None else (-1, frozenset[int]())
        watched_ms = 0 if text is None else DEAD_AFTER_MS
        self._seen[self._before.process] = _Seen(count, shards | self._before.shards, watched_ms)

    def _note(self, process: str, text: str | None, passed_ms: Millis) -> None:
        seen = self._seen.get(process)
        count, shards = parse(text) if text is not None else (-1, frozenset[int]())
        if seen is None:
            self._seen[process] = _Seen(count, shards, 0)
        elif text is None or count == seen.count:
            seen.watched_ms += passed_ms
        else:
            self._seen[process] = _Seen(count, shards, 0)

    def dead(self) -> dict[str, frozenset[int]]:
        """Processes that stood still for too long, and the shards they had; those that left had none any more."""
        seen = self._seen.items()
        return {name: s.shards for name, s in seen if s.count == LEFT or s.watched_ms >= DEAD_AFTER_MS}

    def named(self) -> frozenset[int]:
        """Shards that some other process, not known to be dead, has, as of the last reading."""
        return frozenset(shard for shards in self.living().values() for shard in shards)

    def living(self) -> dict[str, frozenset[int]]:
        """The other processes that are not known to be dead, and the shards they have."""
        dead = self.dead()
        return {name: seen.shards for name, seen in self._seen.items() if name not in dead}

    def is_ours(self, process: str) -> bool:
        """Whether we are the one who sees to a dead process: our own predecessor, and all others for the first survivor by name."""
        dead = self.dead()
        return process == self._before.process or all(
            self._me < name for name in self._seen if name not in dead
        )

    def is_current(self, now_ms: Millis) -> bool:
        """Whether the last reading is young enough to say who has what."""
        return self._last_ms is not None and now_ms - self._last_ms <= DEAD_AFTER_MS

    def forget(self, process: str) -> None:
        """Its shards were seen to."""
        self._seen.pop(process, None)


class Liveness(threading.Thread):
    """Raises our counter, watches the others, calls `rescue(process, shards)` for a dead one's shards that nobody living names."""

    def __init__(
        self,
        *,
        me: str,
        board: Board,
        clock: Clock,
        rescue: Callable[[str, frozenset[int]], None],
        before: Predecessor = NOBODY,
    ) -> None:
        super().__init__(name="liveness", daemon=True)
        self.me = me
        self._board = board
        self._clock = clock
        self._rescue = rescue
        self._watch = Watch(me, before)
        self._shards: set[int] = set()
        self._count = 0
        self._raised_ms: Millis = 0
        self._lock = threading.Lock()
        self._reading = threading.Lock()  # answers are taken in the order in which they were asked for,
        self._writing = threading.Lock()  # and an older list of shards never overwrites a newer one
        self._ending = threading.Event()

    def hold(self, shard: int) -> bool:
        """Name the shard at once, before it is fenced; where Redis is away, as soon as it answers. False: somebody living has it, here or elsewhere."""
        self._look()
        with self._lock:
            if shard in self._shards or shard in self._named():
                return False
            self._shards.add(shard)
        self._raise()
        return True

    def drop(self, shard: int) -> None:
        """Name it no longer, at once."""
        with self._lock:
            self._shards.discard(shard)
        self._raise()

    def named_by_others(self) -> frozenset[int]:
        """Shards of other living processes. Where the board has been away for DEAD_AFTER_MS: none, the group alone decides who has what."""
        with self._lock:
            return self._named()

    def _named(self) -> frozenset[int]:
        return self._watch.named() if self._watch.is_current(self._clock.monotonic_ms()) else frozenset()

    def living(self) -> dict[str, frozenset[int]]:
        """All living processes, this one included, and the shards they have; empty where the board has been away for DEAD_AFTER_MS."""
        with self._lock:
            if not self._watch.is_current(self._clock.monotonic_ms()):
                return {}
            return self._watch.living() | {self.me: frozenset(self._shards)}

    def run(self) -> None:
        """Until stopped."""
        while True:
            for process, shards in self._look().items():
                self._see_to(process, shards)
            if self._clock.monotonic_ms() - self._raised_ms >= RAISE_EVERY_MS:
                self._raise()
            if self._ending.wait(LOOK_EVERY_MS / 1000):
                return

    def _raise(self) -> None:
        with self._writing:
            with self._lock:
                self._count += 1
                self._raised_ms = self._clock.monotonic_ms()
                text = entry(self._count, self._shards)
            try:
                self._board.put(self.me, text)
            except BoardUnavailable:
                return  # the next round tries again; nobody is declared dead meanwhile

    def _look(self) -> dict[str, frozenset[int]]:
        """The dead that are ours to see to, with those of their shards that nobody living has."""
        with self._reading:
            try:
                fields = self._board.read()
            except BoardUnavailable:
                return {}
            with self._lock:
                return self._judge(fields)

    def _judge(self, fields: dict[str, str]) -> dict[str, frozenset[int]]:
        watch = self._watch
        watch.read(fields, self._clock.monotonic_ms())
        dead = watch.dead()
        for process in dead.keys() - fields.keys():
            if not watch.is_ours(process):
                watch.forget(process)  # the first one has seen to it, or it left in order
        living = watch.named() | self._shards
        return {name: had - living for name, had in dead.items() if watch.is_ours(name)}

    def _see_to(self, process: str, shards: frozenset[int]) -> None:
        if shards:
            self._rescue(process, shards)
        try:
            self._board.remove(process)
        except BoardUnavailable:
            return
        with self._lock:
            self._watch.forget(process)

    def stop(self) -> None:
        """A planned stop is no death. The field stays, for a survivor to remove: one that vanished could be a flush, and would still name shards."""
        self._ending.set()
        if self.is_alive():
            self.join()
        try:
            self._board.put(self.me, entry(LEFT, ()))
        except BoardUnavailable:
            return
