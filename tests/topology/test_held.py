"""Reservations of batches that did not finish are used or given back; refusals of every kind; fleets that are not there."""

from __future__ import annotations

import pytest
from builders import CONFIG, START_MS, Bench, answer, asked, driver, events, refuse, silent, task_id, trigger

from laxity.streams.ledger.protocol import Exchange, Settle


def settles(exchange: Exchange) -> dict[str, bool]:
    return {s.reservation_id: s.unclaimed for s in exchange.settles}


def held_of(b: Bench) -> tuple[str, ...]:
    return tuple(c.reservation_id for c in b.exchange.candidates)


@pytest.mark.parametrize("commit", [True, False])
def test_an_unanswered_reservation_is_asked_again_under_the_same_id(*, commit: bool) -> None:
    b = Bench()
    record = b.trigger()
    b.step(record, say=silent, commit=commit)
    held = held_of(b)
    b.step(*([] if commit else [record]), held=held)
    assert held_of(b) == held
    assert b.live().dispatch_no == 1
    assert [t.reason for t in events(b.history[-1])[-1].transitions][-1] == "held"


def test_held_ones_go_first_and_once() -> None:
    b = Bench()
    b.step(b.trigger("late", deadline_ms=START_MS + 9_000), say=silent)
    held = held_of(b)
    b.step(b.trigger("urgent", deadline_ms=START_MS + 1_000), held=held, say=silent)
    assert asked(b.exchange) == [task_id("late"), task_id("urgent")]


@pytest.mark.parametrize("end", ["cancel", "expire"])
def test_a_reservation_of_an_ended_task_is_given_back(end: str) -> None:
    b = Bench()
    b.step(b.trigger(firm=True, deadline_ms=START_MS + 100), say=silent)
    held = held_of(b)
    b.now_ms += 101 if end == "expire" else 1
    b.step(*([b.command("cancel")] if end == "cancel" else []), held=held)
    assert asked(b.exchange) == []
    b.step()
    assert settles(b.exchange) == {held[0]: True}
    b.step()
    assert settles(b.exchange) == {}, "acknowledged: struck off"


def test_a_held_reservation_of_hopeless_work_is_given_back() -> None:
    """Its timer stands behind more timers than one batch fires."""
    b = Bench("")
    for n in range(3):
        b.step(
            *(b.trigger(f"k{n}-{i}", firm=True, deadline_ms=START_MS + 100) for i in range(100)), say=silent
        )
    held = held_of(b)
    b.now_ms += 101
    effects = b.step(held=held)
    assert asked(b.exchange) == []
    assert not [o for o in effects.outputs if o.topic.startswith("dispatch.")]
    b.rest()
    assert sum(b.core.backlog()) == 0


def test_a_number_that_was_given_back_is_never_used_again() -> None:
    """A late call under it must find nobody."""
    b = Bench()
    b.step(b.trigger(), say=silent)
    (held,) = held_of(b)
    b.step(
        b.trigger("x"), say=lambda e: answer(), held=()
    )  # another batch, then the task is dispatched as number 1
    stale = f"{task_id()}:0:3"
    b.step(held=(stale,))
    assert asked(b.exchange)[0] != "", "it is asked under a number above the one given back"
    number = b.live().dispatch_no
    assert number == 4, f"3 was given back, {held} was never used"
    b.step()
    assert stale not in held_of(b)


def test_a_reservation_of_another_generation_is_given_back() -> None:
    b = Bench()
    b.step(b.trigger(), say=silent)
    b.step(held=(f"{task_id()}:7:1", f"{'0' * 32}:0:1"), say=silent)
    b.step(say=silent)
    assert set(settles(b.exchange)) == {f"{task_id()}:7:1", f"{'0' * 32}:0:1"}
    assert b.live().dispatch_no == 0


def test_a_number_that_the_ledger_ended_is_skipped_and_the_task_goes_on_at_once() -> None:
    b = Bench()
    b.step(b.trigger(), say=silent)
    held = held_of(b)
    b.step(held=held, say=refuse("", "gone"))
    assert b.live().dispatch_no == 1
    assert b.core.next_wakeup() == b.now_ms, "nothing else would ever wake it"
    b.step()
    assert (b.live().state, b.live().dispatch_no) == ("DISPATCHED", 2)


def test_many_aborts_do_not_let_the_call_grow() -> None:
    b = Bench()
    for lane in ({"llm": 1}, {"browser": 1}, {}):
        b.step(*(b.trigger(f"{lane}{i}", demands=lane) for i in range(200)), say=silent)
    held: tuple[str, ...] = ()
    for _ in range(10):
        b.step(held=held, commit=False)
        held = held_of(b)
        assert len(held) <= 128


def test_settlements_are_repeated_until_acknowledged_and_survive_a_restart() -> None:
    b = Bench()
    b.dispatched(demands={"llm": 10})
    b.step(b.outcome("succeeded", used={"llm": 7}), say=silent)
    owed = Settle(reservation_id=f"{task_id()}:0:1", used={"llm": 7}, unclaimed=False)
    b.step(say=silent)
    assert list(b.exchange.settles) == [owed]
    after = b.restarted()
    assert [(live.reservation_id, live.active) for live in after.core.live()] == [
        (owed.reservation_id, False)
    ]
    after.step()
    assert list(after.exchange.settles) == [owed]
    assert after.core.live() == []


def test_no_runner_is_no_end() -> None:
    d = driver(slots=0)
    d.pipe("normal", trigger())
    assert [r.state for r in d.table("task").values()] == ["READY"]
    d.runners[0]._slots = 2
    d.advance(1_000)
    d.work()
    assert d.events()[-1].state == "SUCCEEDED"


def test_tasks_of_a_fleet_that_is_not_configured_wait_for_it_and_block_nobody() -> None:
    gpu = CONFIG + '[fleets.gpu]\n[types.render]\nfleet = "gpu"\n'
    b = Bench(gpu)
    b.step(b.trigger(type="render"), say=silent)
    without = b.restarted(CONFIG)
    without.step(without.trigger("other"))
    assert asked(without.exchange) == [task_id("other")]
    assert without.live().state == "READY"
    again = without.restarted(gpu)
    again.step()
    assert asked(again.exchange) == [task_id()]
    assert again.exchange.candidates[0].fleet == "gpu"
    assert again.history[-1].outputs[0].topic == "dispatch.gpu"
