"""A runner or a shard's owner that is stopped for so long that another has its place, and then goes on as if nothing had happened.

    python tests/chaos/sleeper.py runner|shard redis://127.0.0.1:6379/0

It prints one JSON line when it is at work, and one with everything that it tried once it was refused; then it ends.
"""

from __future__ import annotations

import json
import sys
from threading import Event
from typing import Any

from laxity.streams.ledger.limits import Limits, RateLimit, SlotLimit
from laxity.streams.ledger.protocol import Candidate, Exchange, Settle
from laxity.streams.ledger.redis import RedisLedger

TTL_MS = 5_000
BEAT_S = 0.05
MINE, ITS = "a:0:1", "a:0:2"  # our reservation, and that of whoever comes after us
LIMITS = Limits(
    resources={
        "hot": SlotLimit(capacity=1),
        "llm": RateLimit(
            requests_per_minute=0, tokens_per_minute=6_000_000, burst_requests=0, burst_tokens=600
        ),
    }
)


def ledger_at(url: str) -> RedisLedger:
    """One shard, short leases, patience."""
    return RedisLedger(url, limits=LIMITS, shards=1, ttl_ms=TTL_MS, timeout_s=10)


def candidate(reservation_id: str) -> Candidate:
    """For the only place there is."""
    demands = {"hot": 1, "llm": 60}
    return Candidate(reservation_id=reservation_id, task_id="a", fleet="f", demands=demands, deadline_ms=0)


def runner(ledger: RedisLedger) -> dict[str, Any]:
    """Holds its lease until it is refused; then tries all that a runner can."""
    say({"claimed": ledger.claim(reservation_id=MINE, runner="r").verdict})
    while (verdict := ledger.renew(runner="r", reservation_ids=[MINE])[MINE]) == "ok":
        Event().wait(BEAT_S)
    tried = {"renew": verdict}
    for name in (MINE, ITS):
        tried[f"renew {name}"] = ledger.renew(runner="r", reservation_ids=[name])[name]
        tried[f"claim {name}"] = ledger.claim(reservation_id=name, runner="r").verdict
        tried[f"call {name}"] = ledger.call(reservation_id=name, runner="r", resource="llm", amount=1).reason
        tried[f"release {name}"] = str(ledger.release(reservation_id=name, runner="r", used={"llm": 1}))
    return tried


def shard(ledger: RedisLedger) -> dict[str, Any]:
    """Asks as the first owner until it is refused; then tries all that a shard can."""
    say(
        {
            "granted": len(
                ledger.exchange(Exchange(shard=0, owner_epoch=1, candidates=[candidate(MINE)])).grants
            )
        }
    )
    while (status := ledger.exchange(Exchange(shard=0, owner_epoch=1)).status) == "ok":
        Event().wait(BEAT_S)
    parts: dict[str, dict[str, Any]] = {
        "settle": {"settles": [Settle(reservation_id=ITS, used={}, unclaimed=True)]},
        "revoke": {"revokes": [ITS]},
        "cancel": {"cancels": [ITS]},
        "acknowledge": {"acknowledged": [MINE, ITS]},
        "reserve": {"candidates": [candidate(MINE), candidate("z:0:1")]},
    }
    tried = {"first": status}
    for name, part in parts.items():
        tried[name] = ledger.exchange(Exchange(shard=0, owner_epoch=1, **part)).status
    tried["reconcile"] = ledger.reconcile(shard=0, owner_epoch=1, seen_epoch="", live=[]).status
    return tried


def say(what: dict[str, Any]) -> None:
    """One line."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    role, url = sys.argv[1:]
    asked = ledger_at(url)
    say({"runner": runner, "shard": shard}[role](asked))
    asked.close()
