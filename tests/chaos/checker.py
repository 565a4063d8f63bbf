"""What must hold of a history, whoever died. Pure: from records alone, after heal and drain.

Each check is named after its invariant and gives one line per violation; none means that it held. `check` runs them all.
What a client was not told (`info`) is legal both ways: only what Kafka holds, or was acknowledged, is judged.

Shown elsewhere, because they are asked of the running stack: reservations back to 0 (I8), the offset reset (I15), restores (I16) and
the replay of journals (aftermath.py).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from chaos.history import ERROR, Booked, History, Op, Ordered, Place, Raw, Sent, Told, origin_of

from laxity.infra.demo.provider.line import Kind
from laxity.schemas.config import Config, Rate
from laxity.schemas.identity import payload_digest
from laxity.schemas.topics import TIERS
from laxity.streams.lifecycle import TERMINAL, TRANSITIONS, State
from laxity.streams.reasons import Reason

Violations = Iterator[str]
SHOWN_MAX = 5  # of each check, in a report
STEPS = {(str(before), str(after)) for (before, _), after in TRANSITIONS.items()}
REDRIVE = (str(State.DEAD), str(State.READY))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the run was about: its configuration, and whether the provider knows a repeated call."""

    config: Config
    deduplicates: bool = True


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A history by task. Made once, asked by every check."""

    history: History
    rules: Rules

    @cached_property
    def groups(self) -> Mapping[str, Sequence[Sent]]:
        """Readable triggers by task id."""
        return _by((sent.task_id, sent) for sent in self.history.sent if sent.trigger is not None)

    @cached_property
    def paths(self) -> Mapping[str, Sequence[Told]]:
        """Events of transitions by task, in their order."""
        told = (t for t in self.history.told if t.event.kind == "transitions")
        return _by((t.event.task_id, t) for t in told)

    @cached_property
    def ends(self) -> Mapping[str, Told]:
        """The event of each task's end; of several the last."""
        found = {}
        for task_id, told in self.paths.items():
            for each in told:
                if any(step.after in TERMINAL for step in each.event.transitions):
                    found[task_id] = each
        return found

    @cached_property
    def accepted(self) -> Mapping[str, Sent]:
        """The trigger that each task was made of: a copy that is no conflict and has the append time that the events name."""
        found = {}
        for task_id, path in self.paths.items():
            fitting = [c for c in self.groups.get(task_id, ()) if not self._in_conflict(c)]
            born = [c for c in fitting if c.raw.appended_ms == path[0].event.accepted_ms]
            if fitting:
                found[task_id] = (born or fitting)[0]
        return found

    def _in_conflict(self, sent: Sent) -> bool:
        found = self.letters.get(sent.raw.place, ())
        return any(_header(letter, "reason") == Reason.IDEMPOTENCY_CONFLICT for letter in found)

    @cached_property
    def lapsed(self) -> frozenset[tuple[str, int, int]]:
        """(task, generation, dispatch number) of attempts that lost their lease, or were told too late: nothing was held for them any more."""
        found = set()
        for t in self.history.told:
            event = t.event
            if event.kind == "late_completion" or any(s.after == State.UNKNOWN for s in event.transitions):
                found.add((event.task_id, event.generation, event.dispatch_no))
        return frozenset(found)

    @cached_property
    def orders(self) -> Mapping[str, Sequence[Ordered]]:
        """Dispatches by task."""
        return _by((o.dispatch.task_id, o) for o in self.history.ordered)

    @cached_property
    def letters(self) -> Mapping[Place, Sequence[Raw]]:
        """Dead letters by the place that their bytes came from."""
        return _by((origin_of(letter, self.history.prefix), letter) for letter in self.history.letters)

    @cached_property
    def last_words(self) -> Mapping[int, Op]:
        """The last step of each operation."""
        return {op.number: op for op in self.history.ops}


def _by(pairs: Iterable[tuple[object, object]]) -> Mapping:  # type: ignore[type-arg]
    found = defaultdict(list)
    for key, value in pairs:
        found[key].append(value)
    return found


# accepted, and what becomes of it


