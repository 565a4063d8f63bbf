"""Events of tasks folded into what a person asks: where each task is, and the story of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from laxity.infra.inspect.errors import InspectError
from laxity.infra.inspect.text import json_bytes
from laxity.schemas.records import TaskEvent, Transition
from laxity.schemas.timing import Millis
from laxity.streams.lifecycle import TERMINAL

TRANSITIONS: Final = "transitions"
_NAMED_MAX: Final = 5  # candidates in the error for a short id
_SPEAKING: Final = frozenset({TRANSITIONS, "rejected", "conflict"})  # kinds that say what became of a trigger


class Latest:
    """The newest word on each task. Events come in any order between partitions, in order within one."""

    def __init__(self) -> None:
        self._found: dict[str, TaskEvent] = {}
        self.repeats: Counter[str] = Counter()
        """Duplicates by task id."""

    def add(self, event: TaskEvent) -> None:
        """An event. A rejected repeat never hides what became of the task itself."""
        if event.kind == "duplicate":
            self.repeats[event.task_id] += 1
        if event.kind not in _SPEAKING or not event.task_id:
            return
        before = self._found.get(event.task_id)
        if before is None or _rank(event) >= _rank(before):
            self._found[event.task_id] = event

    def newest_first(self) -> list[TaskEvent]:
        """By the time of the last event."""
        return sorted(self._found.values(), key=lambda event: (-event.at_ms, event.task_id))


def _rank(event: TaskEvent) -> tuple[bool, int, int]:
    return event.kind == TRANSITIONS, event.at_ms, event.batch


def state_of(event: TaskEvent) -> str:
    """The lifecycle's state, REJECTED or CONFLICT for triggers that never became a task."""
    return str(event.state) if event.kind == TRANSITIONS else event.kind.upper()


def reason_of(event: TaskEvent) -> str:
    """Why it is there."""
    return event.transitions[-1].reason if event.transitions else event.code


def only_one(ids: Iterable[str], asked: str) -> str:
    """The one id that begins with `asked`. InspectError for none or several."""
    found = sorted(set(ids))
    if not found:
        raise InspectError(
            f"no event of a task {asked!r}", "events are kept for 30 days", "laxity tasks ls --since 30d"
        )
    if len(found) > 1:
        more = ", …" if len(found) > _NAMED_MAX else ""
        raise InspectError(f"{asked!r} fits {len(found)} tasks", ", ".join(found[:_NAMED_MAX]) + more)
    return found[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One transition. `for_ms`: how long it stayed in `after`, up to now for the last one; None at the end of a life."""

    before: str
    after: str
    reason: str
    at_ms: Millis
    happened_ms: Millis
    for_ms: Millis | None
    generation: int
    attempt: int
    runner: str
    batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """An event that is no transition: a duplicate, a refusal, a late completion."""

    kind: str
    at_ms: Millis
    code: str
    detail: str
    batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """All that the events tell of one task. `waits_ms`: by state, the sum over all stays."""

    task_id: str
    last: TaskEvent
    steps: Sequence[Step]
    remarks: Sequence[Remark]
    failure: tuple[str, str] = ("", "")  # code and message of the last one
    usage: Mapping[str, int] = field(default_factory=dict)
    cost_micros: int = 0

    @property
    def waits_ms(self) -> dict[str, Millis]:
        """Time spent per state."""
        sums: Counter[str] = Counter()
        for step in self.steps:
            sums[step.after] += step.for_ms or 0
        return {state: ms for state, ms in sums.items() if state not in TERMINAL}

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        last = self.last
        ended = last.state in TERMINAL and bool(self.steps)
        return {
            "task_id": self.task_id,
            "state": state_of(last),
            "reason": reason_of(last),
            **{
                name: getattr(last, name)
                for name in ("tenant", "type", "tier", "run_id", "key", "shard", "deadline_ms", "firm")
            },
            "accepted_ms": last.accepted_ms,
            "ended_ms": self.steps[-1].happened_ms if ended else None,
            "missed_by_ms": last.missed_by_ms,
            "generation": last.generation,
            "attempts": last.attempt,
            "dispatch_no": last.dispatch_no,
            "runner": last.runner or None,
            "last_failure": {"code": self.failure[0], "message": self.failure[1]}
            if any(self.failure)
            else None,
            "usage": dict(self.usage),
            "cost_micros": self.cost_micros,
            "result": json_bytes(last.result),
            "waits_ms": self.waits_ms,
            "timeline": [asdict(step) for step in self.steps],
            "remarks": [asdict(remark) for remark in self.remarks],
        }


def story(task_id: str, events: Iterable[TaskEvent], now_ms: Millis) -> Story:
    """Of events of this one task, in any order between partitions. InspectError if none of them speaks of it."""
    ordered = sorted(events, key=lambda event: (event.at_ms, event.shard, event.batch))
    speaking = [event for event in ordered if event.kind in _SPEAKING]
    if not speaking:
        raise InspectError(
            f"task {task_id} is known by hearsay only", ", ".join(sorted({e.kind for e in ordered}))
        )
    usage: Counter[str] = Counter()
    for event in ordered:
        usage.update(event.usage)
    failures = [(event.code, event.message) for event in speaking if event.code or event.message]
    return Story(
        task_id=task_id,
        last=max(speaking, key=_rank),
        steps=_steps(speaking, now_ms),
        remarks=[_remark(event) for event in ordered if event.kind != TRANSITIONS],
        failure=failures[-1] if failures else ("", ""),
        usage=dict(usage),
        cost_micros=sum(event.cost_micros for event in ordered),
    )


def _steps(events: Sequence[TaskEvent], now_ms: Millis) -> list[Step]:
    moves = [(event, move) for event in events for move in event.transitions]
    following = [move for _, move in moves[1:]]
    return [
        _step(event, move, after, now_ms)
        for (event, move), after in zip(moves, [*following, None], strict=True)
    ]


def _step(event: TaskEvent, move: Transition, following: Transition | None, now_ms: Millis) -> Step:
    until_ms = now_ms if following is None else following.happened_ms
    return Step(
        before=move.before,
        after=move.after,
        reason=move.reason,
        at_ms=move.at_ms,
        happened_ms=move.happened_ms,
        for_ms=None if move.after in TERMINAL else max(0, until_ms - move.happened_ms),
        generation=event.generation,
        attempt=event.attempt,
        runner=event.runner,
        batch=event.batch,
    )


def _remark(event: TaskEvent) -> Remark:
    return Remark(kind=event.kind, at_ms=event.at_ms, code=event.code, detail=event.detail, batch=event.batch)
