"""What any ledger must do, said in scenes. The property test covers what nobody thought of."""

from collections.abc import Callable
from typing import Any

import pytest

from laxity.schemas.timing import ManualClock
from laxity.streams.ledger.limits import LEASE_TTL_MS, LOOK_MAX, REPORT_MAX, SLOT_RETRY_MS
from laxity.streams.ledger.pages import pages
from laxity.streams.ledger.protocol import Answer, Candidate, Exchange, Live, Reconciled, Settle

TTL_MS = LEASE_TTL_MS


def ask(reservation_id: str, /, **demands: int) -> Candidate:
    return ask_in("f", reservation_id, **demands)


def ask_in(fleet: str, reservation_id: str, /, **demands: int) -> Candidate:
    named = {name.replace("__", ":"): amount for name, amount in demands.items()}
    return Candidate(reservation_id=reservation_id, task_id="t", fleet=fleet, demands=named, deadline_ms=0)


def say(ledger: Any, shard: int = 0, owner_epoch: int = 1, **parts: Any) -> Answer:
    answer = ledger.exchange(Exchange(shard=shard, owner_epoch=owner_epoch, **parts))
    assert isinstance(answer, Answer)
    return answer


def granted(answer: Answer) -> list[str]:
    return [grant.reservation_id for grant in answer.grants]


def refused(answer: Answer) -> dict[str, tuple[str, str]]:
    return {r.reservation_id: (r.reason, r.resource) for r in answer.refusals}


@pytest.fixture
def open_ledger(ledger: Any, clock: ManualClock) -> Any:
    """Both shards have reported, the buckets are full, one runner with credit for 100."""
    for shard in (0, 1):
        assert ledger.reconcile(shard=shard, owner_epoch=1, seen_epoch="", live=[]).status == "ok"
    clock.advance(60_000)
    ledger.register(runner="r", fleet="f", partition=7, credit=100, ttl_ms=86_400_000)
    return ledger


# Grants


def test_all_or_nothing(open_ledger: Any) -> None:
    say(open_ledger, candidates=[ask("a:0:1", gpu=2)])
    answer = say(open_ledger, candidates=[ask("b:0:1", llm=10_000, gpu=1)])
    assert refused(answer) == {"b:0:1": ("slots_full", "gpu")}
    assert granted(say(open_ledger, candidates=[ask("c:0:1", llm=10_000)])) == ["c:0:1"], (
        "the refused one took nothing"
    )


def test_the_grant_says_what_is_held_and_where(open_ledger: Any, clock: ManualClock) -> None:
    (grant,) = say(open_ledger, candidates=[ask("a:0:1", llm=5, gpu=1, account__acme=1)]).grants
    assert grant.granted == {"llm": 5, "gpu": 1, "account:acme": 1, "fleet.f": 1}
    assert (grant.runner, grant.partition, grant.granted_ms) == ("r", 7, clock.now_ms())


def test_a_repeat_gets_the_same_though_all_is_full(open_ledger: Any, clock: ManualClock) -> None:
    first = say(open_ledger, candidates=[ask("a:0:1", gpu=2)])
    clock.advance(100)
    again = say(open_ledger, candidates=[ask("a:0:1", gpu=2)])
    assert again.grants == first.grants
    assert again.sequence > first.sequence


def test_small_and_late_never_overtakes_big_and_urgent(open_ledger: Any) -> None:
    say(open_ledger, candidates=[ask("x:0:1", gpu=1)])
    answer = say(
        open_ledger, candidates=[ask("big:0:1", gpu=2), ask("small:0:1", gpu=1), ask("other:0:1", llm=1)]
    )
    assert refused(answer) == {"big:0:1": ("slots_full", "gpu"), "small:0:1": ("slots_full", "gpu")}
    assert granted(answer) == ["other:0:1"]
    assert answer.refusals[1].rival == "big:0:1"


def test_a_key_holds_up_its_own_only(open_ledger: Any) -> None:
    say(open_ledger, candidates=[ask("a:0:1", account__acme=1)])
    answer = say(
        open_ledger, candidates=[ask("b:0:1", account__acme=1, gpu=2), ask("c:0:1", account__other=1, gpu=2)]
    )
    assert refused(answer) == {"b:0:1": ("key_busy", "account:acme")}
    assert granted(answer) == ["c:0:1"]


@pytest.mark.parametrize(
    ("demands", "reason", "resource"),
    [
        ({"gpu": 3}, "over_capacity", "gpu"),
        ({"llm": 60_001}, "over_capacity", "llm"),
        ({"account__a": 2}, "over_capacity", "account:a"),
        ({"nothing": 1}, "unknown_resource", "nothing"),
        ({"account": 1}, "unknown_resource", "account"),
        ({"gpu__a": 1}, "unknown_resource", "gpu:a"),
    ],
)
def test_what_can_never_be(open_ledger: Any, demands: dict[str, int], reason: str, resource: str) -> None:
    answer = say(open_ledger, candidates=[ask("a:0:1", **demands), ask("b:0:1", gpu=2, llm=1, account__a=1)])
    assert refused(answer) == {"a:0:1": (reason, resource)}
    assert granted(answer) == ["b:0:1"], "it holds nobody up"


