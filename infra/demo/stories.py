"""What became of each task: one story from its trigger, its events and the provider's lines about it. Pure.

Times of records are their append times in Kafka (UTC ms). Nothing here knows whether a figure is good.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from laxity.infra.demo.provider.line import Kind, Line
from laxity.schemas.records import TaskEvent, Transition

TERMINAL: Final = frozenset({"SUCCEEDED", "DEAD", "EXPIRED", "CANCELLED"})
IDLE: Final = frozenset({"WAITING", "DELAYED"})  # neither ready nor taken up: a new wait begins after it
NO_ROOM: Final = frozenset({"requests", "tokens"})  # reasons of calls that the provider had no room for
TOO_MANY_REQUESTS: Final = 429


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One task of the run. `appended_ms` None: acknowledged, yet its trigger is not in the topic."""

    task_id: str
    tier: str
    tenant: str
    appended_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """An event and when its record was appended."""

    event: TaskEvent
    appended_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """One task. `end` is its terminal state, empty if it has none in time; a wait is from ready to started, one per start."""

    sent: Sent
    end: str = ""
    ends: int = 0
    reason: str = ""
    missed_by_ms: int = 0
    attempts: int = 0
    dispatch_ms: int | None = None
    waits_ms: Sequence[int] = ()
    usage: Mapping[str, int] = field(default_factory=dict)
    cost_micros: int = 0
    calls: Mapping[str, int] = field(default_factory=dict)  # by kind of the provider's line
    refused_for_room: int = 0
    responses_429: int = 0
    has_letter: bool = False  # it lies in the DLQ


def tell(
    sent: Iterable[Sent],
    events: Iterable[Seen],
    lines: Iterable[Line],
    *,
    letters: Collection[str] = (),
    horizon_ms: int,
) -> list[Story]:
    """`letters`: ids of tasks with a dead letter. One story per task, in the order of `sent`. Events and lines of other tasks are left out; an end after `horizon_ms` is none."""
    by_task: dict[str, list[Seen]] = defaultdict(list)
    for seen in events:
        by_task[seen.event.task_id].append(seen)
    calls: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        calls[line.task].append(line)
    told = [_story(s, by_task.get(s.task_id, []), calls.get(s.task_id, []), horizon_ms) for s in sent]
    return [replace(story, has_letter=story.sent.task_id in letters) for story in told]


def _story(sent: Sent, events: Sequence[Seen], lines: Sequence[Line], horizon_ms: int) -> Story:
    ordered = sorted(events, key=lambda seen: (seen.event.batch, seen.appended_ms))
    steps = [step for seen in ordered for step in seen.event.transitions]
    ends = [seen for seen in ordered if seen.appended_ms <= horizon_ms for _ in range(_ends_in(seen.event))]
    last = ends[-1].event if ends else None
    return Story(
        sent=sent,
        end=last.state if last else "",
        ends=len(ends),
        reason=_reason(last) if last else "",
        missed_by_ms=last.missed_by_ms if last else 0,
        attempts=sum(step.after == "RUNNING" for step in steps),
        dispatch_ms=_dispatch_ms(sent, ordered),
        waits_ms=_waits_ms(steps),
        usage=dict(last.usage) if last else {},
        cost_micros=last.cost_micros if last else 0,
        calls={kind.value: sum(line.kind is kind for line in lines) for kind in Kind},
        refused_for_room=sum(line.kind is Kind.REFUSED and line.reason in NO_ROOM for line in lines),
        responses_429=sum(line.status == TOO_MANY_REQUESTS for line in lines),
    )


def _ends_in(event: TaskEvent) -> int:
    """How often the task ended in this event; a trigger that was refused ended as it came."""
    if event.kind == "rejected":
        return 1
    return sum(step.after in TERMINAL for step in event.transitions)


def _reason(event: TaskEvent) -> str:
    return event.transitions[-1].reason if event.transitions else event.code


def _dispatch_ms(sent: Sent, events: Sequence[Seen]) -> int | None:
    """From the trigger's append to that of the first event that tells of a dispatch: both are the broker's clock."""
    for seen in events:
        if any(step.after == "DISPATCHED" for step in seen.event.transitions):
            return None if sent.appended_ms is None else seen.appended_ms - sent.appended_ms
    return None


def _waits_ms(steps: Sequence[Transition]) -> list[int]:
    """From each time the task got ready to the start that followed. A dispatch that came back unstarted belongs to the same wait."""
    waits: list[int] = []
    ready_ms: int | None = None
    for step in steps:
        if step.after == "READY" and ready_ms is None:
            ready_ms = step.happened_ms
        elif step.after == "RUNNING" and ready_ms is not None:
            waits.append(step.happened_ms - ready_ms)
            ready_ms = None
        elif step.after in IDLE:
            ready_ms = None
    return waits
