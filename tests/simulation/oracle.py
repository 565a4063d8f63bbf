"""What must hold of a finished history, from the topics and the provider alone (invariants of docs/reliability.md)."""

from __future__ import annotations

from collections import Counter, defaultdict

from simulation.world import Deployment

from laxity.schemas.identity import positional_key, run_id_of, task_id_of
from laxity.schemas.records import TaskEvent, Trigger
from laxity.schemas.serde import Undecodable
from laxity.schemas.topics import TIERS
from laxity.streams.effects import Record
from laxity.streams.ledger.books import Claimed
from laxity.streams.lifecycle import TERMINAL, TRANSITIONS
from laxity.streams.simulator.host import Disk, restore_disk
from laxity.streams.state import index, keys
from laxity.streams.state.changelog import state_changes
from laxity.streams.state.restore import position

CAPACITIES = {"browser": 2, "account:a": 1, "account:b": 1}
_STEPS = {(before, after) for (before, _), after in TRANSITIONS.items()}


def events(d: Deployment) -> list[TaskEvent]:
    found = [d.codec.decode(TaskEvent, r.value) for tier in TIERS for r in d.log.all(f"events.{tier}")]
    return sorted(found, key=lambda e: (e.shard, e.batch))


def triggers(d: Deployment) -> list[tuple[Record, Trigger | None, str]]:
    """Every trigger with its decoded form and task id; junk with None."""
    found: list[tuple[Record, Trigger | None, str]] = []
    for tier in TIERS:
        for record in d.log.all(f"triggers.{tier}"):
            try:
                t = d.codec.decode(Trigger, record.value)
            except Undecodable:
                found.append((record, None, ""))
                continue
            key = t.key or positional_key(f"laxity.{record.topic}", record.partition, record.offset)
            found.append((record, t, task_id_of(t.tenant, run_id_of(t.tenant, t.run_id, key), key)))
    return found


def check_now(d: Deployment) -> None:
    """What must hold after every step: I7, and I17 where a crash has just happened.

    What a loss of the ledger restored may count twice until it lapses: a lease that had ended, of which its shard had yet to hear.
    Its holder has fenced itself, so that errs to the safe side; nothing is granted on top.
    """
    for name, capacity in CAPACITIES.items():
        standing = [d.ledger.books.reservations[i] for i in d.ledger.holders(name)]
        held = sum(r.slots[name] for r in standing if r.claimed is not Claimed.RESTORED)
        assert held <= capacity, f"I7: {held} of {capacity} {name}"
        called = [o for r in (*d.runners, *d.sleepers) if r is not None for o in r.calling()]
        using = sum(o.granted.get(name, 0) for o in called)
        assert using <= capacity, (
            f"I7: {using} of {capacity} {name} in calls of runners that have their lease"
        )
    while d.crashed:
        _nothing_uncommitted(d, d.crashed.pop())


def _nothing_uncommitted(d: Deployment, number: int) -> None:
    """I17: a store holds what its changelog says up to the offset it names, and nothing else."""
    store = d.disks[number].state
    here = position(store)
    offset = 0 if here is None else here.next
    folded: dict[bytes, bytes] = {}
    records = [r for r in d.log.read("state", number, 0) if r.offset < offset]
    for change in state_changes([(r.key or b"", r.value) for r in records], d.codec):
        key, value = keys.state_write(change)
        if value is None:
            folded.pop(key, None)
        else:
            folded[key] = value
    rows = {key: value for key, value in store.scan(b"", b"\xff" * 48) if keys.is_changelogged(key)}
    assert rows == folded, f"I17: shard {number} holds what was not committed, or lacks what was"


def check_replay(d: Deployment) -> None:
    """I15: everything read again from the start: as many duplicates as triggers, no effect, no dispatch, no dead letter."""
    before = _counts(d)
    d.reset_all()
    after = _counts(d)
    assert after["duplicates"] - before["duplicates"] == len(triggers(d)), "I15: duplicates"
    same = ("effects", "dispatches", "letters", "ends")
    assert [after[n] for n in same] == [before[n] for n in same], f"I15: {before} then {after}"


def _counts(d: Deployment) -> dict[str, int]:
    told = events(d)
    return {
        "effects": len(d.provider.effects),
        "dispatches": len(d.log.all("dispatch.default")),
        "letters": sum(len(d.log.all(f"dlq.{tier}")) for tier in TIERS),
        "ends": sum(e.kind == "transitions" and e.state in TERMINAL for e in told),
        "duplicates": sum(e.kind == "duplicate" for e in told),
    }


