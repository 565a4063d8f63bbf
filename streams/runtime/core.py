"""The shard's state machine as the host sees it. `streams/scheduler.py` is the real one; the host's tests bring small ones of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from laxity.schemas.timing import Millis
from laxity.streams.effects import BatchInput, Effects
from laxity.streams.ledger.protocol import Answer, Exchange, Live
from laxity.streams.state.store import Store


class Core(Protocol):
    """Pure but for its two stores. The order of calls: (take_over | nominate, conclude), then applied or aborted."""

    @property
    def owner_epoch(self) -> int:
        """Raised by every takeover."""
        ...

    @property
    def seen_epoch(self) -> str:
        """The ledger's epoch that the state last saw."""
        ...

    def take_over(self, now_ms: Millis) -> Effects:
        """Owner epoch + 1."""
        ...

    def live(self) -> Sequence[Live]:
        """Reservations that the state knows."""
        ...

    def nominate(self, batch: BatchInput) -> Exchange:
        """What to ask of the ledger."""
        ...

    def conclude(self, answer: Answer | None, *, outcomes_end: int = -1) -> Effects:
        """What to commit. None: the ledger did not answer."""
        ...

    def applied(self) -> None:
        """The effects are committed and in the stores."""
        ...

    def aborted(self) -> None:
        """The effects are nowhere."""
        ...

    def next_wakeup(self) -> Millis | None:
        """Wall clock of the next timer; not after now: run a batch at once."""
        ...

    def waits_for(self, resource: str) -> bool:
        """Whether room at this resource is news to the shard."""
        ...

    def mark(self, topic: str) -> int:
        """Next offset expected of an input; 0: none applied."""
        ...

    def topic_id(self, topic: str) -> str:
        """Kafka's id of the topic that the mark belongs to; empty: none."""
        ...

    def backlog(self) -> Sequence[int]:
        """Waiting tasks per tier."""
        ...


MakeCore = Callable[[int, Store, Store], Core]
"""Shard, state store, key store: a core with its caches built."""
