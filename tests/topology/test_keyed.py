"""Keyed slots: one task per key at a time, in the order of urgency, woken by the release, with a timer behind it."""

from __future__ import annotations

from builders import START_MS, Bench, answer, asked, driver, grant, refuse, silent, task_id, trigger

from laxity.schemas.records import Dispatch, Trigger
from laxity.schemas.topics import TIERS
from laxity.streams.dispatch import KEYED_SAFETY_MS
from laxity.streams.ledger.protocol import Answer, Exchange, Refusal
from laxity.streams.state import index, keys
from laxity.streams.testing import TopologyTestDriver

KEY = "account:acme"
NEEDS = {KEY: 1}


class OneSlot:
    """A keyed slot of capacity 1, as the ledger keeps it: the first candidate that needs it while it is free."""

    def __init__(self) -> None:
        self.taken = ""

    def __call__(self, exchange: Exchange) -> Answer:
        grants, refusals = [], []
        for c in exchange.candidates:
            if KEY in c.demands and self.taken:
                refusals.append(Refusal(reservation_id=c.reservation_id, reason="key_busy", resource=KEY, retry_ms=1_000))  # fmt: skip
                continue
            self.taken = c.task_id if KEY in c.demands else self.taken
            grants.append(grant(c))
        return answer(grants=grants, refusals=refusals, settled=[s.reservation_id for s in exchange.settles])


def parked(b: Bench) -> int:
    return len(list(b.store.scan(keys.PARKED, keys.PARKED + keys.MAX_KEY)))


def keyed_timers(b: Bench) -> int:
    return sum(k[9:10] == index.KEYED for k, _ in b.store.scan(keys.TIMER, keys.TIMER + keys.MAX_KEY))


def test_one_at_a_time_and_every_release_wakes_the_next_at_once() -> None:
    running: list[str] = []
    most = 0

    def verdict(dispatch: Dispatch) -> tuple[str, str, bool]:
        nonlocal most
        most = max(most, len(d.ledger.holders(KEY)))
        running.append(dispatch.key)
        return "succeeded", "", False

    d = driver(verdict=verdict, slots=4)
    for i in range(30):
        d.pipe("normal", trigger(f"k{i}", demands=NEEDS, deadline_ms=START_MS + 60_000 - i))
    begun_ms = d.clock.now_ms()
    d.work()
    assert most == 1
    assert running == ["k0", *(f"k{i}" for i in range(29, 0, -1))], "the most urgent next"
    assert d.clock.now_ms() == begun_ms, "no timer was needed"


def test_who_waits_for_a_key_blocks_nobody_of_its_lane() -> None:
    b = Bench()
    slot = OneSlot()
    b.step(*(b.trigger(f"k{i}", "critical", demands=NEEDS) for i in range(5)), say=slot)
    assert b.live("k0").state == "DISPATCHED"
    b.rest(slot)
    assert parked(b) == 4
    b.step(b.trigger("other", "background", demands={"account:other": 1}), say=slot)
    assert asked(b.exchange) == [task_id("other")]
    assert b.live("other").state == "DISPATCHED"


def test_among_waiting_tiers_the_policy_decides_not_the_tier() -> None:
    for policy, first in (("edf", "late"), ("strict", "urgent")):
        b = Bench(f'policy = "{policy}"\n[resources.account]\nkind = "keyed"')
        slot = OneSlot()
        slot.taken = "somebody"
        b.step(
            b.trigger("urgent", "critical", demands=NEEDS, deadline_ms=START_MS + 9_000),
            *(
                b.trigger(f"next{i}", "critical", demands=NEEDS, deadline_ms=START_MS + 9_500)
                for i in range(4)
            ),
            b.trigger("late", "low", demands=NEEDS, deadline_ms=START_MS + 8_000),
            say=slot,
        )
        assert parked(b) == 6
        slot.taken = ""
        b.step(woken=(KEY,), say=slot)
        assert slot.taken == task_id(first)