def acknowledged_is_there(facts: Facts) -> Violations:
    """Kafka has what it acknowledged, byte for byte, at the place that it named."""
    by_place = {str(sent.raw.place): sent.raw for sent in facts.history.sent}
    for op in facts.last_words.values():
        if op.step == "ok" and op.what in {"trigger", "poison"}:
            raw = by_place.get(op.place)
            if raw is None:
                yield f"{op.what} {op.number} was acknowledged at {op.place} and is not there"
            elif hashlib.sha256(raw.value or b"").hexdigest() != op.digest:
                yield f"{op.what} {op.number}: other bytes stand at {op.place}"


def i1_one_end_each(facts: Facts) -> Violations:
    """Every accepted trigger reaches exactly one terminal state; one that no task was made of is told of as rejected."""
    rejected = {t.event.task_id for t in facts.history.told if t.event.kind in {"rejected", "conflict"}}
    for task_id, copies in facts.groups.items():
        ends = _ends(facts.paths.get(task_id, ()))
        if task_id not in facts.paths and task_id in rejected:
            continue
        if len(ends) != 1:
            where = ", ".join(str(copy.raw.place) for copy in copies)
            last = facts.paths[task_id][-1].event.state if task_id in facts.paths else "never seen"
            yield f"task {task_id} ({where}) ended {len(ends)} times {ends}; last: {last}"
    for task_id in facts.paths.keys() - facts.groups.keys():
        yield f"task {task_id} has events and no trigger"


def _ends(path: Sequence[Told]) -> list[str]:
    return [s.after for told in path for s in told.event.transitions if s.after in TERMINAL]


def i2_one_task_per_key(facts: Facts) -> Violations:
    """Copies count as duplicates, once each; a copy with another payload is a conflict with a letter, and never replaces the task."""
    told = Counter(t.event.detail for t in facts.history.told if t.event.kind == "duplicate")
    for task_id, copies in facts.groups.items():
        if task_id not in facts.accepted:
            continue
        mine = facts.accepted[task_id]
        same = [c for c in copies if _digest(c) == _digest(mine)]
        duplicates = sum(told[f"{facts.history.prefix}{c.raw.place}"] for c in same)
        if duplicates != len(same) - 1:
            yield f"task {task_id}: {len(same)} equal copies, {duplicates} told as duplicates"
        for other in copies:
            if _digest(other) != _digest(mine):
                found = [_header(x, "reason") for x in facts.letters.get(other.raw.place, ())]
                if found != [Reason.IDEMPOTENCY_CONFLICT]:
                    yield f"task {task_id}: the copy at {other.raw.place} differs, its letters are {found}"


def _digest(sent: Sent) -> bytes:
    assert sent.trigger is not None
    return payload_digest(sent.trigger.type, sent.trigger.payload)


def ends_have_their_cause(facts: Facts) -> Violations:
    """Only firm tasks expire, only ordered ones are cancelled, an unknown outcome kills only where the task says park."""
    ordered = {op.task_id for op in facts.history.ops if op.what == "cancel"}
    for task_id, told in facts.ends.items():
        event = told.event
        reason = event.transitions[-1].reason
        trigger = facts.accepted[task_id].trigger if task_id in facts.accepted else None
        if event.state == State.EXPIRED and not event.firm:
            yield f"task {task_id} expired and is not firm"
        if event.state == State.CANCELLED and facts.history.ops and task_id not in ordered:
            yield f"task {task_id} was cancelled by nobody"
        if (
            reason == Reason.OUTCOME_UNKNOWN
            and trigger
            and _on_unknown(facts, trigger.type, trigger.on_unknown) != "park"
        ):
            yield f"task {task_id} died of an unknown outcome and does not say park"


def _on_unknown(facts: Facts, type_: str, said: str) -> str:
    return said or facts.rules.config.type_of(type_).on_unknown


# effects at the provider


def i3_at_most_one_effect(facts: Facts) -> Violations:
    """One effect per key and per task; a task that succeeded has one; no effect for what was never dispatched."""
    effects = [line for line in facts.history.calls if line.kind == Kind.EFFECT]
    for key, count in Counter(line.key for line in effects).items():
        if count > 1:
            yield f"key {key} has {count} effects"
    by_task = Counter(line.task for line in effects)
    for task_id, count in by_task.items():
        if count > 1:
            yield f"task {task_id} has {count} effects"
        if task_id not in facts.orders:
            yield f"task {task_id} has an effect and no dispatch"
    for task_id, told in facts.ends.items():
        if told.event.state == State.SUCCEEDED and by_task[task_id] != 1:
            yield f"task {task_id} succeeded with {by_task[task_id]} effects"


