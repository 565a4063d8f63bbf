"""Carries out a list of faults that was made before the run: lanes beside each other, in each lane one fault after the other.

So at most as many faults are at work as there are lanes. Every fault has a number; what it hit is kept as a Strike, for coverage: a run
whose faults missed, or hit idle processes, is no evidence.

A fault with a `point` is a process that dies by itself at a named crash point: it is armed when the fault before it in its lane, on the
same victim, has killed the process, so a chain of points needs one kill from outside to begin with.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import redis
from chaos.member import Life
from chaos.world import World

FALL_MS = 60_000  # an armed process that lives longer did not come by its point: the fault missed
BACK_MS = 180_000  # a victim that is not ready again by then is a failure of its own; a busy machine needs a minute for a broker
ALIVE_MS = 30_000
POLL_S = 0.02
LOOK_S = 0.1  # at what an armed process has under way: it costs a question to Redis
KILL = "kill"  # from outside, at a time that nobody chose
POINT = "point"  # by itself, at a named place

# At these a transaction or a lease is open by what the place is.
OPEN = {
    "scheduler": frozenset({"after_begin", "mid_produce", "before_offsets", "before_commit"}),
    "runner": frozenset({"after_claim", "before_call", "in_call", "after_call", "after_result"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One planned fault. `pause_ms`: quiet before it, once the fault before it is over; `count`: which passing of the point kills.

    `duration_ms`, `text`: for the kinds of a suite. `lose_state`: a killed scheduler's state directory goes with it.
    """

    number: int
    lane: str
    kind: str
    victim: str
    pause_ms: int = 0
    point: str = ""
    count: int = 0
    duration_ms: int = 0
    lose_state: bool = False
    text: str = ""

    @property
    def crashpoint(self) -> str:
        """As the victim's environment says it."""
        return f"{self.point}:{self.count}" if self.point else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """What became of a fault. `at_ms`, `over_ms`: UTC, when it began and when the victim was well again; `back_ms`: until the victim was ready again, -1 where nobody waited; `held`: its shards."""

    number: int
    lane: str
    kind: str
    victim: str
    what: str
    at_ms: int
    over_ms: int
    landed: bool
    busy: bool
    back_ms: int = -1
    held: Sequence[int] = ()


Injury = Callable[["Nemesis", Fault], bool]
"""Does a fault of its kind and ends when it is over; whether it landed."""