@pytest.mark.parametrize("amount", [-1, 1.0, True, float("nan"), 2**53, "5", None])
def test_amounts_are_integers_in_range(open_ledger: Any, amount: Any) -> None:
    with pytest.raises(ValueError, match=r"demands\[gpu\]"):
        say(open_ledger, candidates=[ask("a:0:1", gpu=amount)])


# Rates


def test_a_demand_over_the_burst_goes_into_debt(open_ledger: Any, clock: ManualClock) -> None:
    assert granted(say(open_ledger, candidates=[ask("a:0:1", llm=30_000)])) == ["a:0:1"], (
        "the bucket was full"
    )
    open_ledger.claim(reservation_id="a:0:1", runner="r")
    answer = say(open_ledger, candidates=[ask("b:0:1", llm=1)])
    assert refused(answer) == {"b:0:1": ("rate_tokens", "llm")}
    assert answer.refusals[0].retry_ms == 20_001, "20,000 of debt and one at one token per ms"
    clock.advance(20_000)
    assert not granted(say(open_ledger, candidates=[ask("b:0:1", llm=1)]))
    clock.advance(1)
    assert granted(say(open_ledger, candidates=[ask("b:0:1", llm=1)])) == ["b:0:1"]


def test_requests_count_beside_tokens(open_ledger: Any) -> None:
    answer = say(open_ledger, candidates=[ask(f"{i}:0:1", llm=0) for i in range(100)])
    assert len(answer.grants) == 100
    open_ledger.register(runner="r2", fleet="f", partition=1, credit=9, ttl_ms=1_000)
    answer = say(open_ledger, candidates=[ask("x:0:1", llm=0)])
    assert [(r.reason, r.retry_ms) for r in answer.refusals] == [("rate_requests", 100)]


@pytest.mark.parametrize("window_ms", [1_000, 10_000, 60_000])
def test_no_window_gets_more_than_its_refill_and_one_burst(
    open_ledger: Any, clock: ManualClock, window_ms: int
) -> None:
    spent: list[tuple[int, int]] = []
    for number in range(400):
        amount = 1 + number * 379 % 2_500
        for grant in say(open_ledger, candidates=[ask(f"{number}:0:1", llm=amount)]).grants:
            spent.append((clock.now_ms(), amount))
            say(open_ledger, settles=[Settle(reservation_id=grant.reservation_id, used={}, unclaimed=False)])
        clock.advance(number * 31 % 700)
    assert len(spent) > 100
    for start, _ in spent:
        total = sum(amount for at, amount in spent if start <= at < start + window_ms)
        assert total <= 60_000 * window_ms // 60_000 + 10_000


@pytest.mark.parametrize(("resource", "back"), [("llm", False), ("billed", True)])
def test_unused_tokens_of_a_started_task_go_back_only_where_said(
    open_ledger: Any, resource: str, *, back: bool
) -> None:
    say(open_ledger, candidates=[ask("a:0:1", **{resource: 10_000})])
    open_ledger.claim(reservation_id="a:0:1", runner="r")
    assert open_ledger.release(reservation_id="a:0:1", runner="r", used={resource: 100})
    say(open_ledger, settles=[Settle(reservation_id="a:0:1", used={resource: 100}, unclaimed=False)])
    assert bool(say(open_ledger, candidates=[ask("b:0:1", **{resource: 9_900})]).grants) is back


def test_more_used_than_reserved_is_debited_once(open_ledger: Any) -> None:
    say(open_ledger, candidates=[ask("a:0:1", llm=1_000)])
    open_ledger.claim(reservation_id="a:0:1", runner="r")
    open_ledger.release(reservation_id="a:0:1", runner="r", used={"llm": 12_000})
    say(open_ledger, settles=[Settle(reservation_id="a:0:1", used={"llm": 12_000}, unclaimed=False)])
    answer = say(open_ledger, candidates=[ask("b:0:1", llm=1)])
    assert answer.refusals[0].retry_ms == 2_001


def test_absurd_reports_close_a_resource_for_ten_minutes_at_most(open_ledger: Any) -> None:
    say(open_ledger, candidates=[ask("a:0:1", llm=1), ask("b:0:1", llm=1)])
    for reservation_id in ("a:0:1", "b:0:1"):
        open_ledger.claim(reservation_id=reservation_id, runner="r")
        assert open_ledger.release(reservation_id=reservation_id, runner="r", used={"llm": 2**53 - 1})
    assert say(open_ledger, candidates=[ask("c:0:1", llm=1)]).refusals[0].retry_ms == 600_001


