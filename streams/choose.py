"""The one order: which tier goes next.

1. the claim of a big task at its latest start (a place: no claims are made yet);
2. tiers below their floor, the largest deficit first;
3. else all tiers by the policy's key, inside a tier only eligible tenants (a place: every tenant is eligible yet);
4. the order of acceptance, then the id.

Deficits are counted as in deficit round robin (Shreedhar and Varghese, 1995): each dispatch credits every tier that has eligible
work with its floor in thousandths and charges the served one a thousand; an idle tier keeps no credit, so its share is lent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

WHOLE = 1_000  # one dispatch, in thousandths
CREDIT_MAX = 32 * WHOLE  # a tier that was refused for long catches up in a burst of at most this

Head = tuple[int, int, bytes]
"""Urgency, order of acceptance, task id: the first of a tier."""

Credits = tuple[int, ...]
"""Per tier, in thousandths of a dispatch."""

Policy = Callable[[int, Head], tuple[int, ...]]
"""Sort key of a tier's head: smaller goes first."""


def edf(_tier: int, head: Head) -> tuple[int, ...]:
    """Earliest deadline first, across all tiers."""
    return (head[0], head[1])


def strict(tier: int, head: Head) -> tuple[int, ...]:
    """The higher tier first, deadlines inside it."""
    return (tier, head[0], head[1])


POLICIES: dict[str, Policy] = {"edf": edf, "strict": strict}


def choose(heads: Sequence[Head | None], credits_: Credits, policy: str) -> int | None:
    """The tier whose head goes next, or None if no tier has one. `strict` knows no floors."""
    present = [tier for tier, head in enumerate(heads) if head is not None]
    if not present:
        return None
    owed = [tier for tier in present if credits_[tier] >= WHOLE and policy != "strict"]
    if owed:
        return max(owed, key=lambda tier: (credits_[tier], -tier))
    order = POLICIES[policy]
    return min(present, key=lambda tier: (*order(tier, heads[tier] or (0, 0, b"")), tier))


def charge(
    credits_: Credits,
    floors_permille: Sequence[int],
    eligible: Sequence[bool],
    served: int,
    *,
    waiting: Sequence[bool],
) -> Credits:
    """Credits after one dispatch of tier `served`.

    `eligible`: tiers that could have gone; `waiting`: tiers with any work. One whose work all waits for something keeps what it has:
    else a busy resource that frees a place now and then would never serve a low tier.
    """
    after = []
    for tier, credit in enumerate(credits_):
        if not eligible[tier]:
            after.append(credit if waiting[tier] else 0)
            continue
        credit += floors_permille[tier] - (WHOLE if tier == served else 0)  # noqa: PLW2901 - the running sum
        after.append(max(-CREDIT_MAX, min(CREDIT_MAX, credit)))
    return tuple(after)
