"""What must hold of a finished history, from the topics and the provider alone (invariants of docs/reliability.md)."""

from __future__ import annotations

from collections import Counter, defaultdict

from simulation.world import Deployment

from laxity.schemas.identity import positional_key, run_id_of, task_id_of
from laxity.schemas.records import TaskEvent, Trigger
from laxity.schemas.serde import Undecodable
from laxity.schemas.topics import TIERS
from laxity.streams.effects import Record
from laxity.streams.lifecycle import TERMINAL, TRANSITIONS
from laxity.streams.simulator.host import Disk, ShardHost
from laxity.streams.state import index, keys

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
        host = ShardHost(d.world, number, empty, d.ledger)
        host._restore()
        for name in ("state", "keys"):
            lived, restored = getattr(disk, name), getattr(empty, name)
            rows = [
                {key: v for key, v in s.scan(b"", b"\xff" * 48) if not _is_parking(key)}
                for s in (lived, restored)
            ]
            assert rows[0] == rows[1], f"I16: shard {number} {name}"


def _is_parking(key: bytes) -> bool:
    """Rows that only say who waits where: a restored shard starts without them."""
    return key[:1] in {keys.LANE, keys.POSITION, keys.PARKED} or (
        key[:1] == keys.TIMER and key[9:10] == index.KEYED
    )
