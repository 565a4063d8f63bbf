"""The one order, case by case."""

from __future__ import annotations

from laxity.streams.choose import CREDIT_MAX, WHOLE, charge, choose

FLOORS = (400, 250, 200, 100, 50)
NOTHING = (None,) * 5
ALL = (True,) * 5


def heads(**urgency: int) -> list[tuple[int, int, bytes] | None]:
    found: list[tuple[int, int, bytes] | None] = [None] * 5
    for tier, at in urgency.items():
        found[int(tier[1])] = (at, 1, b"id")
    return found


def test_nothing_waits() -> None:
    assert choose(NOTHING, (0,) * 5, "edf") is None


def test_the_earliest_deadline_goes_first_whatever_its_tier() -> None:
    assert choose(heads(t0=20, t4=10), (0,) * 5, "edf") == 4


def test_strict_looks_at_the_tier_first_and_knows_no_floors() -> None:
    assert choose(heads(t0=20, t4=10), (0,) * 5, "strict") == 0
    assert choose(heads(t0=20, t4=10), (0, 0, 0, 0, 9 * WHOLE), "strict") == 0


def test_equal_deadlines_go_by_acceptance_then_by_tier() -> None:
    early, late = (10, 1, b"b"), (10, 2, b"a")
    assert choose([late, early, None, None, None], (0,) * 5, "edf") == 1
    assert choose([None, early, early, None, None], (0,) * 5, "edf") == 1


def test_a_tier_is_owed_from_a_whole_dispatch_on() -> None:
    assert choose(heads(t0=1, t4=99), (0, 0, 0, 0, WHOLE - 1), "edf") == 0
    assert choose(heads(t0=1, t4=99), (0, 0, 0, 0, WHOLE), "edf") == 4


def test_the_largest_deficit_goes_first_and_the_higher_tier_of_equal_ones() -> None:
    assert choose(heads(t0=1, t3=9, t4=9), (0, 0, 0, WHOLE, 2 * WHOLE), "edf") == 4
    assert choose(heads(t0=1, t3=9, t4=9), (0, 0, 0, WHOLE, WHOLE), "edf") == 3


def test_a_tier_that_is_owed_but_has_nothing_is_passed_over() -> None:
    assert choose(heads(t0=1), (0, 0, 0, 0, 5 * WHOLE), "edf") == 0


def test_each_dispatch_credits_who_could_have_gone_and_charges_who_went() -> None:
    assert charge((0,) * 5, FLOORS, ALL, 0, waiting=ALL) == (-600, 250, 200, 100, 50)


def test_an_idle_tier_keeps_no_credit() -> None:
    some = [True, False, True, False, False]
    assert charge((7, 7, 7, 7, 7), FLOORS, some, 0, waiting=some) == (-593, 0, 207, 0, 0)


def test_a_tier_whose_work_all_waits_for_a_resource_keeps_its_credit_and_earns_none() -> None:
    some = [True, False, True, False, False]
    assert charge((7, 7, 7, 7, -7), FLOORS, some, 0, waiting=ALL) == (-593, 7, 207, 7, -7)


def test_credit_is_bounded_both_ways() -> None:
    high = (CREDIT_MAX,) * 5
    assert charge(high, FLOORS, ALL, 0, waiting=ALL)[1:] == high[1:]
    assert charge((-CREDIT_MAX,) * 5, FLOORS, ALL, 0, waiting=ALL)[0] == -CREDIT_MAX