def test_never_claimed_gives_its_tokens_back_and_claimed_does_not(open_ledger: Any) -> None:
    for claimed, outcome in ((False, True), (True, False)):
        reservation_id = f"a:{int(claimed)}:1"
        assert granted(say(open_ledger, candidates=[ask(reservation_id, llm=10_000)]))
        if claimed:
            open_ledger.claim(reservation_id=reservation_id, runner="r")
        say(open_ledger, settles=[Settle(reservation_id=reservation_id, used={}, unclaimed=True)])
        probe = say(open_ledger, candidates=[ask(f"p:{int(claimed)}:1", llm=10_000)])
        assert bool(probe.grants) is outcome
        say(open_ledger, revokes=granted(probe))


# Fleets


def test_the_runner_with_most_free_credit_ties_by_name(open_ledger: Any) -> None:
    for name, credit in (("b", 3), ("a", 3), ("c", 2)):
        open_ledger.register(runner=name, fleet="g", partition=0, credit=credit, ttl_ms=60_000)
    answer = say(open_ledger, candidates=[ask_in("g", f"{i}:0:1") for i in range(9)])
    assert [grant.runner for grant in answer.grants] == ["a", "b", "a", "b", "c", "a", "b", "c"]
    assert refused(answer) == {"8:0:1": ("fleet_full", "fleet.g")}


def test_no_runner_and_lapsed_and_drained_runners(open_ledger: Any, clock: ManualClock) -> None:
    assert refused(say(open_ledger, candidates=[ask_in("g", "a:0:1")])) == {"a:0:1": ("no_runner", "fleet.g")}
    open_ledger.register(runner="a", fleet="g", partition=0, credit=1, ttl_ms=1_000)
    clock.advance(1_000)
    assert refused(say(open_ledger, candidates=[ask_in("g", "a:0:1")])) == {"a:0:1": ("no_runner", "fleet.g")}
    open_ledger.register(runner="a", fleet="g", partition=0, credit=0, ttl_ms=1_000)
    assert refused(say(open_ledger, candidates=[ask_in("g", "a:0:1")])) == {"a:0:1": ("no_runner", "fleet.g")}


def test_a_refreshed_registration_does_not_hand_out_credit_twice(open_ledger: Any) -> None:
    open_ledger.register(runner="a", fleet="g", partition=0, credit=1, ttl_ms=60_000)
    assert granted(say(open_ledger, candidates=[ask_in("g", "a:0:1")]))
    open_ledger.register(runner="a", fleet="g", partition=0, credit=1, ttl_ms=60_000)
    assert refused(say(open_ledger, candidates=[ask_in("g", "b:0:1")])) == {
        "b:0:1": ("fleet_full", "fleet.g")
    }


def test_leases_outlive_deregistration(open_ledger: Any) -> None:
    open_ledger.register(runner="a", fleet="g", partition=0, credit=1, ttl_ms=60_000)
    say(open_ledger, candidates=[ask_in("g", "a:0:1", gpu=2)])
    open_ledger.deregister(runner="a", fleet="g")
    assert open_ledger.claim(reservation_id="a:0:1", runner="a").verdict == "claimed"
    assert open_ledger.renew(runner="a", reservation_ids=["a:0:1"]) == {"a:0:1": "ok"}
    assert open_ledger.release(reservation_id="a:0:1", runner="a", used={})


# Leases


def test_claim_verdicts(open_ledger: Any, clock: ManualClock) -> None:
    say(open_ledger, candidates=[ask("a:0:1", gpu=1)])
    assert open_ledger.claim(reservation_id="a:0:1", runner="other").verdict == "fenced"
    assert open_ledger.claim(reservation_id="a:0:2", runner="r").verdict == "gone"
    first = open_ledger.claim(reservation_id="a:0:1", runner="r")
    assert (first.verdict, first.granted) == ("claimed", {"gpu": 1, "fleet.f": 1})
    assert open_ledger.claim(reservation_id="a:0:1", runner="r") == first
    clock.advance(TTL_MS)
    assert open_ledger.claim(reservation_id="a:0:1", runner="r").verdict == "gone"


def test_a_late_renewal_resurrects_nothing(open_ledger: Any, clock: ManualClock) -> None:
    say(open_ledger, candidates=[ask("a:0:1", gpu=2)])
    open_ledger.claim(reservation_id="a:0:1", runner="r")
    for _ in range(5):
        clock.advance(TTL_MS - 1)
        assert open_ledger.renew(runner="r", reservation_ids=["a:0:1"]) == {"a:0:1": "ok"}
    clock.advance(TTL_MS)
    assert open_ledger.renew(runner="r", reservation_ids=["a:0:1"]) == {"a:0:1": "revoked"}
    assert granted(say(open_ledger, candidates=[ask("b:0:1", gpu=2)])) == ["b:0:1"], (
        "in the same call as the lapse"
    )
    assert not open_ledger.release(reservation_id="a:0:1", runner="r", used={})
    assert refused(say(open_ledger, candidates=[ask("c:0:1", gpu=1)])), (
        "the stale release freed nothing of the new holder"
    )