# capacity


def i7_never_above_capacity(facts: Facts) -> Violations:
    """Calls at the provider, and attempts from their durable start to their report: at no instant more than a resource holds."""
    yield from _over(facts, "calls", _call_spans(facts))
    yield from _over(facts, "attempts", _attempt_spans(facts))
    rates = {name for name, resource in facts.rules.config.resources.items() if isinstance(resource, Rate)}
    refused = [
        x for x in facts.history.calls if x.kind == Kind.REFUSED and x.status == 429 and x.model in rates
    ]
    for line in refused:
        yield f"the provider had no room for task {line.task}: {line.reason}"


Span = tuple[int, int, str]
"""From, to (UTC ms), task."""


def _call_spans(facts: Facts) -> list[Span]:
    return [(x.arrived_ms, x.ts_ms, x.task) for x in facts.history.calls if x.kind == Kind.EFFECT]


def _attempt_spans(facts: Facts) -> list[Span]:
    """Of attempts that began and ended by their runner's own word while they held their lease; one clock for both."""
    began: dict[tuple[str, int, int], int] = {}
    spans = []
    for reported in facts.history.reported:
        o = reported.outcome
        name = (o.task_id, o.generation, o.dispatch_no)
        if o.kind == "started":
            began.setdefault(name, o.at_ms)
        elif o.kind in {"succeeded", "failed", "yielded"} and name in began and name not in facts.lapsed:
            spans.append((began.pop(name), o.at_ms, o.task_id))
    return spans


def _over(facts: Facts, what: str, spans: Sequence[Span]) -> Violations:
    steps: dict[tuple[str, int], list[tuple[int, int, int, str]]] = defaultdict(list)
    for start, end, task_id in spans:
        for demand, amount in _demands(facts, task_id).items():
            resource = facts.rules.config.resource_of(demand)
            if resource is not None and not isinstance(resource, Rate):
                steps[demand, resource.capacity] += [(start, 1, amount, task_id), (end, 0, -amount, task_id)]
    for (demand, capacity), moments in steps.items():
        used = 0
        for at_ms, _, amount, task_id in sorted(
            moments
        ):  # what ends in a millisecond ends before what begins in it
            used += amount
            if used > capacity:
                yield f"{what} hold {used} of {demand} ({capacity}) at {at_ms}, with task {task_id}"
                break


def _demands(facts: Facts, task_id: str) -> Mapping[str, int]:
    sent = facts.accepted.get(task_id)
    if sent is None or sent.trigger is None:
        return {}
    return {**facts.rules.config.type_of(sent.trigger.type).demands, **sent.trigger.demands}


# attempts, fences, the lifecycle


def i9_only_the_newest_dispatch_ends_a_task(facts: Facts) -> Violations:
    """An end by a runner's word is by the word about the task's newest dispatch; dispatch numbers are used once and grow."""
    said = {
        (r.outcome.task_id, r.outcome.generation, r.outcome.dispatch_no, r.outcome.kind)
        for r in facts.history.reported
    }
    for task_id, orders in facts.orders.items():
        numbers = [(o.dispatch.generation, o.dispatch.dispatch_no) for o in orders]
        if len(set(numbers)) != len(numbers):
            yield f"task {task_id} has a dispatch number twice: {sorted(numbers)}"
    for task_id, told in facts.ends.items():
        event = told.event
        if event.state == State.SUCCEEDED:
            newest = max((o.dispatch.dispatch_no for o in facts.orders.get(task_id, ())), default=-1)
            if event.dispatch_no != newest:
                yield f"task {task_id} succeeded by dispatch {event.dispatch_no}, the newest is {newest}"
            if (task_id, event.generation, event.dispatch_no, "succeeded") not in said:
                yield f"task {task_id} succeeded and no runner said so"


