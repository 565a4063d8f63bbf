"""A reconciliation in pages: no script of it takes more than about a millisecond, and what was not reported yet is not dropped.

Ids go in the order of their bytes; each page speaks for a range, so the ledger needs no memory of the pages before. Only the last
one opens the ledger to the shard; a loss between two pages shows as another epoch and voids those before.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from laxity.streams.ledger.limits import REPORT_MAX
from laxity.streams.ledger.protocol import Live, Reconciled, Report

Pages = Generator[Report, Reconciled, Reconciled]
"""Yields a page, is sent what came of it, returns what came of all."""


def pages(*, shard: int, owner_epoch: int, seen_epoch: str, live: Sequence[Live]) -> Pages:
    """Ends at once where a page is not `ok`, and returns that."""
    ordered = sorted(live, key=lambda one: one.reservation_id.encode())
    epoch = after = ""
    lapsed: list[str] = []
    dropped = restored = 0
    for first in range(0, max(1, len(ordered)), REPORT_MAX):
        some = ordered[first : first + REPORT_MAX]
        upto = some[-1].reservation_id if first + REPORT_MAX < len(ordered) else ""
        more = True
        while more:
            found = yield Report(
                shard=shard,
                owner_epoch=owner_epoch,
                seen_epoch=seen_epoch,
                within=epoch,
                after=after,
                upto=upto,
                live=some,
            )
            if found.status != "ok":
                return found
            epoch, more = found.epoch, found.more
            lapsed += found.lapsed
            dropped += found.dropped
            restored += found.restored
        after = upto
    return Reconciled(status="ok", epoch=epoch, lapsed=tuple(lapsed), dropped=dropped, restored=restored)


def all_of(
    report: Callable[[Report], Reconciled],
    *,
    shard: int,
    owner_epoch: int,
    seen_epoch: str,
    live: Sequence[Live],
) -> Reconciled:
    """Every page, one after the other."""
    asked = pages(shard=shard, owner_epoch=owner_epoch, seen_epoch=seen_epoch, live=live)
    page = next(asked)
    try:
        while True:
            page = asked.send(report(page))
    except StopIteration as end:
        done: Reconciled = end.value
        return done