def test_lapsed_ids_are_told_until_acknowledged_to_their_shard_only(
    open_ledger: Any, clock: ManualClock
) -> None:
    say(open_ledger, candidates=[ask("a:0:1", gpu=1)])
    clock.advance(TTL_MS)
    assert say(open_ledger, shard=1).reaped == ()
    assert say(open_ledger).reaped == ("a:0:1",)
    assert say(open_ledger).reaped == ("a:0:1",)
    assert refused(say(open_ledger, candidates=[ask("a:0:1", gpu=1)])) == {"a:0:1": ("gone", "")}
    assert say(open_ledger, shard=1, acknowledged=["a:0:1"]).status == "ok"
    assert say(open_ledger).reaped == ("a:0:1",), "another shard's acknowledgement does not count"
    assert say(open_ledger, acknowledged=["a:0:1"]).reaped == ()


def test_a_lapsed_claim_costs_its_tokens_an_unclaimed_one_does_not(
    open_ledger: Any, clock: ManualClock
) -> None:
    say(open_ledger, candidates=[ask("a:0:1", llm=40_000)])
    open_ledger.claim(reservation_id="a:0:1", runner="r")
    clock.advance(TTL_MS)
    assert refused(say(open_ledger, candidates=[ask("b:0:1", llm=1)])) == {"b:0:1": ("rate_tokens", "llm")}
    clock.advance(60_000)
    say(open_ledger, candidates=[ask("c:0:1", llm=40_000)])
    clock.advance(TTL_MS)
    assert granted(say(open_ledger, candidates=[ask("d:0:1", llm=10_000)])) == ["d:0:1"]


def test_revoke_takes_back_the_unclaimed_and_repeats_its_answer(open_ledger: Any) -> None:
    say(open_ledger, candidates=[ask("a:0:1", gpu=1), ask("b:0:1", gpu=1)])
    open_ledger.claim(reservation_id="b:0:1", runner="r")
    expected = {"a:0:1": "revoked", "b:0:1": "claimed", "c:0:1": "gone"}
    assert say(open_ledger, revokes=list(expected)).verdicts == expected
    assert say(open_ledger, revokes=list(expected)).verdicts == expected
    assert open_ledger.claim(reservation_id="a:0:1", runner="r").verdict == "gone"
    assert open_ledger.renew(runner="r", reservation_ids=["b:0:1"]) == {"b:0:1": "ok"}
    assert refused(say(open_ledger, candidates=[ask("a:0:1", gpu=1)])) == {"a:0:1": ("gone", "")}


def test_cancel_reaches_running_work_with_its_renewal(open_ledger: Any) -> None:
    say(open_ledger, candidates=[ask("a:0:1", gpu=1), ask("b:0:1", gpu=1)])
    open_ledger.claim(reservation_id="b:0:1", runner="r")
    assert say(open_ledger, cancels=["a:0:1", "b:0:1"]).verdicts == {"a:0:1": "revoked", "b:0:1": "claimed"}
    assert open_ledger.renew(runner="r", reservation_ids=["b:0:1"]) == {"b:0:1": "cancel"}
    assert open_ledger.claim(reservation_id="b:0:1", runner="r").verdict == "cancelled"
    assert (
        open_ledger.call(reservation_id="b:0:1", runner="r", resource="llm", amount=1).reason == "cancelled"
    )
    assert open_ledger.release(reservation_id="b:0:1", runner="r", used={})


def test_release_and_settle_each_work_once(open_ledger: Any) -> None:
    say(open_ledger, candidates=[ask("a:0:1", gpu=2)])
    assert not open_ledger.release(reservation_id="a:0:1", runner="r", used={}), "not claimed"
    open_ledger.claim(reservation_id="a:0:1", runner="r")
    assert not open_ledger.release(reservation_id="a:0:1", runner="other", used={})
    assert open_ledger.release(reservation_id="a:0:1", runner="r", used={})
    assert not open_ledger.release(reservation_id="a:0:1", runner="r", used={})
    say(open_ledger, candidates=[ask("b:0:1", gpu=2)])
    for _ in range(2):
        answer = say(open_ledger, settles=[Settle(reservation_id="a:0:1", used={}, unclaimed=True)])
        assert answer.settled == ("a:0:1",)
    assert refused(say(open_ledger, candidates=[ask("c:0:1", gpu=1)])), "b holds both"