def i13_attempts(facts: Facts) -> Violations:
    """Never more attempts than allowed, by the shard's count and by the starts that were reported; none after what cannot be retried."""
    starts = Counter(
        task_id
        for task_id, _, _ in {
            (r.outcome.task_id, r.outcome.generation, r.outcome.dispatch_no)
            for r in facts.history.reported
            if r.outcome.kind == "started"
        }
    )
    for task_id, sent in facts.accepted.items():
        assert sent.trigger is not None
        most = sent.trigger.max_attempts or facts.rules.config.type_of(sent.trigger.type).max_attempts
        counted = facts.ends[task_id].event.attempt if task_id in facts.ends else 0
        if counted > most or starts[task_id] > most:
            yield f"task {task_id}: {counted} attempts counted, {starts[task_id]} started, {most} allowed"


def i14_letters(facts: Facts) -> Violations:
    """One letter per dead task, refused or unreadable record, none for anything else; the bytes, key and headers as they were sent."""
    by_place = {sent.raw.place: sent for sent in facts.history.sent}
    wanted = Counter[Place]()
    for task_id, told in facts.ends.items():
        if told.event.state == State.DEAD and task_id in facts.accepted:
            wanted[_letter_place(facts, task_id)] += 1
    for sent in facts.history.sent:
        if (
            sent.trigger is None
            or (sent.task_id not in facts.accepted)
            or _digest(sent) != _digest(facts.accepted[sent.task_id])
        ):
            wanted[sent.raw.place] += 1
    for place in wanted.keys() | facts.letters.keys():
        found = facts.letters.get(place, ())
        if len(found) != wanted[place]:
            yield f"{place} has {len(found)} letters, wanted {wanted[place]}"
        for letter in found:
            yield from _unlike(letter, by_place.get(place), facts.history.prefix)


def _letter_place(facts: Facts, task_id: str) -> Place:
    """Copies are alike, so any of them may be the one that was taken: the letter says which."""
    mine = facts.accepted[task_id]
    same = [c.raw.place for c in facts.groups[task_id] if _digest(c) == _digest(mine)]
    return next((place for place in same if place in facts.letters), mine.raw.place)


def _unlike(letter: Raw, sent: Sent | None, prefix: str) -> Violations:
    where = origin_of(letter, prefix)
    if sent is None:
        yield f"the letter {letter.place} is of {where}, where nothing stands"
        return
    theirs = tuple((name, value) for name, value in letter.headers if not name.startswith(ERROR))
    if (letter.key, letter.value, theirs) != (sent.raw.key, sent.raw.value, sent.raw.headers):
        yield f"the letter {letter.place} differs from what was sent at {where}"
    if _header(letter, "timestamp") != str(sent.raw.appended_ms):
        yield f"the letter {letter.place} has another time than {where}"
    notes = json.loads(_header(letter, "history"))
    numbers = [note["attempt"] for note in notes]
    if numbers != sorted(numbers) or any(not note["code"] for note in notes):
        yield f"the letter {letter.place} has the history {notes}"


def _header(letter: Raw, name: str) -> str:
    return next((value or b"" for key, value in letter.headers if key == ERROR + name), b"").decode()


def i18_one_writer(facts: Facts) -> Violations:
    """Batches of a shard are numbered without gap or repeat, owner epochs never fall, every input record was read exactly once."""
    shards: Mapping[int, Sequence[Booked]] = _by((b.place.partition, b) for b in facts.history.booked)
    for shard, booked in shards.items():
        entries = [b.entry for b in booked]
        if [entry.batch for entry in entries] != list(range(1, len(entries) + 1)):
            yield f"shard {shard}: batches are not numbered 1 to {len(entries)}"
        epochs = [entry.owner_epoch for entry in entries]
        if epochs != sorted(epochs):
            yield f"shard {shard}: owner epochs fall"
        reached: Counter[str] = Counter()
        for entry in entries:
            for moved in entry.inputs:
                if moved.first != reached[moved.topic]:
                    yield f"shard {shard}, batch {entry.batch}: {moved.topic} from {moved.first}, had read to {reached[moved.topic]}"
                reached[moved.topic] = moved.next


