"""The inputs of a shard, in the canonical order inside a batch: control, links, outcomes, then the tiers by urgency.

Two consumers read them. With one, prefetched background records would stand before a critical one.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from laxity.schemas.topics import TIERS

ANCHOR = "control"  # the group subscribes to this one; its siblings are assigned by hand along with it
OUTCOMES = "outcomes"
TRIGGERS = tuple(f"triggers.{tier}" for tier in TIERS)

URGENT = (ANCHOR, "links", OUTCOMES, "triggers.critical", "triggers.high")
BULK = ("triggers.normal", "triggers.low", "triggers.background")
INPUTS = (*URGENT, *BULK)

TRANSACTIONAL = frozenset(
    {ANCHOR, "links"}
)  # only shards and operators write them, in transactions, whose markers leave gaps
PATIENT = frozenset({"triggers.low", "triggers.background"})  # their deadlines are hours away by default

SHARE_PERMILLE: Mapping[str, int] = MappingProxyType({
    ANCHOR: 100,
    "links": 150,
    OUTCOMES: 300,
    "triggers.critical": 150,
    "triggers.high": 120,
    "triggers.normal": 100,
    "triggers.low": 50,
    "triggers.background": 30,
})  # fmt: skip
"""What each input may take of a full batch before others are asked, so that a flood of one keeps no other out; leftovers go in order."""

assert tuple(SHARE_PERMILLE) == INPUTS
assert sum(SHARE_PERMILLE.values()) == 1000


def tier_of(topic: str) -> int | None:
    """Number of the tier whose triggers the topic holds; None for the others."""
    return TRIGGERS.index(topic) if topic in TRIGGERS else None