def test_a_released_stub_lapses_without_a_word(open_ledger: Any, clock: ManualClock) -> None:
    say(open_ledger, candidates=[ask("a:0:1", gpu=1)])
    open_ledger.claim(reservation_id="a:0:1", runner="r")
    open_ledger.release(reservation_id="a:0:1", runner="r", used={})
    assert open_ledger.claim(reservation_id="a:0:1", runner="r").verdict == "gone"
    assert refused(say(open_ledger, candidates=[ask("a:0:1", gpu=1)])) == {"a:0:1": ("gone", "")}
    clock.advance(TTL_MS)
    assert say(open_ledger).reaped == ()


def test_many_claims_and_releases_in_one_call_are_as_one_by_one(open_ledger: Any) -> None:
    say(open_ledger, candidates=[ask("a:0:1", gpu=1), ask("b:0:1", gpu=1)])
    claims = open_ledger.claim_all(runner="r", reservation_ids=["a:0:1", "none:0:1", "b:0:1"])
    assert {i: claim.verdict for i, claim in claims.items()} == {
        "a:0:1": "claimed",
        "none:0:1": "gone",
        "b:0:1": "claimed",
    }
    assert claims["a:0:1"] == open_ledger.claim(reservation_id="a:0:1", runner="r")
    releases: list[tuple[str, dict[str, int]]] = [
        ("b:0:1", {}),
        ("b:0:1", {}),
        ("none:0:1", {}),
        ("a:0:1", {}),
    ]
    assert list(open_ledger.release_all(runner="r", releases=releases)) == [True, False, False, True]
    assert granted(say(open_ledger, candidates=[ask("c:0:1", gpu=2)])) == ["c:0:1"]
    assert dict(open_ledger.claim_all(runner="r", reservation_ids=[])) == {}
    assert list(open_ledger.release_all(runner="r", releases=[])) == []


# Calls


def test_further_calls_take_from_the_bucket_and_come_before_new_dispatches(
    open_ledger: Any, clock: ManualClock
) -> None:
    say(open_ledger, candidates=[ask("a:0:1", llm=10_000)])
    assert open_ledger.call(reservation_id="a:0:1", runner="r", resource="llm", amount=5).reason == "gone", (
        "not claimed"
    )
    open_ledger.claim(reservation_id="a:0:1", runner="r")
    call = open_ledger.call(reservation_id="a:0:1", runner="r", resource="llm", amount=500)
    assert (call.granted, call.retry_ms, call.reason) == (False, 500, "rate_tokens")
    clock.advance(500)
    assert refused(say(open_ledger, candidates=[ask("b:0:1", llm=1)])) == {"b:0:1": ("calls_first", "llm")}
    assert open_ledger.call(reservation_id="a:0:1", runner="r", resource="llm", amount=500).granted
    clock.advance(1)
    assert granted(say(open_ledger, candidates=[ask("b:0:1", llm=1)])) == ["b:0:1"]
    assert (
        open_ledger.call(reservation_id="a:0:1", runner="r", resource="llm", amount=60_001).reason
        == "over_capacity"
    )
    assert (
        open_ledger.call(reservation_id="a:0:1", runner="r", resource="gpu", amount=1).reason
        == "unknown_resource"
    )


def test_a_caller_that_never_returns_blocks_dispatches_for_a_moment_only(
    open_ledger: Any, clock: ManualClock
) -> None:
    say(open_ledger, candidates=[ask("a:0:1", llm=10_000)])
    open_ledger.claim(reservation_id="a:0:1", runner="r")
    retry_ms = open_ledger.call(reservation_id="a:0:1", runner="r", resource="llm", amount=500).retry_ms
    clock.advance(retry_ms + SLOT_RETRY_MS)
    assert granted(say(open_ledger, candidates=[ask("b:0:1", llm=1)])) == ["b:0:1"]


# Owners, loss, reconciliation


def test_a_lower_owner_epoch_is_fenced_and_changes_nothing(open_ledger: Any) -> None:
    assert open_ledger.reconcile(shard=0, owner_epoch=3, seen_epoch="", live=[]).status == "ok"
    answer = say(open_ledger, owner_epoch=2, candidates=[ask("a:0:1", gpu=2)])
    assert (answer.status, answer.grants) == ("fenced", ())
    assert open_ledger.reconcile(shard=0, owner_epoch=2, seen_epoch="", live=[]).status == "fenced"
    assert granted(say(open_ledger, shard=1, candidates=[ask("b:0:1", gpu=2)])), (
        "other shards are not concerned"
    )


def test_a_new_owner_reconciles_first_and_fences_by_speaking(open_ledger: Any) -> None:
    assert say(open_ledger, owner_epoch=2).status == "recovering"
    assert say(open_ledger, owner_epoch=1).status == "fenced"


