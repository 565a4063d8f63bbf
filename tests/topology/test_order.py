"""Which task runs next: deadlines across tiers, strict, floors over windows, lanes that block nobody else, bounded work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from builders import (
    CONFIG,
    START_MS,
    Bench,
    Say,
    answer,
    asked,
    events,
    grant,
    grant_all,
    per_tier,
    refuse,
    silent,
    task_id,
)

from laxity.schemas.topics import TIERS
from laxity.streams.dispatch import HEADS_PER_CYCLE_MAX
from laxity.streams.ledger.protocol import Answer, Exchange, Refusal
from laxity.streams.state import keys
from laxity.streams.state.memory import MemoryStore

FLOORS = dict(zip(TIERS, (400, 250, 200, 100, 50), strict=True))


def grant_some(most: int, resource: str = "fleet.default", reason: str = "fleet_full") -> Say:
    """A resource with room for `most` in each call."""

    def say(exchange: Exchange) -> Answer:
        refusals = [
            Refusal(reservation_id=c.reservation_id, reason=reason, resource=resource, retry_ms=1_000)
            for c in exchange.candidates[most:]
        ]
        return answer(grants=[grant(c) for c in exchange.candidates[:most]], refusals=refusals)

    return say


def one_place(exchange: Exchange) -> Answer:
    """The browser has one place in each call; whoever does not need it is granted."""
    need = [c for c in exchange.candidates if c.demands]
    refusals = [
        Refusal(reservation_id=c.reservation_id, reason="slots_full", resource="browser", retry_ms=1_000)
        for c in need[1:]
    ]
    return answer(grants=[grant(c) for c in exchange.candidates if c not in need[1:]], refusals=refusals)


def backlog(b: Bench, count: int, tiers: Sequence[str] = TIERS) -> None:
    for tier in tiers:
        b.step(*(b.trigger(f"{tier}-{i}", tier) for i in range(count)), say=silent)
    b.now_ms += 1_000


def test_the_earliest_deadline_goes_first_whatever_its_tier_and_order_of_arrival() -> None:
    b = Bench()
    at = {"c": ("critical", 3), "n": ("normal", 1), "b": ("background", 2), "l": ("low", 0)}
    b.step(*(b.trigger(k, tier, deadline_ms=START_MS + 1_000 + ms) for k, (tier, ms) in at.items()))
    assert asked(b.exchange) == [task_id(k) for k in "lnbc"]


def test_equal_deadlines_go_in_the_order_of_acceptance() -> None:
    b = Bench()
    for k in "cab":
        b.step(b.trigger(k, deadline_ms=START_MS + 1_000), say=silent)
    b.step()
    assert asked(b.exchange) == [task_id(k) for k in "cab"]


def test_strict_serves_the_higher_tier_first_and_starves_the_rest() -> None:
    b = Bench('policy = "strict"')
    backlog(b, 20)
    served = per_tier([b.step(say=grant_some(1), woken=("fleet.default",)) for _ in range(25)])
    assert served == {"critical": 20, "high": 5, "normal": 0, "low": 0, "background": 0}


@pytest.mark.parametrize("at_once", [1, 2, 7, 128])
def test_while_all_tiers_wait_each_gets_its_floor(at_once: int) -> None:
    """Also where a resource gives one place at a time, so that each cycle sees one or two tasks only."""
    b = Bench("")
    backlog(b, 100)
    effects, total = [], 0
    while total < 120:
        effects.append(b.step(say=grant_some(at_once), woken=("fleet.default",)))
        served = per_tier(effects)
        total = sum(served.values())
        for tier in TIERS:
            if total <= 150:
                assert served[tier] * 1_000 >= FLOORS[tier] * total - 3_000, f"{tier} after {total}: {served}"
        assert len(effects) < 300


def test_idle_tiers_lend_their_share() -> None:
    b = Bench("")
    backlog(b, 40, ("low", "background"))
    served = per_tier([b.step(say=grant_some(1), woken=("fleet.default",)) for _ in range(40)])
    assert served["background"] in {1, 2}, "its floor is 5 %"
    assert served["low"] == 40 - served["background"], "deadlines decide over what the floors leave"


def test_a_tier_that_comes_late_is_not_owed_for_the_time_before() -> None:
    b = Bench("")
    backlog(b, 60, ("critical",))
    for _ in range(40):
        b.step(say=grant_some(1), woken=("fleet.default",))
    backlog(b, 40, ("background",))
    served = per_tier([b.step(say=grant_some(1), woken=("fleet.default",)) for _ in range(20)])
    assert served["background"] <= 2


def test_a_busy_resource_serves_low_tiers_too_though_others_go_on_beside_it() -> None:
    """Each release is followed by dispatches of work that does not need it: they must not wipe out what is owed."""
    b = Bench()
    for tier in ("critical", "background"):
        b.step(*(b.trigger(f"{tier}-{i}", tier, demands={"browser": 1}) for i in range(100)), say=silent)
    b.now_ms += 1_000
    effects = []
    for i in range(80):
        effects.append(b.step(say=one_place, woken=("browser",)))
        b.step(b.trigger(f"free-{i}"), say=one_place)
    assert per_tier(effects)["background"] in {3, 4, 5}


def test_a_full_resource_blocks_only_those_that_need_it() -> None:
    b = Bench()
    b.step(
        *(b.trigger(f"b{i}", "critical", demands={"browser": 1}) for i in range(10)), say=refuse("browser")
    )
    assert len(b.exchange.candidates) == 10
    b.step(b.trigger("llm", "background", demands={"llm": 1}), b.trigger("free", "background"))
    assert set(asked(b.exchange)) == {task_id("llm"), task_id("free")}


def test_others_do_not_wait_because_a_blocked_lane_filled_the_cycle() -> None:
    b = Bench('policy = "strict"' + CONFIG)
    urgent = [b.trigger(f"b{i}", "critical", demands={"browser": 1}) for i in range(HEADS_PER_CYCLE_MAX + 9)]
    b.step(*urgent, b.trigger("free", "background"), say=refuse("browser", retry_ms=60_000))
    assert task_id("free") not in asked(b.exchange)
    assert b.core.next_wakeup() == b.now_ms, "the rest had no turn yet"
    b.rest()
    assert b.live("free").state == "DISPATCHED"


def test_a_blocked_resource_is_asked_again_when_it_is_time_or_when_it_wakes() -> None:
    b = Bench()
    b.step(b.trigger(demands={"browser": 1}), say=refuse("browser", retry_ms=500))
    assert b.core.next_wakeup() == b.now_ms + 500
    b.now_ms += 499
    b.step()
    assert asked(b.exchange) == []
    b.step(woken=("browser",), say=refuse("browser", retry_ms=500))
    assert asked(b.exchange) == [task_id()]
    b.now_ms += 500
    b.step()
    assert b.live().state == "DISPATCHED"


@pytest.mark.parametrize(
    ("reason", "resource"), [("over_capacity", "browser"), ("unknown_resource", "browser")]
)
def test_a_task_that_can_never_be_granted_holds_nobody_up(reason: str, resource: str) -> None:
    """Its resource shrank, or went, after it was accepted."""

    def say(exchange: Exchange) -> Answer:
        unfit = [c for c in exchange.candidates if c.demands.get("browser") == 2]
        rest = [c for c in exchange.candidates if c not in unfit]
        refusals = [
            Refusal(reservation_id=c.reservation_id, reason=why, resource=resource, retry_ms=60_000)
            for why, group in ((reason, unfit), ("slots_full", rest[1:]))
            for c in group
        ]
        return answer(grants=[grant(c) for c in rest[:1]], refusals=refusals)

    b = Bench()
    big = [b.trigger(f"big{i}", demands={"browser": 2}, deadline_ms=START_MS + i) for i in range(5)]
    b.step(*big, *(b.trigger(f"small{i}", demands={"browser": 1}) for i in range(20)), say=refuse("browser"))
    for i in range(20):
        b.step(woken=("browser",), say=say)
        b.rest(say)
        assert sum(b.live(f"small{n}").state == "DISPATCHED" for n in range(20)) >= i, "one with each release"
    assert all(b.live(f"big{n}").state == "READY" for n in range(5))


def test_many_that_can_never_be_granted_do_not_spin() -> None:
    b = Bench()
    b.step(
        *(b.trigger(f"big{i}", demands={"browser": 2}) for i in range(300)),
        say=refuse("browser", "over_capacity"),
    )
    b.rest(refuse("browser", "over_capacity"))
    assert b.core.next_wakeup() is None


def test_a_silent_ledger_is_asked_now_and_then_not_in_a_spin() -> None:
    """Also where a resource was blocked before it fell silent: its time must not stay due."""
    b = Bench()
    b.step(b.trigger(demands={"browser": 1}), b.trigger("other"), say=refuse("browser", retry_ms=50))
    for _ in range(5):
        due = b.core.next_wakeup()
        assert due is not None
        assert due > b.now_ms
        b.now_ms = due
        held = tuple(c.reservation_id for c in b.exchange.candidates)
        b.step(say=silent, held=held)
    assert b.now_ms >= START_MS + 50 + 4 * 100


def test_a_ledger_that_is_not_open_yet_is_asked_again_soon_and_not_in_a_spin() -> None:
    b = Bench()
    b.step(b.trigger("a"), b.trigger("b", demands={"llm": 1}), say=refuse("", "recovering", retry_ms=15_000))
    due = b.core.next_wakeup()
    assert due is not None
    assert b.now_ms < due <= b.now_ms + 250
    b.step(b.trigger("c"))
    assert asked(b.exchange) == []
    b.now_ms = due
    b.step()
    assert {b.live(k).state for k in "abc"} == {"DISPATCHED"}


def test_a_lane_asks_for_about_as_many_as_it_got() -> None:
    b = Bench("")
    backlog(b, 300, ("normal",))
    sizes = []
    for most in (3, 3, 3, 3, 999, 999, 999, 999):
        b.step(say=grant_some(most), woken=("fleet.default",))
        sizes.append(len(b.exchange.candidates))
    assert sizes == [HEADS_PER_CYCLE_MAX, 4, 4, 4, 4, 8, 16, 32]


def test_ten_thousand_that_wait_for_a_full_resource_cost_nothing() -> None:
    """Neither reads nor candidates per waiting task: only as many as the window looks at."""
    reads = 0

    class Counted(MemoryStore):
        def get(self, key: bytes) -> bytes | None:
            nonlocal reads
            reads += 1
            return super().get(key)

        def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
            return self._counted(super().scan(start, end))

        def _counted(self, pairs: Iterator[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
            nonlocal reads
            for pair in pairs:
                reads += 1
                yield pair

    b = Bench(store=Counted())
    for n in range(10):
        b.step(*(b.trigger(f"k{n}-{i}", demands={"browser": 1}) for i in range(1_000)), say=refuse("browser"))
    assert sum(b.core.backlog()) == 10_000
    b.now_ms += 1_000
    b.step(say=one_place)
    b.step(say=one_place)  # the window has found its size
    for _ in range(20):
        reads = 0
        b.step(b.trigger(f"free{b.ends['triggers.normal']}"), say=one_place)
        assert len(b.exchange.candidates) == 1
        assert reads <= 20, "while it is full"
        reads = 0
        b.step(say=one_place, woken=("browser",))
        assert len(b.exchange.candidates) == 2
        assert reads <= 20, "one place was free"
    reads = 0
    b.core.load()
    assert reads < 3_000, "a start reads the fronts, not all that waits"


def test_hopeless_work_is_never_dispatched_even_behind_many_timers() -> None:
    b = Bench("")
    for n in range(4):
        b.step(
            *(b.trigger(f"k{n}-{i}", firm=True, deadline_ms=START_MS + 5_000) for i in range(100)),
            say=refuse("fleet.default"),
        )
    b.now_ms += 5_001
    first = len(b.history)
    b.rest()
    assert sum(per_tier(b.history[first:]).values()) == 0
    ended = [e for effects in b.history[first:] for e in events(effects)]
    assert [e.state for e in ended] == ["EXPIRED"] * 400
    assert sum(b.core.backlog()) == 0
    assert not list(b.store.scan(keys.TIMER, keys.TIMER + keys.MAX_KEY))


def test_work_that_comes_back_too_late_is_not_dispatched_in_that_same_batch() -> None:
    b = Bench()
    b.running(firm=True, deadline_ms=START_MS + 1_000, estimate_ms=500)
    b.now_ms += 501
    effects = b.step(b.outcome("yielded"))
    assert per_tier([effects])["normal"] == 0
    assert not asked(b.exchange)
    assert b.row() is None
    assert [t.after for t in events(effects)[0].transitions] == ["READY", "EXPIRED"]


def test_order_inside_a_batch_is_canonical_whatever_the_order_of_its_records() -> None:
    found = []
    for turn in (1, -1):
        b = Bench()
        b.dispatched("old")
        records = [
            *(b.trigger(f"{tier}{i}", tier) for i in range(3) for tier in TIERS),
            b.outcome("succeeded", "old"),
            b.command("cancel", "old"),
        ]
        found.append(b.step(*records[::turn], say=grant_all))
    assert found[0].state == found[1].state
    assert found[0].keys == found[1].keys
    assert found[0].outputs[:-1] == found[1].outputs[:-1]
