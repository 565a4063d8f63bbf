"""What the provider remembers of calls, rebuilt from its ledger: answers by key, attempts by call.

It keeps every key for as long as the ledger file lives: a demonstration's worth, not a month's.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from laxity.infra.demo.provider.line import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from laxity.infra.demo.provider.line import Line


class Memory:
    """Effects by idempotency key, and how often each call was tried."""

    def __init__(self, lines: Iterable[Line] = ()) -> None:
        self._effects: dict[str, Line] = {}
        self._attempts: Counter[str] = Counter()
        for line in lines:
            if line.kind in {Kind.EFFECT, Kind.INJECTED}:
                self.begin(line.identity)
            self.learn(line)

    def effect(self, key: str) -> Line | None:
        """The first effect applied under this key."""
        return self._effects.get(key)

    def learn(self, line: Line) -> None:
        """Remember a line that is in the ledger."""
        if line.kind is Kind.EFFECT and line.key:
            self._effects.setdefault(line.key, line)

    def next_attempt(self, identity: str) -> int:
        """The number of the next try of a call, from 1; a call refused for want of room was no try."""
        return self._attempts[identity] + 1

    def begin(self, identity: str) -> None:
        """The next try has begun."""
        self._attempts[identity] += 1