def test_takeover_drops_what_the_state_does_not_know_and_its_id_may_be_used_again(open_ledger: Any) -> None:
    first = say(open_ledger, candidates=[ask("known:0:1", gpu=1), ask("aborted:0:1", gpu=1)])
    say(open_ledger, shard=1, candidates=[ask("foreign:0:1", account__a=1)])
    (grant, _) = first.grants
    live = [Live(reservation_id="known:0:1", runner="r", partition=7, granted=grant.granted, active=True)]
    outcome = open_ledger.reconcile(shard=0, owner_epoch=2, seen_epoch=first.epoch, live=live)
    assert (outcome.status, outcome.dropped, outcome.restored, outcome.lapsed) == ("ok", 1, 0, ())
    assert open_ledger.claim(reservation_id="aborted:0:1", runner="r").verdict == "gone"
    assert granted(say(open_ledger, owner_epoch=2, candidates=[ask("aborted:0:1", gpu=1)])) == ["aborted:0:1"]
    assert open_ledger.claim(reservation_id="foreign:0:1", runner="r").verdict == "claimed"


def test_in_the_same_epoch_a_missing_lease_has_lapsed(open_ledger: Any, clock: ManualClock) -> None:
    answer = say(open_ledger, candidates=[ask("a:0:1", gpu=1)])
    live = [
        Live(reservation_id=i, runner="r", partition=7, granted={"gpu": 1, "fleet.f": 1}, active=i != "c:0:1")
        for i in ("a:0:1", "b:0:1", "c:0:1")
    ]
    outcome = open_ledger.reconcile(shard=0, owner_epoch=2, seen_epoch=answer.epoch, live=live)
    assert (outcome.lapsed, outcome.restored) == (("b:0:1",), 0)
    assert open_ledger.reconcile(shard=0, owner_epoch=2, seen_epoch=answer.epoch, live=live) == outcome


def test_after_a_loss_nothing_is_granted_until_all_have_reported(
    open_ledger: Any, clock: ManualClock
) -> None:
    before = say(open_ledger, candidates=[ask("a:0:1", gpu=2)])
    open_ledger.claim(reservation_id="a:0:1", runner="r")
    open_ledger.lose()
    assert say(open_ledger, candidates=[ask("b:0:1")]).status == "recovering"
    assert open_ledger.claim(reservation_id="a:0:1", runner="r").verdict == "recovering"
    assert open_ledger.renew(runner="r", reservation_ids=["a:0:1"]) == {"a:0:1": "recovering"}
    assert (
        open_ledger.call(reservation_id="a:0:1", runner="r", resource="llm", amount=1).reason == "recovering"
    )
    assert open_ledger.register(runner="r", fleet="f", partition=7, credit=100, ttl_ms=86_400_000) == ""
    # 1. The other shard reports first: the first one's holders are not known yet.
    assert (
        open_ledger.reconcile(shard=1, owner_epoch=1, seen_epoch=before.epoch, live=[]).epoch != before.epoch
    )
    assert refused(say(open_ledger, shard=1, candidates=[ask("c:0:1", gpu=2)])) == {
        "c:0:1": ("recovering", "")
    }
    assert open_ledger.renew(runner="r", reservation_ids=["a:0:1"]) == {"a:0:1": "recovering"}
    # 2. The first shard enters its own again; the runner goes on under it.
    live = [
        Live(reservation_id="a:0:1", runner="r", partition=7, granted=before.grants[0].granted, active=True)
    ]
    outcome = open_ledger.reconcile(shard=0, owner_epoch=1, seen_epoch=before.epoch, live=live)
    assert (outcome.restored, outcome.lapsed) == (1, ())
    assert open_ledger.reconcile(shard=0, owner_epoch=1, seen_epoch=before.epoch, live=live).restored == 0
    assert open_ledger.renew(runner="r", reservation_ids=["a:0:1"]) == {"a:0:1": "ok"}
    # 3. All have reported: grants again, and nothing is sold twice.
    answer = say(open_ledger, shard=1, candidates=[ask("c:0:1", gpu=1), ask("d:0:1")])
    assert refused(answer) == {"c:0:1": ("slots_full", "gpu")}
    assert granted(answer) == ["d:0:1"]


def test_after_a_loss_the_longest_lease_is_waited_for_if_a_shard_stays_silent(
    open_ledger: Any, clock: ManualClock
) -> None:
    open_ledger.lose()
    open_ledger.reconcile(shard=1, owner_epoch=1, seen_epoch="", live=[])
    open_ledger.register(runner="r", fleet="f", partition=7, credit=100, ttl_ms=86_400_000)
    clock.advance(TTL_MS - 1)
    answer = say(open_ledger, shard=1, candidates=[ask("a:0:1", gpu=1)])
    assert (refused(answer), answer.refusals[0].retry_ms) == ({"a:0:1": ("recovering", "")}, 1)
    clock.advance(1)
    assert granted(say(open_ledger, shard=1, candidates=[ask("a:0:1", gpu=1)])) == ["a:0:1"]


