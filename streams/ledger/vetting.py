"""What both ledgers refuse before they decide anything: bugs of the caller, named by field, value and limit (ValueError)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from laxity.schemas.limits import DEMANDS_MAX, INT_MAX, PARTITIONS_MAX, QUANTITY_MAX, SHARDS_MAX
from laxity.streams.ledger.limits import (
    CANDIDATES_MAX,
    CREDIT_MAX,
    FLEET_PREFIX,
    HELD_MAX,
    IDS_MAX,
    REPORT_MAX,
    RESOURCES_MAX,
    TOGETHER_MAX,
    USED_MAX,
)
from laxity.streams.ledger.protocol import Exchange, Report

NAME_BYTES_MAX: Final = 512  # an id, a resource with its key, a runner: what a script compares and stores
GRANTED_MAX: Final = 64  # demands, the fleet, and what further calls added
TTL_MS_MAX: Final = 24 * 3_600_000  # a registration that outlives a day is a mistake


def vet_exchange(request: Exchange) -> None:
    """One call of a shard."""
    vet_owner(request.shard, request.owner_epoch)
    vet_ids("acknowledged", request.acknowledged)
    vet_ids("settles", [settle.reservation_id for settle in request.settles])
    vet_ids("revokes", request.revokes)
    vet_ids("cancels", request.cancels)
    _count("candidates", len(request.candidates), CANDIDATES_MAX)
    for settle in request.settles:
        vet_amounts("used", settle.used, USED_MAX)
    for candidate in request.candidates:
        vet_name("reservation_id", candidate.reservation_id)
        vet_fleet(candidate.fleet)
        vet_amounts("demands", candidate.demands, DEMANDS_MAX)
        for name in candidate.demands:
            if name.startswith(FLEET_PREFIX):
                raise ValueError(f"demand {name!r}: a fleet is asked by `fleet`, not as a demand")
    named = {name for candidate in request.candidates for name in candidate.demands}
    _count("demands of all candidates", len(named), RESOURCES_MAX)


def vet_owner(shard: int, owner_epoch: int) -> None:
    """Who speaks."""
    vet_amount("shard", shard, SHARDS_MAX - 1)
    vet_amount("owner_epoch", owner_epoch, QUANTITY_MAX)


def vet_report(page: Report) -> None:
    """A page of what a shard reports: its ids lie in its range."""
    vet_owner(page.shard, page.owner_epoch)
    _count("live", len(page.live), REPORT_MAX)
    for one in page.live:
        vet_name("reservation_id", one.reservation_id)
        place = one.reservation_id.encode()
        if not page.after.encode() < place or (page.upto and place > page.upto.encode()):
            raise ValueError(f"live: {one.reservation_id!r} is not in ({page.after!r}, {page.upto!r}]")
        vet_name("runner", one.runner)
        vet_amount("partition", one.partition, INT_MAX)
        vet_amounts("granted", one.granted, GRANTED_MAX, HELD_MAX)
        for name in one.granted:
            if name.startswith(FLEET_PREFIX):
                vet_fleet(name.removeprefix(FLEET_PREFIX))


def vet_registration(*, runner: str, fleet: str, partition: int, credit: int, ttl_ms: int) -> None:
    """A runner's announcement."""
    vet_name("runner", runner)
    vet_fleet(fleet)
    vet_amount("partition", partition, PARTITIONS_MAX - 1)
    vet_amount("credit", credit, CREDIT_MAX)
    if ttl_ms < 1:
        raise ValueError(f"ttl_ms={ttl_ms}: must be at least 1")
    vet_amount("ttl_ms", ttl_ms, TTL_MS_MAX)


def vet_ids(field: str, ids: Sequence[str]) -> None:
    """A bounded list of names."""
    _count(field, len(ids), IDS_MAX)
    for reservation_id in ids:
        vet_name(field, reservation_id)


def vet_together(field: str, ids: Sequence[str]) -> None:
    """Names for one transaction of single decisions."""
    _count(field, len(ids), TOGETHER_MAX)
    vet_ids(field, ids)


def vet_name(field: str, value: str) -> None:
    """Text of 1 to NAME_BYTES_MAX bytes."""
    if not 0 < len(value.encode()) <= NAME_BYTES_MAX:
        raise ValueError(f"{field}={value[:80]!r}: must have 1 to {NAME_BYTES_MAX} bytes")


def vet_fleet(value: str) -> None:
    """A name without '/', which joins it to a runner's."""
    vet_name("fleet", value)
    if "/" in value:
        raise ValueError(f"fleet={value!r}: must not contain '/'")


def vet_amounts(
    field: str, amounts: Mapping[str, int], count_max: int, amount_max: int = QUANTITY_MAX
) -> None:
    """A bounded map of names to amounts."""
    _count(field, len(amounts), count_max)
    for name, amount in amounts.items():
        vet_name(field, name)
        vet_amount(f"{field}[{name}]", amount, amount_max)


def vet_amount(field: str, value: int, limit: int = QUANTITY_MAX) -> None:
    """An integer from 0 to `limit`; a float, a bool, NaN or a string is a ValueError too."""
    if type(value) is not int or not 0 <= value <= limit:
        raise ValueError(f"{field}={value!r}: must be an integer between 0 and {limit}")


def _count(field: str, count: int, limit: int) -> None:
    if count > limit:
        raise ValueError(f"{field}: {count} entries in one call, at most {limit}")
