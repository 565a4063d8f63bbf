"""All that a ledger remembers, of the twin and of the server alike, so that they can be compared."""

from __future__ import annotations

from typing import Any

from laxity.streams.ledger.limits import CREDIT_MAX
from laxity.streams.ledger.memory import MemoryLedger

DUMP = """
local function flat(list) local out = {} for i, v in ipairs(list) do out[i] = v end return out end
local function all(key) return redis.call('HGETALL', key) end
local function scored(key)
  local out = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  for i = 2, #out, 2 do out[i] = tonumber(out[i]) end
  return out
end
local function unpacked(key)
  local out = all(key)
  for i = 2, #out, 2 do out[i] = flat(cmsgpack.unpack(out[i])) end
  return out
end
local waiting = redis.call('SMEMBERS', KEYS[15])
return {all(KEYS[1]), all(KEYS[2]), all(KEYS[3]), unpacked(KEYS[4]), scored(KEYS[5]), scored(KEYS[6]), scored(KEYS[7]),
  scored(KEYS[8]), all(KEYS[9]), unpacked(KEYS[10]), unpacked(KEYS[11]), scored(KEYS[12]), scored(KEYS[13]), all(KEYS[14]), waiting}
"""


def memory_of_twin(twin: MemoryLedger) -> dict[str, Any]:
    """In the words of the server's tables."""
    books = twin.books
    standing = books.reservations.items()
    return {
        "epoch": (twin.epoch.key, twin.epoch.run_id, twin.epoch.begun_ms, twin.epoch.sequence),
        "owners": {s: e for s, e in twin.epoch.owners.items() if e},
        "reports": twin.epoch.reports,
        "reservations": {
            i: (r.shard, r.fleet, r.runner, r.partition, r.granted_ms, int(r.claimed), r.order, int(r.released), r.slots, r.rates)
            for i, r in standing
        },
        "leases": {i: r.expires_ms for i, r in standing},
        "held": {i: r.shard for i, r in standing},
        "reaped": books.reaped,
        "tombstones": {i: 2 * until_ms + ended for i, (until_ms, ended) in books.tombstones.items()},
        "used": books.used,
        "buckets": {
            name: [
                b.requests, b.tokens, b.refilled_ms, b.limit.requests_per_minute, b.limit.tokens_per_minute,
                b.limit.burst_requests, b.limit.burst_tokens, int(b.limit.refund), b.calls_first_ms,
            ]
            for name, b in books.buckets.items()
        },
        "runners": {
            f"{fleet}/{name}": [r.partition, r.credit, r.used, r.expires_ms] for (fleet, name), r in books.runners.items()
        },
        "alive": {f"{f}/{n}": r.expires_ms for (f, n), r in books.runners.items() if r.expires_ms},
        "idle": {
            f"{f}/{n}": CREDIT_MAX - max(0, r.free()) for (f, n), r in books.runners.items() if r.credit and r.expires_ms
        },
        "waiting": books.waiting,
    }  # fmt: skip


def memory_of_server(dump: list[Any]) -> dict[str, Any]:
    """What DUMP returned, by table."""
    tables = [dict(zip(table[::2], table[1::2], strict=True)) for table in dump[:-1]]
    epoch, owners, reports, reservations, leases, held, reaped, tombstones = tables[:8]
    used, buckets, runners, alive, idle, fleets = tables[8:]
    bands = {fleet: int(number) * (CREDIT_MAX + 1) for fleet, number in fleets.items()}
    return {
        "epoch": (
            epoch.get("key", ""),
            epoch.get("run", ""),
            int(epoch.get("begun", 0)),
            int(epoch.get("seq", 0)),
        ),
        "owners": {int(s): int(e) for s, e in owners.items()},
        "reports": {int(s): int(e) for s, e in reports.items()},
        "reservations": {i: (*r[:8], _amounts(r[8]), _amounts(r[9])) for i, r in reservations.items()},
        "leases": leases,
        "held": held,
        "reaped": reaped,
        "tombstones": tombstones,
        "used": {name: int(amount) for name, amount in used.items()},
        "buckets": buckets,
        "runners": runners,
        "alive": alive,
        "idle": {member: score - bands[member.split("/")[0]] for member, score in idle.items()},
        "waiting": set(dump[-1]),
    }


def _amounts(flat: list[Any]) -> dict[str, int]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