# Reconciliation by pages


MANY = 3 * REPORT_MAX + 5


def hold_many(ledger: Any, clock: ManualClock) -> list[Live]:
    """More than three pages of leases, each with a keyed slot of its own."""
    ledger.register(runner="r", fleet="f", partition=7, credit=1_000, ttl_ms=86_400_000)
    ids = [f"t{number:04}:0:1" for number in range(MANY)]
    live: list[Live] = []
    for first in range(0, MANY, 100):
        some = ids[first : first + 100]
        answer = say(ledger, candidates=[ask(i, **{f"account__{i}": 1}) for i in some])
        live += [
            Live(
                reservation_id=g.reservation_id, runner=g.runner, partition=7, granted=g.granted, active=True
            )
            for g in answer.grants
        ]
    assert len(live) == MANY
    return live


def holding(ledger: Any, ids: list[str]) -> list[str]:
    """Those whose keyed slot is taken; asked by the other shard."""
    found: list[str] = []
    for first in range(0, len(ids), 100):
        some = [f"{i}:probe:{first}" for i in ids[first : first + 100]]
        asked = [ask(f"p{i}", **{f"account__{i.partition(':probe')[0]}": 1}) for i in some]
        answer = say(ledger, shard=1, candidates=asked)
        found += [r.resource.partition(":")[2] for r in answer.refusals if r.reason == "key_busy"]
        say(ledger, shard=1, revokes=granted(answer))
    return found


def test_a_new_owner_keeps_what_it_names_and_drops_the_rest_however_many(
    open_ledger: Any, clock: ManualClock
) -> None:
    live = hold_many(open_ledger, clock)
    epoch = say(open_ledger).epoch
    kept = live[::2]
    found = open_ledger.reconcile(shard=0, owner_epoch=2, seen_epoch=epoch, live=kept)
    assert (found.status, found.dropped, found.restored, found.lapsed) == ("ok", MANY - len(kept), 0, ())
    assert holding(open_ledger, [one.reservation_id for one in live]) == [one.reservation_id for one in kept]


def test_a_shard_that_knows_nothing_drops_all_a_part_at_a_time(open_ledger: Any, clock: ManualClock) -> None:
    live = hold_many(open_ledger, clock)
    asked = pages(shard=0, owner_epoch=2, seen_epoch="", live=[])
    first = open_ledger.report(next(asked))
    assert (first.status, first.dropped, first.more) == ("ok", LOOK_MAX, True)
    assert say(open_ledger, owner_epoch=2).status == "recovering", "not before the last word"
    found = open_ledger.reconcile(shard=0, owner_epoch=2, seen_epoch="", live=[])
    assert found.dropped == MANY - LOOK_MAX
    assert holding(open_ledger, [one.reservation_id for one in live]) == []


def test_what_was_not_reported_yet_is_not_dropped(open_ledger: Any, clock: ManualClock) -> None:
    """The owner is interrupted after its first page; whoever comes next finds everything."""
    live = hold_many(open_ledger, clock)
    asked = pages(shard=0, owner_epoch=2, seen_epoch=say(open_ledger).epoch, live=live)
    assert open_ledger.report(next(asked)).dropped == 0
    ids = [one.reservation_id for one in live]
    assert holding(open_ledger, ids) == ids
    assert say(open_ledger, owner_epoch=1).status == "fenced"
    assert say(open_ledger, owner_epoch=2).status == "recovering"
    found = open_ledger.reconcile(
        shard=0, owner_epoch=2, seen_epoch=say(open_ledger, shard=1).epoch, live=live
    )
    assert (found.status, found.dropped, found.lapsed) == ("ok", 0, ())
    assert say(open_ledger, owner_epoch=2).status == "ok"


def test_a_loss_between_two_pages_voids_those_before(open_ledger: Any, clock: ManualClock) -> None:
    live = hold_many(open_ledger, clock)
    seen = say(open_ledger).epoch
    open_ledger.lose()
    asked = pages(shard=0, owner_epoch=1, seen_epoch=seen, live=live)
    first = open_ledger.report(next(asked))
    assert (first.status, first.restored) == ("ok", REPORT_MAX)
    open_ledger.lose()
    with pytest.raises(StopIteration) as end:
        asked.send(open_ledger.report(asked.send(first)))
    assert isinstance(end.value.value, Reconciled)
    assert end.value.value.status == "recovering"
    assert say(open_ledger).status == "recovering", "the shard has not reported"
    assert open_ledger.reconcile(shard=0, owner_epoch=1, seen_epoch=seen, live=live).restored == MANY


