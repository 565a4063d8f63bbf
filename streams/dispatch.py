"""Stage 6: the numbered cycle. `nominate` picks candidates, the host asks the ledger once, `conclude` dispatches or parks.

1. Reservations of an unfinished batch first: they stand, so use them or give them back.
2. Lanes that no refusal blocks, each with a window that follows what was granted.
3. From these, in the order of choose(), as many as one call takes.
4. (the host) Reserve in that order, all of a task's demands or none.
5. Granted: dispatched, in this batch. Refused: the resource blocks its lanes; a keyed slot parks the task alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from laxity.schemas.addresses import Address, headers_of
from laxity.schemas.identity import reservation_id
from laxity.schemas.records import Dispatch, SettleRow, TaskRow, Trigger
from laxity.schemas.serde import encode_row
from laxity.schemas.topics import TIERS
from laxity.streams import urgency
from laxity.streams.batch import Batch
from laxity.streams.choose import Credits, charge
from laxity.streams.effects import Output
from laxity.streams.ledger.protocol import Answer, Candidate, Grant, Refusal
from laxity.streams.lifecycle import Cause, State
from laxity.streams.ready import Lane, Pending, ReadyTable
from laxity.streams.reasons import Reason
from laxity.streams.state import index, keys
from laxity.streams.state.store import Write

HEADS_PER_CYCLE_MAX = 128  # one ledger call of about a millisecond
EVERYTHING = ""  # the resource of a refusal that concerns all: the ledger is not open yet
RECOVERING_RETRY_MS_MAX = 250  # it opens when the last shard has reported, of which nobody is told
_UNFIT = frozenset({Reason.OVER_CAPACITY, Reason.UNKNOWN_RESOURCE})
"""Only another configuration helps such a task, and that comes with a restart: until then it holds nobody up."""
KEYED_SAFETY_MS = 5_000  # a wake-up of a keyed slot that was lost is made up for within this


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What past answers teach; changed after commits only, empty after a restart."""

    blocked: Mapping[str, int] = field(default_factory=dict)  # resource -> when to ask again
    windows: Mapping[bytes, int] = field(default_factory=dict)  # lane -> how many to nominate
    credits: Credits = (0,) * len(TIERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nomination:
    """A candidate with its place in the ready table; `lane` None: held, it has its reservation already."""

    candidate: Candidate
    task_id: str
    row: TaskRow
    tier: int
    lane: Lane | None


@dataclass(slots=True, kw_only=True)
class Cycle:
    """One cycle between its two halves."""

    nominations: list[Nomination]
    eligible: list[bool]  # tiers with work in an open lane, within this cycle's reach or not
    again: bool = False  # there is more to do at once
    local: list[Write] = field(default_factory=list)


def take_up(batch: Batch, held: Sequence[str]) -> list[Nomination]:
    """1. Held reservations: asked again under the same id where the task still waits for it, else given back."""
    nominations = []
    for reservation in held:
        task_id, generation, number = reservation.split(":")
        row = batch.tables.task(task_id)
        waits = row is not None and row.state == State.READY and row.generation == int(generation)
        waits = waits and row is not None and not _is_hopeless(row, batch.now_ms)
        if row is not None and waits and row.dispatch_no + 1 == int(number):
            nominations.append(_nomination(task_id, row, row.tier, None))
            continue
        batch.tables.put_settle(reservation, SettleRow(used={}, unclaimed=True))
        if row is not None and row.generation == int(generation) and row.dispatch_no < int(number):
            batch.tables.put_task(task_id, replace(row, dispatch_no=int(number)))
    return nominations


def _nomination(task_id: str, row: TaskRow, tier: int, lane: Lane | None) -> Nomination:
    candidate = Candidate(
        reservation_id=reservation_id(task_id, row.generation, row.dispatch_no + 1),
        task_id=task_id,
        fleet=row.fleet,
        demands=row.demands,
        deadline_ms=row.deadline_ms,
    )
    return Nomination(candidate=candidate, task_id=task_id, row=row, tier=tier, lane=lane)


def nominate(
    batch: Batch, ready: ReadyTable, writes: Sequence[Write], admission: Admission, held: Sequence[str]
) -> Cycle:
    """Steps 1 to 3. `writes`: index rows of this batch so far."""
    nominations = take_up(batch, held)
    taken = {n.task_id for n in nominations}
    pending = Pending(writes)
    windows = [
        (lane, _window(lane, admission)) for lane in ready.lanes(pending) if _is_open(batch, lane, admission)
    ]
    config = batch.place.config
    floors = [tier.floor_permille for tier in config.tiers]
    eligible, order = ready.ordered(pending, windows, admission.credits, floors, config.policy)
    expired = 0
    for nominee in order:
        if len(nominations) + expired >= HEADS_PER_CYCLE_MAX:
            break
        if nominee.task_id in taken:
            continue
        row = batch.tables.task(nominee.task_id)
        assert row is not None, f"{nominee.task_id} is in the ready table alone"
        if _is_hopeless(row, batch.now_ms):
            batch.end(nominee.task_id, row, Cause.EXPIRE, Reason.LATEST_START_PASSED)
            expired += 1
            continue
        nominations.append(_nomination(nominee.task_id, row, nominee.tier, nominee.lane))
    return Cycle(nominations=nominations, eligible=eligible, again=expired > 0)


def _is_hopeless(row: TaskRow, now_ms: int) -> bool:
    """Its timer may stand behind more timers than one batch fires."""
    return row.firm and now_ms > urgency.latest_start(row)


def _window(lane: Lane, admission: Admission) -> int:
    return admission.windows.get(lane.id, HEADS_PER_CYCLE_MAX)


def _is_open(batch: Batch, lane: Lane, admission: Admission) -> bool:
    """Nothing that the lane needs refuses at present."""
    return admission.blocked.get(EVERYTHING, 0) <= batch.now_ms and all(
        admission.blocked.get(name, 0) <= batch.now_ms and _exists(batch, name) for name in lane.resources
    )


def _exists(batch: Batch, resource: str) -> bool:
    """Tasks of a fleet that is not configured wait (reason `no_fleet`)."""
    return not resource.startswith("fleet.") or resource.removeprefix("fleet.") in batch.place.config.fleets


def conclude(batch: Batch, cycle: Cycle, answer: Answer, admission: Admission) -> Admission:
    """Step 5. Returns what to remember once the batch is committed."""
    by_id = {n.candidate.reservation_id: n for n in cycle.nominations}
    credits_ = admission.credits
    floors = [tier.floor_permille for tier in batch.place.config.tiers]
    passed: dict[bytes, int] = {}  # lane -> tasks that no longer stand before the others
    for grant in answer.grants:
        nomination = by_id[grant.reservation_id]
        _dispatch(batch, nomination, grant)
        if nomination.lane is not None:
            waiting = [count > 0 for count in batch.waiting]
            credits_ = charge(credits_, floors, cycle.eligible, nomination.tier, waiting=waiting)
            passed[nomination.lane.id] = passed.get(nomination.lane.id, 0) + 1
    blocked = {name: at for name, at in admission.blocked.items() if at > batch.now_ms}
    refused: set[bytes] = set()
    for refusal in answer.refusals:
        nomination = by_id[refusal.reservation_id]
        if refusal.reason == Reason.GONE:
            _skip_number(batch, nomination)
            cycle.again = True
            continue
        if refusal.resource == EVERYTHING:
            blocked[EVERYTHING] = batch.now_ms + min(max(1, refusal.retry_ms), RECOVERING_RETRY_MS_MAX)
            continue
        if refusal.reason in _UNFIT:
            if nomination.lane is not None:
                passed[nomination.lane.id] = passed.get(nomination.lane.id, 0) + 1
                cycle.again |= nomination.lane.id in admission.windows
            continue
        if ":" in refusal.resource:
            cycle.local += _park(batch, nomination, refusal)
            continue
        blocked[refusal.resource] = batch.now_ms + max(1, refusal.retry_ms)
        if nomination.lane is not None:
            refused.add(nomination.lane.id)
    # Lanes that no refusal blocks may have had no turn yet.
    cycle.again |= bool(refused) and len(cycle.nominations) >= HEADS_PER_CYCLE_MAX
    return Admission(blocked=blocked, windows=_windows(admission, passed, refused), credits=credits_)


def _windows(admission: Admission, passed: Mapping[bytes, int], refused: set[bytes]) -> dict[bytes, int]:
    """A lane that was refused nominates next time about what it got; one that was not, twice as many."""
    windows = dict(admission.windows)
    for lane in refused:
        windows[lane] = passed.get(lane, 0) + 1
    for lane in passed.keys() - refused:
        if lane in windows:
            windows[lane] *= 2
            if windows[lane] >= HEADS_PER_CYCLE_MAX:
                del windows[lane]
    return windows


def without_lost_lanes(admission: Admission, ready: ReadyTable) -> Admission:
    """Lanes that were forgotten have no window either."""
    if len(admission.windows) <= len(ready):
        return admission
    return replace(admission, windows={lane: n for lane, n in admission.windows.items() if lane in ready})


def _dispatch(batch: Batch, nomination: Nomination, grant: Grant) -> None:
    task_id, row = nomination.task_id, nomination.row
    row = batch.move(
        task_id,
        row,
        Cause.GRANT,
        Reason.HELD if nomination.lane is None else Reason.GRANTED,
        dispatch_no=row.dispatch_no + 1,
        runner=grant.runner,
        partition=grant.partition,
        granted=grant.granted,
        dispatched_ms=batch.now_ms,
    )
    batch.write(
        Output(
            topic=f"dispatch.{row.fleet}",
            partition=grant.partition,
            key=task_id.encode(),
            value=encode_row(_order(batch, task_id, row, grant)),
            schema=Dispatch,
            headers=headers_of(_address(batch, task_id, row), TIERS[row.tier]),
        )
    )


def _address(batch: Batch, task_id: str, row: TaskRow) -> Address:
    return Address(
        shard=batch.place.shard, task_id=task_id, generation=row.generation, dispatch_no=row.dispatch_no
    )


def _order(batch: Batch, task_id: str, row: TaskRow, grant: Grant) -> Dispatch:
    trigger = batch.place.codec.decode(Trigger, batch.tables.original(task_id).value)
    return Dispatch(
        task_id=task_id,
        tenant=row.tenant,
        run_id=row.run_id,
        key=row.key,
        type=row.type,
        shard=batch.place.shard,
        generation=row.generation,
        effect_generation=row.effect_generation,
        dispatch_no=row.dispatch_no,
        attempt=row.attempt + 1,
        runner=grant.runner,
        payload=trigger.payload,
        content_type=trigger.content_type,
        deadline_ms=row.deadline_ms,
        firm=row.firm,
        latest_start_ms=urgency.latest_start(row),
        estimate_ms=row.estimate_ms,
        granted=grant.granted,
        granted_ms=grant.granted_ms,
        on_unknown=row.on_unknown,
        after_unknown=row.after_unknown,
        checkpoint=row.checkpoint,
        headers=trigger.headers,
    )


def _skip_number(batch: Batch, nomination: Nomination) -> None:
    """The number was ended before it was used: ask under the next one."""
    row = replace(nomination.row, dispatch_no=nomination.row.dispatch_no + 1)
    batch.tables.put_task(nomination.task_id, row)


def _park(batch: Batch, nomination: Nomination, refusal: Refusal) -> list[Write]:
    """Out of its lane, under the keyed slot; a timer behind the wake-up, one per key and interval."""
    ready = index.ready_key(nomination.row)
    due_ms = (batch.now_ms // KEYED_SAFETY_MS + 2) * KEYED_SAFETY_MS
    return [
        (ready, None),
        (keys.parked_key(refusal.resource, ready), nomination.task_id.encode()),
        (keys.timer_key(due_ms, index.KEYED, refusal.resource), b""),
    ]
