"""What the headers of a dispatch say of it, for a runner that cannot read its value: which shard asks, and about which reservation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from laxity.schemas.identity import reservation_id

TIER: Final = "laxity-tier"
SHARD: Final = "laxity-shard"
RESERVATION: Final = "laxity-reservation"
_SHARD: Final = re.compile(rb"[0-9]{1,6}")
_RESERVATION: Final = re.compile(rb"([0-9a-f]{32}):([0-9]{1,9}):([0-9]{1,18})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """One dispatch."""

    shard: int
    task_id: str
    generation: int
    dispatch_no: int


def headers_of(address: Address, tier: str) -> Sequence[tuple[str, bytes | None]]:
    """As the shard writes them."""
    name = reservation_id(address.task_id, address.generation, address.dispatch_no)
    return ((TIER, tier.encode()), (SHARD, str(address.shard).encode()), (RESERVATION, name.encode()))


def address_in(headers: Iterable[tuple[str, bytes | None]]) -> Address | None:
    """The address, or None where the headers hold none: nothing else of them is trusted."""
    found = dict(headers)
    shard = _SHARD.fullmatch(found.get(SHARD) or b"")
    name = _RESERVATION.fullmatch(found.get(RESERVATION) or b"")
    if shard is None or name is None:
        return None
    return Address(
        shard=int(shard[0]), task_id=name[1].decode(), generation=int(name[2]), dispatch_no=int(name[3])
    )