def test_what_is_named_after_the_ledger_grants_again_has_lapsed(open_ledger: Any, clock: ManualClock) -> None:
    """Its holder has fenced itself, and its place may be taken: entered, two would have it."""
    answer = say(open_ledger, candidates=[ask("a:0:1", gpu=2)])
    live = Live(
        reservation_id="a:0:1", runner="r", partition=7, granted=answer.grants[0].granted, active=True
    )
    open_ledger.lose()
    open_ledger.register(runner="r", fleet="f", partition=7, credit=100, ttl_ms=86_400_000)
    open_ledger.reconcile(shard=1, owner_epoch=1, seen_epoch="", live=[])
    clock.advance(TTL_MS)
    assert granted(say(open_ledger, shard=1, candidates=[ask("b:0:1", gpu=2)])) == ["b:0:1"]
    found = open_ledger.reconcile(shard=0, owner_epoch=1, seen_epoch=answer.epoch, live=[live])
    assert (found.lapsed, found.restored) == (("a:0:1",), 0)
    assert open_ledger.claim(reservation_id="a:0:1", runner="r").verdict == "gone"


def test_after_a_loss_the_buckets_are_empty(open_ledger: Any, clock: ManualClock) -> None:
    open_ledger.lose()
    for shard in (0, 1):
        open_ledger.reconcile(shard=shard, owner_epoch=1, seen_epoch="", live=[])
    open_ledger.register(runner="r", fleet="f", partition=7, credit=100, ttl_ms=86_400_000)
    clock.advance(500)
    answer = say(open_ledger, candidates=[ask("a:0:1", llm=501)])
    assert (answer.refusals[0].reason, answer.refusals[0].retry_ms) == ("rate_tokens", 1)


def test_a_restored_reservation_may_have_run_so_no_revoke_and_no_refund(
    open_ledger: Any, clock: ManualClock
) -> None:
    before = say(open_ledger, candidates=[ask("a:0:1", llm=10_000)])
    open_ledger.lose()
    live = [
        Live(reservation_id="a:0:1", runner="r", partition=7, granted=before.grants[0].granted, active=True)
    ]
    open_ledger.reconcile(shard=0, owner_epoch=1, seen_epoch=before.epoch, live=live)
    assert say(open_ledger, revokes=["a:0:1"]).verdicts == {"a:0:1": "claimed"}
    assert say(open_ledger, cancels=["a:0:1"]).verdicts == {"a:0:1": "claimed"}
    assert open_ledger.claim(reservation_id="a:0:1", runner="r").verdict == "cancelled"
    clock.advance(TTL_MS)
    assert say(open_ledger).reaped == ("a:0:1",)


def test_another_server_may_lack_the_last_claims_so_all_is_entered_again(open_ledger: Any) -> None:
    before = say(open_ledger, candidates=[ask("a:0:1", gpu=1), ask("done:0:1", gpu=1)])
    open_ledger.restart()
    assert say(open_ledger, revokes=["a:0:1"]).status == "recovering"
    granted_then = before.grants[0].granted
    live = [Live(reservation_id="a:0:1", runner="r", partition=7, granted=granted_then, active=True)]
    outcome = open_ledger.reconcile(shard=0, owner_epoch=1, seen_epoch=before.epoch, live=live)
    assert (outcome.restored, outcome.lapsed) == (1, ())
    assert say(open_ledger, revokes=["a:0:1"]).verdicts == {"a:0:1": "claimed"}, (
        "its claim may be what was lost"
    )
    open_ledger.reconcile(shard=1, owner_epoch=1, seen_epoch=before.epoch, live=[])
    answer = say(open_ledger, candidates=[ask("b:0:1", gpu=1), ask("c:0:1", gpu=1)])
    assert granted(answer) == ["b:0:1"], "the registration of the runner outlived it"
    assert refused(answer) == {"c:0:1": ("slots_full", "gpu")}


# Waking


@pytest.mark.parametrize(
    "free",
    [
        lambda ledger: say(ledger, settles=[Settle(reservation_id="a:0:1", used={}, unclaimed=False)]),
        lambda ledger: say(ledger, revokes=["a:0:1"]),
        lambda ledger: ledger.reconcile(shard=0, owner_epoch=2, seen_epoch="", live=[]),
    ],
    ids=["settle", "revoke", "drop"],
)
def test_who_was_refused_hears_of_room_once(open_ledger: Any, free: Callable[[Any], object]) -> None:
    say(open_ledger, candidates=[ask("a:0:1", gpu=2)])
    assert "gpu" not in say(open_ledger, shard=1).woken
    say(open_ledger, shard=1, candidates=[ask("b:0:1", gpu=1)])
    answer = free(open_ledger)
    heard = answer.woken if isinstance(answer, Answer) else ("gpu",)
    assert heard == ("gpu",)
    assert granted(say(open_ledger, shard=1, candidates=[ask("b:0:1", gpu=1)])) == ["b:0:1"]
    assert say(open_ledger, shard=1, revokes=["b:0:1"]).woken == (), "nobody waits any more"
