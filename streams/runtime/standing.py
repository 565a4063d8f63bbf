"""Whether the group still knows our member, by what it answers to commits.

A consumer can drop out of its group without noticing: it polls, reads and believes that its partitions are its own, sends no heartbeat any
more and asks for no new membership (seen after a coordinator that stood still in the middle of a join). Its callbacks never come, so
nobody takes its shards from it; it commits nothing and keeps whoever has them now from it. Only a new client helps: the process ends.
"""

from __future__ import annotations

from laxity.schemas.timing import Clock, Millis
from laxity.streams.runtime.transactions import AbortedError, DisownedError

DISOWNED_MS_MAX = (
    30_000  # a member that is out hears of it within a session timeout of 6 s, and is in again soon after
)


class MemberLostError(RuntimeError):
    """The group has refused every commit for too long."""


class Standing:
    """Of one shard, over all its ownerships."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since_ms: Millis | None = None

    def accepted(self) -> None:
        """Offsets were committed."""
        self._since_ms = None

    def aborted(self, error: AbortedError) -> None:
        """A batch was not. Raises MemberLostError if the group was the reason for DISOWNED_MS_MAX."""
        if not isinstance(error, DisownedError):
            return
        now_ms = self._clock.monotonic_ms()
        if self._since_ms is None:
            self._since_ms = now_ms
        elif now_ms - self._since_ms >= DISOWNED_MS_MAX:
            raise MemberLostError(
                f"the group has not known our member for {now_ms - self._since_ms} ms: {error}"
            ) from error