def test_a_lost_wake_up_is_made_up_for_by_the_timer() -> None:
    b = Bench()
    b.step(*(b.trigger(f"k{i}", demands=NEEDS) for i in range(3)), say=refuse(KEY, "key_busy"))
    assert (parked(b), keyed_timers(b)) == (3, 1), "one timer per key and interval"
    due = b.core.next_wakeup()
    while due is not None and due <= b.now_ms:
        b.step(say=silent)
        due = b.core.next_wakeup()
    assert due is not None
    assert b.now_ms + KEYED_SAFETY_MS <= due <= b.now_ms + 2 * KEYED_SAFETY_MS
    b.now_ms = due
    b.step(say=OneSlot())
    assert sum(b.live(f"k{i}").state == "DISPATCHED" for i in range(3)) == 1
    assert 1 <= keyed_timers(b) <= 2, "somebody still waits"
    for _ in range(4):
        b.now_ms = b.core.next_wakeup() or b.now_ms
        b.step()
    assert all(b.live(f"k{i}").state == "DISPATCHED" for i in range(3))
    b.now_ms += 3 * KEYED_SAFETY_MS
    b.step()
    assert (parked(b), keyed_timers(b)) == (0, 0)


def test_a_restart_lets_all_ask_again() -> None:
    b = Bench()
    b.step(*(b.trigger(f"k{i}", demands=NEEDS) for i in range(3)), say=refuse(KEY, "key_busy"))
    after = b.restarted()
    assert parked(after) == 0
    after.step()
    assert sorted(asked(after.exchange)) == sorted(task_id(f"k{i}") for i in range(3))


def test_a_cancelled_or_expired_waiter_leaves_no_trace() -> None:
    b = Bench()
    b.step(b.trigger("a", demands=NEEDS), b.trigger("b", demands=NEEDS, firm=True, deadline_ms=START_MS + 100), say=refuse(KEY))  # fmt: skip
    b.now_ms += 101
    b.step(b.command("cancel", "a"), woken=(KEY,))
    assert (b.row("a"), b.row("b"), parked(b)) == (None, None, 0)
    assert not list(b.store.scan(keys.READY, keys.READY + keys.MAX_KEY))
    assert asked(b.exchange) == []


def test_an_aborted_batch_leaves_the_waiters_where_they_were() -> None:
    b = Bench()
    b.step(b.trigger("a", demands=NEEDS), say=refuse(KEY))
    b.step(woken=(KEY,), commit=False)
    assert asked(b.exchange) == [task_id("a")]
    assert parked(b) == 1
    b.step(woken=(KEY,), held=(b.reservation("a", ahead=1),))
    assert (b.live("a").state, parked(b)) == ("DISPATCHED", 0)
    assert [t for t in TIERS if b.core.backlog()[TIERS.index(t)]] == []


def test_ten_thousand_waiters_of_one_key_are_looked_at_once() -> None:
    b = Bench()
    for n in range(4):
        b.step(*(b.trigger(f"k{n}-{i}", demands=NEEDS) for i in range(250)), say=refuse(KEY, "key_busy"))
    b.rest(refuse(KEY, "key_busy"))
    assert parked(b) == 1_000
    for _ in range(5):
        b.step(b.trigger(f"x{b.ends['triggers.normal']}"), say=refuse(KEY, "key_busy"))
        assert len(b.exchange.candidates) <= 1 + b.ends["triggers.normal"] - 1_000
    slot = OneSlot()
    b.step(woken=(KEY,), say=slot)
    assert sum(KEY in c.demands for c in b.exchange.candidates) == 2


def test_a_shard_says_what_it_waits_for() -> None:
    world = TopologyTestDriver(slots=1)
    for key in ("one", "two"):
        world.pipe("normal", Trigger(type="x", key=key, demands={"account:acme": 1}))
    core = world.shards[0].core
    assert core.waits_for("fleet.default") or core.waits_for("account:acme")
    assert not core.waits_for("llm")
    assert not core.waits_for("account:other")
    world.work()
    assert not core.waits_for("account:acme")
