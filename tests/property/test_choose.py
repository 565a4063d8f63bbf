"""Shares over many dispatches: floors hold while everybody waits, what is idle is lent, nobody is chosen who is not there."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from laxity.streams.choose import CREDIT_MAX, WHOLE, Credits, charge, choose

FLOORS = st.lists(st.integers(0, 200), min_size=5, max_size=5)
URGENCY = st.lists(st.integers(0, 5), min_size=5, max_size=5)
CREDITS = st.tuples(*[st.integers(-CREDIT_MAX, CREDIT_MAX)] * 5)
PRESENT = st.lists(st.booleans(), min_size=5, max_size=5)


@settings(deadline=None)
@given(FLOORS, URGENCY)
def test_every_floor_holds_over_every_window(floors: list[int], urgency: list[int]) -> None:
    """Whatever the deadlines say: in the first n dispatches a tier lacks at most a few of its share."""
    heads = [(u, 1, b"x") for u in urgency]
    credits_: Credits = (0,) * 5
    served = [0] * 5
    for n in range(1, 301):
        tier = choose(heads, credits_, "edf")
        assert tier is not None
        served[tier] += 1
        credits_ = charge(credits_, floors, [True] * 5, tier, waiting=[True] * 5)
        for at in range(5):
            assert served[at] * WHOLE >= floors[at] * n - 5 * WHOLE, f"tier {at} after {n}: {served}"


@settings(deadline=None)
@given(CREDITS, URGENCY, PRESENT, st.sampled_from(["edf", "strict"]))
def test_only_who_is_there_is_chosen(
    credits_: Credits, urgency: list[int], present: list[bool], policy: str
) -> None:
    heads = [(u, 1, b"x") if there else None for u, there in zip(urgency, present, strict=True)]
    tier = choose(heads, credits_, policy)
    assert (tier is None) == (not any(present))
    if tier is None:
        return
    assert present[tier]
    owed = [t for t in range(5) if present[t] and credits_[t] >= WHOLE and policy == "edf"]
    if owed:
        assert credits_[tier] == max(credits_[t] for t in owed)
    elif policy == "edf":
        assert urgency[tier] == min(urgency[t] for t in range(5) if present[t])
    else:
        assert tier == present.index(True)


@settings(deadline=None)
@given(CREDITS, FLOORS, PRESENT, PRESENT, st.integers(0, 4))
def test_credit_stays_in_bounds_and_goes_with_the_work(
    credits_: Credits, floors: list[int], present: list[bool], waiting: list[bool], served: int
) -> None:
    after = charge(credits_, floors, present, served, waiting=waiting)
    assert all(-CREDIT_MAX <= credit <= CREDIT_MAX for credit in after)
    for tier in range(5):
        if not present[tier]:
            assert after[tier] == (credits_[tier] if waiting[tier] else 0)


def test_the_share_of_an_idle_tier_is_lent_and_comes_back() -> None:
    floors = (0, 0, 0, 0, 500)
    credits_: Credits = (0,) * 5
    critical, background = (1, 1, b"x"), (9, 1, b"x")
    alone, both = [True, False, False, False, False], [True, False, False, False, True]
    for _ in range(100):
        assert choose([critical, None, None, None, None], credits_, "edf") == 0
        credits_ = charge(credits_, floors, alone, 0, waiting=alone)
    order = []
    for _ in range(10):
        tier = choose([critical, None, None, None, background], credits_, "edf")
        assert tier is not None
        order.append(tier)
        credits_ = charge(credits_, floors, both, tier, waiting=both)
    assert order.count(4) in {4, 5}, "half of the dispatches, and none for the time when it was idle"
