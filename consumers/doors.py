"""The seams to Kafka: what the runner needs of a consumer, so that tests need no broker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from laxity.schemas.records import Header, Original


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A Kafka record of a fleet's topic as it was read."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()

    def original(self, topic: str) -> Original:
        """As it travels in an outcome."""
        return Original(
            topic=topic,
            partition=self.partition,
            offset=self.offset,
            timestamp_ms=self.timestamp_ms,
            key=self.key,
            value=self.value,
            headers=tuple(Header(name=name, value=value) for name, value in self.headers),
        )


class Assignments(Protocol):
    """Hears of rebalances, inside the consumer's `poll`."""

    def assigned(self, partitions: Sequence[int]) -> None:
        """These came; they are paused until `resume`."""
        ...

    def revoked(self, partitions: Sequence[int]) -> Mapping[int, int]:
        """These go: the positions to commit before they do."""
        ...

    def lost(self, partitions: Sequence[int]) -> None:
        """These are gone already."""
        ...


class DispatchConsumer(Protocol):
    """One member of a fleet's group, used by one thread. Errors of the broker that pass are not raised; fatal ones are ConsumerFailed.

    Nothing but `close` blocks longer than it is told to.
    """

    def start(self, assignments: Assignments) -> None:
        """Join the group."""
        ...

    def poll(self, records_max: int, wait_ms: int) -> Sequence[Received]:
        """At most `records_max` records after at most `wait_ms`; `records_max` 0 only serves rebalances."""
        ...

    def log_end(self, partition: int, wait_ms: int) -> int | None:
        """One after the last committed record of its log; None if the broker did not answer within `wait_ms`."""
        ...

    def pause(self, partitions: Sequence[int]) -> None:
        """Deliver no more of these."""
        ...

    def resume(self, partitions: Sequence[int]) -> None:
        """Deliver these again."""
        ...

    def commit(self, positions: Mapping[int, int]) -> None:
        """Without waiting; a refusal is logged and the next commit says the same or more."""
        ...

    def close(self, positions: Mapping[int, int]) -> None:
        """Commit `positions` and leave the group. May take as long as the broker does."""
        ...


class ConsumerFailed(Exception):  # noqa: N818 - it says what happened
    """The consumer cannot go on; the process must start over."""