def check(d: Deployment) -> None:
    told = events(d)
    ends = Counter(e.task_id for e in told if e.kind == "transitions" and e.state in TERMINAL)
    _every_trigger_ends_once(d, ends, told)
    _paths_are_legal(told)
    _effects_once(d)
    _nothing_reserved(d)
    _dead_letters(d, told)
    _restores(d)


def _every_trigger_ends_once(d: Deployment, ends: Counter[str], told: list[TaskEvent]) -> None:
    """I1, I2."""
    by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    for event in told:
        by_kind[event.kind][event.task_id] += 1
    wanted: Counter[str] = Counter()
    junk = 0
    for _, trigger, task_id in triggers(d):
        if trigger is None:
            junk += 1
        else:
            wanted[task_id] += 1
    for task_id, times in wanted.items():
        accepted = ends[task_id]
        refused = by_kind["rejected"][task_id]
        repeated = by_kind["duplicate"][task_id] + by_kind["conflict"][task_id]
        assert accepted <= 1, f"I2: {task_id} ended {accepted} times"
        assert accepted or refused, f"I1: {task_id} was lost"
        told_of = accepted + refused + repeated
        assert told_of == times or (told_of > times and d.resets), (
            f"I1: {task_id}: {times} triggers, {told_of} told"
        )
    assert by_kind["rejected"][""] == junk, f"I1: {junk} undecodable, {by_kind['rejected']['']} told"
    assert not ends.keys() - wanted.keys(), "tasks from nowhere"


def _paths_are_legal(told: list[TaskEvent]) -> None:
    """I25."""
    state: dict[str, str] = {}
    for event in told:
        for step in event.transitions:
            assert step.before == state.get(event.task_id, ""), (
                f"I25: {event.task_id} {step} after {state.get(event.task_id)}"
            )
            assert (step.before, step.after) in _STEPS, f"I25: {step}"
            state[event.task_id] = step.after
        if event.transitions:
            assert event.state == state[event.task_id]


def _effects_once(d: Deployment) -> None:
    """I3."""
    doubled = {t: n for t, n in Counter(task for _, task in d.provider.effects).items() if n > 1}
    assert not doubled, f"I3: doubled effects {doubled}"


def _nothing_reserved(d: Deployment) -> None:
    """I8."""
    standing = {i: r for i, r in d.ledger.books.reservations.items() if not r.released}
    assert not standing, f"I8: {standing}"
    assert not d.ledger.books.used, f"I8: {d.ledger.books.used}"


def _dead_letters(d: Deployment, told: list[TaskEvent]) -> None:
    """I14: one letter per dead task, conflict and refusal; the bytes as they came."""
    letters = [r for tier in TIERS for r in d.log.all(f"dlq.{tier}")]
    dead = [e for e in told if e.state == "DEAD" or e.kind == "conflict"]
    assert len(letters) == len(dead), f"I14: {len(letters)} letters for {len(dead)} deaths"
    origins = {(r.topic, r.partition, r.offset): r for r, _, _ in triggers(d)}
    for letter in letters:
        headers = {name: (value or b"").decode("utf-8", "replace") for name, value in letter.headers}
        origin = origins[
            headers["laxity.error.topic"].removeprefix("laxity."),
            int(headers["laxity.error.partition"]),
            int(headers["laxity.error.offset"]),
        ]
        assert (letter.value, letter.key) == (origin.value, origin.key), "I14: bytes changed"
        assert tuple(letter.headers[: len(origin.headers)]) == origin.headers, "I14: headers changed"


def _restores(d: Deployment) -> None:
    """I16: a shard restored from nothing has the rows of the one that lived; and so do its derived indexes."""
    for number, disk in enumerate(d.disks):
        empty = Disk()
        restore_disk(d.world, number, empty)
        for name in ("state", "keys"):
            lived, restored = getattr(disk, name), getattr(empty, name)
            rows = [
                {key: v for key, v in s.scan(b"", b"\xff" * 48) if not _is_parking(key)}
                for s in (lived, restored)
            ]
            assert rows[0] == rows[1], f"I16: shard {number} {name}"


def _is_parking(key: bytes) -> bool:
    """Rows that only say who waits where, and how far the copy is: a restored shard starts without them."""
    return key[:1] in {keys.LANE, keys.POSITION, keys.PARKED, keys.HOST} or (
        key[:1] == keys.TIMER and key[9:10] == index.KEYED
    )
