"""One batch in the making: what the stages read, and what they want written.

The stages call `move`, `end`, `settle`, `write`; nothing here touches the world.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from laxity.schemas.config import Config
from laxity.schemas.identity import reservation_id
from laxity.schemas.limits import QUANTITY_MAX
from laxity.schemas.records import KeyRow, SettleRow, TaskEvent, TaskRow, Transition, Usage, UsageEntry
from laxity.schemas.serde import Codec, encode_row
from laxity.schemas.topics import TIERS
from laxity.streams import letters
from laxity.streams.effects import Output
from laxity.streams.lifecycle import Cause, State, next_state
from laxity.streams.state.tables import Tables

USAGE_ENTRIES_MAX = 2_000  # of one record: with the longest names it stays below what the topic takes
_WAITING = frozenset({State.WAITING, State.DELAYED, State.READY})


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where this shard stands: constant for its life."""

    shard: int
    shards: int
    prefix: str
    config: Config
    codec: Codec


@dataclass(slots=True, kw_only=True)
class _Told:
    """What is told of one task in this commit."""

    row: TaskRow
    extra: dict[str, object]
    transitions: list[Transition]


@dataclass(slots=True, kw_only=True)
class Batch:
    """Collects the effects of one batch, in order."""

    place: Place
    tables: Tables
    number: int
    now_ms: int
    seq: int  # last order of acceptance given
    waiting: list[int]
    marks: Mapping[str, int]  # applied marks before this batch
    outputs: list[Output] = field(default_factory=list)
    revokes: dict[str, str] = field(
        default_factory=dict
    )  # reservation id -> task id: bounces to ask the ledger for
    cancels: dict[str, str] = field(default_factory=dict)
    _told: dict[str, _Told] = field(default_factory=dict)
    _sums: dict[tuple[str, str, str, str], int] = field(default_factory=dict)

    def next_seq(self) -> int:
        """The next order of acceptance."""
        self.seq += 1
        return self.seq

    def move(
        self, task_id: str, row: TaskRow, cause: Cause, reason: str, happened_ms: int = 0, **changes: object
    ) -> TaskRow:
        """Take a task one step along the lifecycle, change further fields, and remember it for the event.

        Raises IllegalTransitionError, leaving everything as it was. A terminal step is `end`'s business.
        """
        after = next_state(row.state, cause)
        told = self._told.get(task_id)
        moved = replace(row, state=after, reason=reason, **changes)  # type: ignore[arg-type]
        step = Transition(
            before=row.state,
            after=after,
            reason=reason,
            at_ms=self.now_ms,
            happened_ms=happened_ms or self.now_ms,
        )
        if told is None:
            self._told[task_id] = _Told(row=moved, extra={}, transitions=[step])
        else:
            told.row = moved
            told.transitions.append(step)
        self.waiting[row.tier] += (after in _WAITING) - (row.state in _WAITING)
        self.tables.put_task(task_id, moved)
        return moved

    def end(
        self,
        task_id: str,
        row: TaskRow,
        cause: Cause,
        reason: str,
        happened_ms: int = 0,
        *,
        known: bool = True,
        result: bytes | None = None,
        result_ref: str = "",
        message: str = "",
    ) -> None:
        """A terminal step: the task's rows go, its key is remembered, the event tells lateness and cost.

        `known`: the outcome of the last attempt is known, so that a redrive may use a new key at the provider.
        """
        row = self.move(task_id, row, cause, reason, happened_ms)
        ended_ms = happened_ms or self.now_ms
        self.tables.put_ended(
            task_id,
            KeyRow(
                digest=row.digest,
                state=row.state,
                reason=reason,
                generation=row.generation,
                effect_generation=row.effect_generation,
                unknown=not known,
                dispatch_no=row.dispatch_no,
                ended_ms=self.now_ms,
                result_ref=result_ref,
            ),
        )
        cost = min(self.place.config.prices.cost_micros(row.usage), QUANTITY_MAX)
        self._told[task_id].extra = {
            "missed_by_ms": max(0, ended_ms - row.deadline_ms),
            "usage": row.usage,
            "cost_micros": cost,
            "result": result,
            "message": message,
        }
        self._count(row, {**row.usage, "tasks": 1, "attempts": row.attempt})
        self.tables.put_task(task_id, None)
        if row.state == State.DEAD:
            self.write(letters.of_task(self.place, self.tables.original(task_id), row, reason, message))
        self.tables.put_original(task_id, None)

    def _count(self, row: TaskRow, amounts: Mapping[str, int]) -> None:
        for unit, quantity in amounts.items():
            if quantity:
                at = (row.tenant, row.type, TIERS[row.tier], unit)
                self._sums[at] = self._sums.get(at, 0) + quantity

    def settle(self, task_id: str, row: TaskRow, used: Mapping[str, int], *, unclaimed: bool = False) -> None:
        """Owe the ledger the end of the task's reservation."""
        reservation = reservation_id(task_id, row.generation, row.dispatch_no)
        self.tables.put_settle(reservation, SettleRow(used=used, unclaimed=unclaimed))

    def write(self, output: Output) -> None:
        """A record for another topic."""
        self.outputs.append(output)

    def tell(self, kind: str, task_id: str, tier: int, **fields: object) -> None:
        """An event that is no transition: a duplicate, a refusal, a late completion."""
        event = TaskEvent(
            kind=kind,
            task_id=task_id,
            tier=TIERS[tier],
            shard=self.place.shard,
            batch=self.number,
            at_ms=self.now_ms,
            **fields,  # type: ignore[arg-type]
        )
        self._publish(event, tier)

    def _publish(self, event: TaskEvent, tier: int) -> None:
        self.write(
            Output(
                topic=f"events.{TIERS[tier]}",
                partition=self.place.shard,
                key=event.task_id.encode(),
                value=encode_row(event),
                schema=TaskEvent,
            )
        )

    def close(self, usage_seq: int) -> int:
        """Write the events of all moved tasks and the sums of usage; returns the usage sequence after."""
        for task_id, told in self._told.items():
            self._publish(self._event(task_id, told), told.row.tier)
        found = self._entries()
        for first in range(0, len(found), USAGE_ENTRIES_MAX):
            usage_seq += 1
            entries = found[first : first + USAGE_ENTRIES_MAX]
            usage = Usage(shard=self.place.shard, sequence=usage_seq, at_ms=self.now_ms, entries=entries)
            self.write(
                Output(
                    topic="usage",
                    partition=self.place.shard,
                    key=str(self.place.shard).encode(),
                    value=encode_row(usage),
                    schema=Usage,
                )
            )
        return usage_seq

    def _entries(self) -> Sequence[UsageEntry]:
        prices = self.place.config.prices
        return tuple(
            UsageEntry(
                tenant=tenant,
                type=type_,
                tier=tier,
                unit=unit,
                quantity=n,
                cost_micros=min(prices.cost_micros({unit: n}), QUANTITY_MAX),
            )
            for (tenant, type_, tier, unit), n in sorted(self._sums.items())
        )

    def _event(self, task_id: str, told: _Told) -> TaskEvent:
        row = told.row
        last = row.history[-1] if row.history else None
        fields: dict[str, object] = {
            "code": last.code if last else "",
            "message": last.message if last else "",
        }
        fields.update({name: value for name, value in told.extra.items() if value or name != "message"})
        return TaskEvent(
            kind="transitions",
            task_id=task_id,
            tenant=row.tenant,
            type=row.type,
            run_id=row.run_id,
            key=row.key,
            tier=TIERS[row.tier],
            shard=self.place.shard,
            batch=self.number,
            at_ms=self.now_ms,
            state=row.state,
            transitions=told.transitions,
            generation=row.generation,
            attempt=row.attempt,
            dispatch_no=row.dispatch_no,
            deadline_ms=row.deadline_ms,
            firm=row.firm,
            accepted_ms=row.accepted_ms,
            runner=row.runner,
            **fields,  # type: ignore[arg-type]
        )
