"""Index rows that follow from a task row: one function for commits and for restore, so that both agree.

They are local: never in a changelog, derived again when a store is restored.
"""

from __future__ import annotations

from functools import lru_cache

from laxity.schemas.records import TaskRow
from laxity.streams import urgency
from laxity.streams.lifecycle import LEASED, State
from laxity.streams.state import keys
from laxity.streams.state.store import Write

RELEASE = b"\x01"
EXPIRE = b"\x02"
KEYED = b"\x03"
_UNLEASED = frozenset({State.WAITING, State.DELAYED, State.READY})


@lru_cache(maxsize=4096)  # lanes are as many as combinations of resources in use
def _lane(lane: tuple[str, ...]) -> tuple[bytes, bytes]:
    return keys.lane_id(lane), "\x00".join(lane).encode()


def lane_of(row: TaskRow) -> tuple[bytes, bytes]:
    """Id and text of the lane that a task waits in."""
    return _lane(keys.lane_of(row.fleet, row.demands))


def ready_key(row: TaskRow) -> bytes:
    """Place in the ready table."""
    return keys.ready_key(lane_of(row)[0], row.tier, urgency.order_of(row), row.seq)


def keyed_demands(row: TaskRow) -> list[str]:
    """Keyed slots that the task needs, as `resource:key`."""
    return [name for name in row.demands if ":" in name]


def entries(task_id: str, row: TaskRow | None) -> dict[bytes, bytes]:
    """All index rows of a task in its present state."""
    if row is None:
        return {}
    found: dict[bytes, bytes] = {}
    if row.state == State.READY:
        lane, text = lane_of(row)
        found[ready_key(row)] = task_id.encode()
        found[keys.LANE + lane] = text
    elif row.state == State.DELAYED:
        found[keys.timer_key(row.due_ms, RELEASE, task_id)] = b""
    elif row.state in LEASED:
        found[keys.LEASED + task_id.encode()] = b""
    if row.firm and row.state in _UNLEASED:
        found[keys.timer_key(urgency.latest_start(row) + 1, EXPIRE, task_id)] = b""
    return found


def derive(task_id: str, before: TaskRow | None, after: TaskRow | None) -> list[Write]:
    """Writes that take the index from `before` to `after`. Lanes stay known once seen."""
    old, new = entries(task_id, before), entries(task_id, after)
    writes: list[Write] = [(key, None) for key in old if key not in new and key[:1] != keys.LANE]
    if before is not None and before.state == State.READY:
        ready = ready_key(before)
        if ready not in new:
            writes += [(keys.parked_key(name, ready), None) for name in keyed_demands(before)]
    writes += [(key, value) for key, value in new.items() if key not in old]
    return writes
