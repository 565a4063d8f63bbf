"""The arithmetic of a rate bucket, in integers: `lua/counts.lua` has the same, line for line.

Levels count units, `BUCKET_UNITS` to one LLM token or request, so a refill of `rate * ms` is exact. A level may be negative:
a demand over the burst is admitted on a full bucket and paid off by waiting.
"""

from __future__ import annotations

from dataclasses import dataclass

from laxity.streams.ledger.limits import BUCKET_UNITS, DEBT_MINUTES_MAX, RateLimit
from laxity.streams.reasons import Reason


@dataclass(slots=True, kw_only=True)
class Bucket:
    """Levels as of `refilled_ms`, under the limit that was last applied. Born empty at the start of the ledger's epoch."""

    limit: RateLimit
    refilled_ms: int
    requests: int = 0
    tokens: int = 0
    calls_first_ms: int = 0  # until then new dispatches stand back for a running task

    def refill(self, now_ms: int) -> None:
        """Bring the levels to `now_ms`. A clock that stepped back refills nothing and is followed."""
        passed_ms, limit = max(0, now_ms - self.refilled_ms), self.limit
        self.requests = _refilled(self.requests, limit.requests_per_minute, limit.burst_requests, passed_ms)
        self.tokens = _refilled(self.tokens, limit.tokens_per_minute, limit.burst_tokens, passed_ms)
        self.refilled_ms = now_ms

    def adopt(self, limit: RateLimit, now_ms: int) -> None:
        """Refill under the old limit, then go on under `limit`."""
        self.refill(now_ms)
        if limit != self.limit:
            self.limit = limit
            self.refill(now_ms)

    def shortage(self, tokens: int) -> tuple[Reason, int] | None:
        """Why one request of `tokens` must wait, and how long in ms; None: it may go. Call after `adopt`."""
        limit = self.limit
        wait_ms = _wait_ms(self.requests, 1, limit.requests_per_minute, limit.burst_requests)
        if wait_ms:
            return Reason.RATE_REQUESTS, wait_ms
        wait_ms = _wait_ms(self.tokens, tokens, limit.tokens_per_minute, limit.burst_tokens)
        return (Reason.RATE_TOKENS, wait_ms) if wait_ms else None

    def debit(self, *, requests: int, tokens: int) -> None:
        """Take, into debt if need be."""
        limit = self.limit
        self.requests = _debited(self.requests, requests, limit.requests_per_minute)
        self.tokens = _debited(self.tokens, tokens, limit.tokens_per_minute)

    def credit(self, *, requests: int, tokens: int) -> None:
        """Give back, at most to the burst."""
        limit = self.limit
        self.requests = _credited(self.requests, requests, limit.requests_per_minute, limit.burst_requests)
        self.tokens = _credited(self.tokens, tokens, limit.tokens_per_minute, limit.burst_tokens)


def _refilled(level: int, rate: int, burst: int, passed_ms: int) -> int:
    full = burst * BUCKET_UNITS
    if rate == 0:
        return 0
    if level >= full or passed_ms >= _ceil_div(full - level, rate):
        return full
    return level + rate * passed_ms


def _wait_ms(level: int, amount: int, rate: int, burst: int) -> int:
    needed = min(amount, burst) * BUCKET_UNITS
    if rate == 0 or level >= needed:
        return 0
    return _ceil_div(needed - level, rate)


def _debited(level: int, amount: int, rate: int) -> int:
    """At most the debt limit is taken at once, so that no sum leaves 2^53."""
    if rate == 0:
        return 0
    debt_max = rate * DEBT_MINUTES_MAX
    return max(-debt_max * BUCKET_UNITS, level - min(amount, debt_max) * BUCKET_UNITS)


def _credited(level: int, amount: int, rate: int, burst: int) -> int:
    if rate == 0:
        return 0
    return min(burst * BUCKET_UNITS, level + min(amount, rate) * BUCKET_UNITS)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)