def i22_expired_is_never_dispatched(facts: Facts) -> Violations:
    """A firm task is not dispatched once it can no longer finish; lateness is told once, with the end."""
    for task_id, orders in facts.orders.items():
        for ordered in orders:
            told = _granted(facts, task_id, ordered.dispatch.dispatch_no)
            if ordered.dispatch.firm and told is not None and told > ordered.dispatch.latest_start_ms:
                yield f"task {task_id}: dispatch {ordered.dispatch.dispatch_no} at {told}, latest start {ordered.dispatch.latest_start_ms}"
    for task_id, end in facts.ends.items():
        late = [t for t in facts.paths[task_id] if t.event.missed_by_ms and t is not end]
        if late:
            yield f"task {task_id}: lateness is told {len(late)} times before its end"


def _granted(facts: Facts, task_id: str, number: int) -> int | None:
    """When the shard decided to dispatch, by its own time."""
    for told in facts.paths.get(task_id, ()):
        if told.event.dispatch_no == number:
            for step in told.event.transitions:
                if step.after == State.DISPATCHED:
                    return step.at_ms
    return None


def i25_paths(facts: Facts) -> Violations:
    """The events of a task form a path of the automaton, from its acceptance to its end; nothing follows an end."""
    for task_id, path in facts.paths.items():
        before, batch = str(State.NEW), 0
        for told in path:
            if told.event.batch <= batch:
                yield f"task {task_id}: batch {told.event.batch} after batch {batch}"
            batch = told.event.batch
            for step in told.event.transitions:
                if step.before != before or ((step.before, step.after) not in STEPS | {REDRIVE}):
                    yield f"task {task_id}: {step.before} -> {step.after} ({step.reason}) after {before or 'nothing'}"
                before = step.after
        if path[-1].event.state != before:
            yield f"task {task_id}: the last event says {path[-1].event.state}, its steps {before}"


def readable(facts: Facts) -> Violations:
    """Every record that we wrote can be read, and says in which tier it belongs."""
    yield from facts.history.unreadable
    for told in facts.history.told:
        if told.event.tier not in TIERS:
            yield f"{told.place}: tier {told.event.tier!r}"


CHECKS: Sequence[Callable[[Facts], Violations]] = (
    acknowledged_is_there,
    i1_one_end_each,
    i2_one_task_per_key,
    i3_at_most_one_effect,
    i7_never_above_capacity,
    i9_only_the_newest_dispatch_ends_a_task,
    i13_attempts,
    i14_letters,
    i18_one_writer,
    i22_expired_is_never_dispatched,
    i25_paths,
    ends_have_their_cause,
    readable,
)


def check(history: History, rules: Rules) -> dict[str, list[str]]:
    """Violations by check, every check named; an empty list means that it held."""
    facts = Facts(history=history, rules=rules)
    return {each.__name__: list(each(facts)) for each in CHECKS}


def figures(history: History, rules: Rules) -> dict[str, int]:
    """How much was checked: an empty history holds everything."""
    facts = Facts(history=history, rules=rules)
    ends = Counter(told.event.state for told in facts.ends.values())
    kinds = Counter(told.event.kind for told in history.told)
    effects = sum(line.kind == Kind.EFFECT for line in history.calls)
    unknown = sum(s.after == State.UNKNOWN for t in history.told for s in t.event.transitions)
    return {
        "triggers": len(history.sent),
        "tasks": len(facts.paths),
        **{str(state).lower(): ends[state] for state in TERMINAL},
        "duplicates": kinds["duplicate"],
        "conflicts": kinds["conflict"],
        "rejected": kinds["rejected"],
        "late_completions": kinds["late_completion"],
        "unknown": unknown,
        "parked_unknown": sum(
            told.event.transitions[-1].reason == Reason.OUTCOME_UNKNOWN for told in facts.ends.values()
        ),
        "dispatches": len(history.ordered),
        "letters": len(history.letters),
        "effects": effects,
        "replays": sum(line.kind == Kind.REPLAY for line in history.calls),
        "batches": len(history.booked),
        "takeovers": sum(
            len({b.entry.owner_epoch for b in booked})
            for booked in _by((b.place.partition, b) for b in history.booked).values()
        ),
        "unacknowledged": sum(op.step == "info" for op in facts.last_words.values()),
    }