@dataclass(slots=True, kw_only=True)
class Nemesis:
    """Run in threads of its own: `start`, then `join`, as often as there are plans. `injuries`: what a suite adds to kills and crash points."""

    world: World
    injuries: Mapping[str, Injury] = field(default_factory=dict)
    say: Callable[[str], None] = lambda _: None
    strikes: list[Strike] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _under_way: int = 1

    def start(self, faults: Sequence[Fault]) -> None:
        """One thread per lane."""
        for lane in dict.fromkeys(fault.lane for fault in faults):
            mine = [fault for fault in faults if fault.lane == lane]
            thread = threading.Thread(target=self._guarded, args=(mine,), name=f"nemesis-{lane}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def join(self) -> None:
        """Until every fault was carried out."""
        for thread in self._threads:
            thread.join()

    def stop(self) -> None:
        """No further fault."""
        self._stop.set()

    @property
    def busy(self) -> bool:
        """Whether a lane is still at work."""
        return any(thread.is_alive() for thread in self._threads)

    # a lane

    def _guarded(self, faults: Sequence[Fault]) -> None:
        try:
            self._run(faults)
        except Exception as error:  # noqa: BLE001 - told with the others
            self.failures.append(f"lane {faults[0].lane}: {type(error).__name__}: {error}")

    def _run(self, faults: Sequence[Fault]) -> None:
        followers = [*faults[1:], None]
        for fault, following in zip(faults, followers, strict=True):
            if self._stop.wait(fault.pause_ms / 1_000):
                return
            chained = (
                following if following and following.point and following.victim == fault.victim else None
            )
            if fault.kind == KILL:
                self._kill(fault, chained)
            elif fault.kind == POINT:
                self._fall(fault, chained)
            else:
                self._injure(fault)
        self._once_more(faults)

    def _once_more(self, faults: Sequence[Fault]) -> None:
        """Points that nobody came by get a second chance, each after a kill of its own."""
        landed = {strike.number for strike in self.strikes if strike.landed}
        for fault in faults:
            if fault.kind == POINT and fault.number not in landed and not self._stop.is_set():
                member = self.world[fault.victim]
                member.crashpoint = fault.crashpoint
                member.kill()
                self._fall(fault, None)

    def _kill(self, fault: Fault, following: Fault | None) -> None:
        member = self.world[fault.victim]
        alive = self.until(lambda: member.life is not None, ALIVE_MS)
        busy, held = self.is_busy(fault.victim), self._held(fault.victim)
        member.crashpoint = following.crashpoint if following else ""
        at_ms = self.world.clock.now_ms()
        life = member.kill(stay_dead=fault.lose_state) if alive else None
        if fault.lose_state:
            self.world.lose_state(fault.victim)
            member.start()
        back_ms = -1 if following else self._await_back(fault.victim)
        what = "kill -9, its state lost" if fault.lose_state else "kill -9"
        self._note(fault, what, at_ms, landed=life is not None, busy=busy, held=held, back_ms=back_ms)

    def _fall(self, fault: Fault, following: Fault | None) -> None:
        """Wait for the armed life, arm the one after it, wait for the fall; one that does not fall is killed."""
        member = self.world[fault.victim]
        if not self.until(lambda: self._armed(fault) is not None, ALIVE_MS):
            self._note(fault, f"never armed with {fault.crashpoint}", self.world.clock.now_ms(), landed=False)
            return
        life = self._armed(fault)
        assert life is not None
        member.crashpoint = following.crashpoint if following else ""
        open_ = fault.point in OPEN.get(member.role, ())
        busy, held = open_, frozenset[int]()
        until_ms = self.world.clock.monotonic_ms() + FALL_MS
        while life.code is None and self.world.clock.monotonic_ms() < until_ms and not self._stop.is_set():
            busy = open_ or self.under_way() > 0
            held = self._held(fault.victim) or held
            self._stop.wait(LOOK_S)
        if life.code is None:
            member.kill()
        back_ms = -1 if following else self._await_back(fault.victim)
        at_ms = self.world.clock.now_ms()
        what = f"died at {fault.crashpoint}" if life.fell else f"did not come by {fault.crashpoint}"
        self._note(fault, what, at_ms, landed=life.fell, busy=busy, held=held, back_ms=back_ms)

    def _armed(self, fault: Fault) -> Life | None:
        """The victim's last life, if it is armed for this fault."""
        lives = self.world[fault.victim].lives
        return lives[-1] if lives and lives[-1].crashpoint == fault.crashpoint else None

    def _injure(self, fault: Fault) -> None:
        busy, held, at_ms = self.is_busy(fault.victim), self._held(fault.victim), self.world.clock.now_ms()
        landed = self.injuries[fault.kind](self, fault)
        back_ms = self._await_back(fault.victim) if fault.victim in self.world.members else -1
        self._note(fault, fault.kind, at_ms, landed=landed, busy=busy, held=held, back_ms=back_ms)

    def _await_back(self, name: str) -> int:
        began_ms = self.world.clock.monotonic_ms()
        try:
            self.world.await_ready(name, within_ms=BACK_MS)
        except TimeoutError as error:
            self.failures.append(f"{name} did not come back: {error}")
            return -1
        return self.world.clock.monotonic_ms() - began_ms

    def _note(
        self,
        fault: Fault,
        what: str,
        at_ms: int,
        *,
        landed: bool,
        busy: bool = False,
        held: frozenset[int] = frozenset(),
        back_ms: int = -1,
    ) -> None:
        strike = Strike(
            number=fault.number,
            lane=fault.lane,
            kind=fault.kind,
            victim=fault.victim,
            what=what,
            at_ms=at_ms,
            over_ms=self.world.clock.now_ms(),
            landed=landed,
            busy=busy,
            back_ms=back_ms,
            held=sorted(held),
        )
        with self._lock:
            self.strikes.append(strike)
        signs = f"{'' if landed else ' MISSED'}{' busy' if busy else ''}"
        self.say(
            f"fault {fault.number} {fault.victim}: {what}{signs}, back {back_ms} ms, shards {strike.held}"
        )

    # what injuries need

    def until(self, holds: Callable[[], bool], within_ms: int) -> bool:
        """Whether it held within the time; looked at every POLL_S."""
        end_ms = self.world.clock.monotonic_ms() + within_ms
        while not holds():
            if self.world.clock.monotonic_ms() > end_ms or self._stop.is_set():
                return False
            self._stop.wait(POLL_S)
        return True

    def last(self, duration_ms: int) -> None:
        """Let a fault last."""
        self._stop.wait(duration_ms / 1_000)

    def under_way(self) -> int:
        """Reservations that stand; while Redis does not answer, as last seen."""
        try:
            with redis.Redis.from_url(self.world.settings.redis_url, socket_timeout=0.5) as client:
                self._under_way = reservations(client, self.world.settings.prefix)
        except redis.RedisError:
            return self._under_way
        return self._under_way

    def is_busy(self, name: str) -> bool:
        """A runner: an attempt runs; a scheduler: it has shards and work is under way; a server: work is under way."""
        role = name.partition("-")[0]
        if role == "runner":
            return self.world.metrics(name).get("laxity_runner_slots_taken", 0) > 0
        if role == "scheduler" and not self.world.held(name):
            return False
        return self.under_way() > 0

    def _held(self, name: str) -> frozenset[int]:
        return self.world.held(name) if name.startswith("scheduler") else frozenset()


def reservations(client: redis.Redis, prefix: str) -> int:
    """Reservations in Redis, those that only await their settlement included."""
    keys = list(client.scan_iter(match=f"{prefix}*:reservations", count=1_000))
    return sum(int(client.hlen(key)) for key in keys)


def fallen(world: World) -> Counter[tuple[str, str]]:
    """(role, crash point) -> how many processes died there, by exit signal and what they were armed with."""
    return Counter(
        (world[name].role, life.crashpoint.partition(":")[0]) for name, life in world.lives() if life.fell
    )


def chains(
    *,
    lane: str,
    victims: Sequence[str],
    points: Sequence[tuple[str, int]],
    length: int,
    lose_state: bool = False,
) -> Iterator[Fault]:
    """A kill from outside, then up to `length` of the points, on one victim after the other. Numbers are given by `numbered`."""
    for start in range(0, len(points), length):
        victim = victims[start // length % len(victims)]
        yield Fault(number=0, lane=lane, kind=KILL, victim=victim, pause_ms=500, lose_state=lose_state)
        for point, count in points[start : start + length]:
            yield Fault(number=0, lane=lane, kind=POINT, victim=victim, point=point, count=count)


def missed(strikes: Sequence[Strike], faults: Sequence[Fault]) -> list[str]:
    """Faults that did not land, by kind; for a report."""
    landed = {strike.number for strike in strikes if strike.landed}
    left = sorted((f.kind, f.number) for f in faults if f.number not in landed)
    return [f"{kind}: {[number for _, number in found]}" for kind, found in groupby(left, key=lambda x: x[0])]
