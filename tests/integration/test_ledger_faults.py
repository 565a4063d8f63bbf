"""What the ledger's faults do to work that runs: real Redis processes are killed, flushed, frozen, filled, cut off and failed over.

After each fault: nothing was oversold (by the runners' own clocks), nothing began while in doubt, the journal says why tasks wait, and
with all shards alive work begins again within 5 s.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from chaos.flow import CLEAR, Weather
from chaos.one_redis import CLOCK, Server, running, until
from chaos.proxy import Edge, Proxy
from chaos.town import PREFIX, TTL_MS, Run, Town, town

from laxity.streams.ledger.scripts import channel, keys
from laxity.streams.ledger.wakes import ANY, GONE_MS, PATIENCE_S, QUIET_MS, RECONNECT_S, Wakes

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

DOUBT_MS = 1_000  # a fault is noticed within
BACK_MS = 5_000  # work begins again within, once the ledger is back


@dataclass
class Scene:
    """A town at work, its server, and the wire between."""

    server: Server
    edge: Edge
    town: Town

    def wait(self, ms: int) -> None:
        """The fault lasts."""
        threading.Event().wait(ms / 1_000)

    def begins_again(self, from_ms: int) -> int:
        """How long after that moment the first work began."""
        runs: list[Run] = until(lambda: self.town.diary.begun_after(from_ms), "work begins again")
        return runs[0].began_ms - from_ms

    def lines_are_silent(self) -> bool:
        """Every shard knows that the ledger does not answer."""
        return all(shard.line.is_silent for shard in self.town.shard.values())

    def server_holds(self) -> tuple[int, int]:
        """Slots in use, reservations."""
        names = keys(PREFIX)
        return int(self.server.tell("HLEN", names[8])), int(self.server.tell("HLEN", names[3]))

    def sound(self) -> None:
        """What must hold whatever happened."""
        assert self.town.failures() == []
        assert self.town.diary.oversold() == []


@contextmanager
def at_work(folder: Path, *, shards: int = 2, work_ms: int = 150, tasks: int = 600) -> Iterator[Scene]:
    with running(folder / "redis") as server, Proxy(seed=1) as proxy:
        edge = proxy.edge("all to redis", ("127.0.0.1", server.port))
        with town(f"redis://{edge.address}/0", shards=shards, work_ms=work_ms) as made:
            scene = Scene(server, edge, made)
            made.submit(tasks)
            until(lambda: len(made.diary.runs) >= 8, "work has begun")
            yield scene
            scene.sound()
            edge.turn(CLEAR)


Act = Callable[[Scene], object]


@dataclass(frozen=True)
class Fault:
    """`cause` and `heal` it. `lasts_ms` 0: it is over at once. `forgets`: the ledger comes back without its memory."""

    cause: Act
    heal: Act = lambda scene: None
    lasts_ms: int = 0
    forgets: bool = False


def flush(scene: Scene) -> None:
    scene.server.tell("FLUSHALL")


def kill(scene: Scene) -> None:
    scene.server.kill()


def start(scene: Scene) -> None:
    scene.server.start()


def start_anew(scene: Scene) -> None:
    scene.server.forget()
    scene.server.start()


def freeze(scene: Scene) -> None:
    scene.server.freeze()


def thaw(scene: Scene) -> None:
    scene.server.thaw()


def refuse(scene: Scene) -> None:
    scene.edge.turn(Weather(accepts=False))
    scene.edge.cut()


FAULTS = {
    "flushed": Fault(flush, forgets=True),
    "killed, its file lost": Fault(kill, start_anew, lasts_ms=1_500, forgets=True),
    "killed": Fault(kill, start, lasts_ms=1_500, forgets=True),
    "frozen": Fault(freeze, thaw, lasts_ms=2_000),
    "frozen for longer than a lease": Fault(freeze, thaw, lasts_ms=TTL_MS + 3_000),
    "frozen for a moment": Fault(freeze, thaw, lasts_ms=100),
    "paused": Fault(lambda s: s.server.tell("CLIENT", "PAUSE", 2_000, "ALL"), lasts_ms=2_000),
    "full": Fault(
        lambda s: s.server.tell("CONFIG", "SET", "maxmemory", 1),
        lambda s: s.server.tell("CONFIG", "SET", "maxmemory", 0),
        lasts_ms=2_000,
    ),
    "read-only": Fault(
        lambda s: s.server.tell("REPLICAOF", "127.0.0.1", 1),
        lambda s: s.server.tell("REPLICAOF", "NO", "ONE"),
        lasts_ms=2_000,
    ),
    "its scripts lost": Fault(lambda s: s.server.tell("SCRIPT", "FLUSH")),
    "cut off": Fault(
        lambda s: s.edge.turn(Weather(up=False, down=False)), lambda s: s.edge.turn(CLEAR), lasts_ms=3_000
    ),
    "deaf": Fault(lambda s: s.edge.turn(Weather(up=False)), lambda s: s.edge.turn(CLEAR), lasts_ms=3_000),
    "mute": Fault(lambda s: s.edge.turn(Weather(down=False)), lambda s: s.edge.turn(CLEAR), lasts_ms=3_000),
    "refusing": Fault(refuse, lambda s: s.edge.turn(CLEAR), lasts_ms=2_000),
    "half-open": Fault(lambda s: s.edge.strand()),
    "reset": Fault(lambda s: s.edge.cut()),
}
QUICK = ("flushed", "frozen")


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FAULTS]
)
def test_nothing_is_oversold_nothing_begins_in_doubt_and_work_is_soon_back(name: str, tmp_path: Path) -> None:
    fault = FAULTS[name]
    with at_work(tmp_path, work_ms=1_500 if fault.forgets else 150) as scene:
        began_ms = CLOCK.monotonic_ms()
        fault.cause(scene)
        if fault.lasts_ms > DOUBT_MS:
            until(scene.lines_are_silent, "every shard knows", DOUBT_MS / 1_000 + 1.5)
            scene.wait(max(0, fault.lasts_ms - (CLOCK.monotonic_ms() - began_ms)))
        elif fault.lasts_ms:
            scene.wait(fault.lasts_ms)
        ended_ms = CLOCK.monotonic_ms()
        doubtful = [r for r in scene.town.diary.begun_after(began_ms + DOUBT_MS) if r.began_ms < ended_ms]
        assert doubtful == [], "nothing begins while in doubt"
        fault.heal(scene)
        healed_ms = CLOCK.monotonic_ms()
        assert scene.begins_again(healed_ms) <= BACK_MS
        if fault.forgets:
            until(lambda: "recovering" in scene.town.why_since(began_ms) or _reported(scene), "a reason", 5)
        until(lambda: len(scene.town.diary.begun_after(healed_ms)) >= 8, "it goes on")


def _reported(scene: Scene) -> bool:
    """Both shards reported before anybody asked for room: then nobody was refused."""
    return int(scene.server.tell("HLEN", keys(PREFIX)[2])) == scene.town.shards


@pytest.mark.slow
@pytest.mark.parametrize("delay_ms", [50, 200])
def test_a_slow_wire_slows_work_down_and_no_more(delay_ms: int, tmp_path: Path) -> None:
    """200 ms each way: an answer takes 400 ms, which is more than a shard waits at first."""
    with at_work(tmp_path) as scene:
        scene.edge.turn(Weather(delay_ms=delay_ms, jitter_ms=delay_ms // 10))
        slow_ms = CLOCK.monotonic_ms()
        until(lambda: len(scene.town.diary.begun_after(slow_ms + 2_000)) >= 12, "work goes on", 40)


def test_with_one_shard_dead_work_is_back_after_the_longest_lease(tmp_path: Path) -> None:
    """Only then has every holder that nobody reported stopped by its own clock."""
    with at_work(tmp_path, work_ms=2_500) as scene:
        scene.town.shard[1].die()
        lost_ms = CLOCK.monotonic_ms()
        flush(scene)
        first_ms = scene.begins_again(lost_ms + DOUBT_MS) + DOUBT_MS
        assert TTL_MS - 500 <= first_ms <= TTL_MS + 2_500, "not before, and soon after"
        assert "recovering" in scene.town.why_since(lost_ms)
        del scene.town.shard[1]


@pytest.mark.slow
def test_a_replica_that_lacks_the_last_grants_is_promoted(tmp_path: Path) -> None:
    with at_work(tmp_path, work_ms=400) as scene, running(tmp_path / "replica") as replica:
        replica.tell("REPLICAOF", "127.0.0.1", scene.server.port)
        until(lambda: replica.tell("HGET", keys(PREFIX)[0], "key"), "replicated")
        replica.tell("REPLICAOF", "NO", "ONE")  # what the first one grants from here on, it lacks
        parted_ms = CLOCK.monotonic_ms()
        until(lambda: len(scene.town.diary.begun_after(parted_ms)) >= 8, "grants that the replica lacks")
        scene.server.kill()
        scene.edge._upstream = ("127.0.0.1", replica.port)
        scene.edge.cut()
        promoted_ms = CLOCK.monotonic_ms()
        assert scene.begins_again(promoted_ms) <= BACK_MS
        until(lambda: len(scene.town.diary.begun_after(promoted_ms)) >= 12, "it goes on")


@pytest.mark.slow
def test_one_fault_after_the_other_and_in_the_end_all_is_done_and_nothing_is_held(tmp_path: Path) -> None:
    with at_work(tmp_path) as scene:
        for name in (
            "flushed",
            "killed",
            "frozen for longer than a lease",
            "half-open",
            "killed, its file lost",
            "flushed",
        ):
            FAULTS[name].cause(scene)
            scene.wait(FAULTS[name].lasts_ms)
            FAULTS[name].heal(scene)
            healed_ms = CLOCK.monotonic_ms()
            assert scene.begins_again(healed_ms) <= BACK_MS
        until(lambda: len(scene.town.ended) == scene.town.submitted, "all is done", 120)
        assert set(scene.town.ended.values()) == {"SUCCEEDED"}
        until(lambda: scene.server_holds() == (0, 0), "nothing is held", 2 * TTL_MS / 1_000)


def test_a_subscription_that_hangs_in_the_air_is_made_anew(tmp_path: Path) -> None:
    """The server has closed it, the client hears nothing: without a question it would listen for ever."""
    with running(tmp_path / "redis") as server, Proxy(seed=1) as proxy:
        edge = proxy.edge("wakes", ("127.0.0.1", server.port))
        heard: list[str] = []
        stop = threading.Event()
        wakes = Wakes(f"redis://{edge.address}/0")
        thread = threading.Thread(target=wakes.run, args=(heard.append, stop))
        thread.start()
        try:
            until(lambda: heard == [ANY], "subscribed")
            assert edge.strand() == 1
            most_s = (QUIET_MS + GONE_MS) / 1_000 + 2 * PATIENCE_S + RECONNECT_S
            until(lambda: heard == [ANY, ANY], "subscribed again", most_s + 3)
            server.tell("PUBLISH", channel("laxity."), "gpu")
            until(lambda: heard == [ANY, ANY, "gpu"], "and it hears")
        finally:
            stop.set()
            thread.join(10)
            wakes.close()
        assert not thread.is_alive()


@pytest.mark.slow
def test_a_quiet_subscription_is_kept(tmp_path: Path) -> None:
    with running(tmp_path / "redis") as server:
        heard: list[str] = []
        stop = threading.Event()
        wakes = Wakes(server.url)
        thread = threading.Thread(target=wakes.run, args=(heard.append, stop))
        thread.start()
        try:
            until(lambda: heard == [ANY], "subscribed")
            stop.wait((QUIET_MS + GONE_MS) / 1_000 + 1)
            assert heard == [ANY], "never lost"
        finally:
            stop.set()
            thread.join(10)
            wakes.close()
