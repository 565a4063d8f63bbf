"""The provider's own limits: one bucket of a minute's worth per limit, refilled all the time. Whole numbers only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from laxity.infra.demo.provider.line import Line
    from laxity.infra.demo.provider.settings import ModelLimit, ProviderSettings

MINUTE_MS = 60_000


class MinuteBucket:
    """Holds at most one minute's limit and gains `limit` units a minute; begins full.

    The level is kept in units x ms, so that a refill of any number of ms is exact.
    """

    __slots__ = ("_at_ms", "_level", "limit")

    def __init__(self, *, limit: int, now_ms: int) -> None:
        self.limit = limit
        self._level = limit * MINUTE_MS
        self._at_ms = now_ms

    def remaining(self, now_ms: int) -> int:
        """Whole units that can be taken now."""
        self._refill(now_ms)
        return self._level // MINUTE_MS

    def wait_ms(self, now_ms: int, units: int) -> int:
        """Until so many units can be taken, if nobody else takes any; 0 is now."""
        self._refill(now_ms)
        return max(0, -((self._level - units * MINUTE_MS) // self.limit))

    def full_in_ms(self, now_ms: int) -> int:
        """Until the bucket is full, if nobody takes any."""
        return self.wait_ms(now_ms, self.limit)

    def take(self, now_ms: int, units: int) -> None:
        """Take what the caller has found to be there; an earlier life's takes may go down to nothing."""
        self._refill(now_ms)
        self._level = max(0, self._level - units * MINUTE_MS)

    def _refill(self, now_ms: int) -> None:
        gained = max(0, now_ms - self._at_ms) * self.limit
        self._level = min(self.limit * MINUTE_MS, self._level + gained)
        self._at_ms = max(self._at_ms, now_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """Why there is no room: which limit, how much was asked, and when there will be; -1 is never."""

    unit: str
    limit: int
    remaining: int
    asked: int
    wait_ms: int


class ModelBuckets:
    """Requests and tokens of one model; a call takes from both or from neither."""

    def __init__(self, model: ModelLimit, *, speed: float, now_ms: int) -> None:
        self.requests = MinuteBucket(limit=_at_speed(model.requests_per_minute, speed), now_ms=now_ms)
        self.tokens = MinuteBucket(limit=_at_speed(model.tokens_per_minute, speed), now_ms=now_ms)

    def admit(self, now_ms: int, *, tokens: int) -> Shortage | None:
        """Take one request and so many tokens, or say which limit is in the way longest."""
        waits = [
            _shortage("requests", self.requests, now_ms, 1),
            _shortage("tokens", self.tokens, now_ms, tokens),
        ]
        short = [shortage for shortage in waits if shortage.wait_ms != 0]
        if short:
            return max(short, key=lambda shortage: (shortage.wait_ms < 0, shortage.wait_ms))
        self.take(now_ms, tokens=tokens)
        return None

    def take(self, now_ms: int, *, tokens: int) -> None:
        """Charge a call without asking: one that an earlier life of this provider admitted."""
        self.requests.take(now_ms, 1)
        self.tokens.take(now_ms, tokens)


def buckets_after(
    settings: ProviderSettings, lines: Iterable[Line], *, now_ms: int, monotonic_ms: int
) -> dict[str, ModelBuckets]:
    """Buckets by model as the calls of these lines left them, on the monotonic clock.

    So a restart does not grant a second minute's worth. Only the last minute matters, after it they are full;
    what was in flight at a crash is not known.
    """
    start_ms = monotonic_ms - MINUTE_MS
    buckets = {
        model.name: ModelBuckets(model, speed=settings.speed, now_ms=start_ms) for model in settings.models
    }
    recent = [line for line in lines if line.charged and 0 <= now_ms - line.arrived_ms < MINUTE_MS]
    for line in sorted(recent, key=lambda line: line.arrived_ms):
        if line.model in buckets:
            buckets[line.model].take(monotonic_ms - (now_ms - line.arrived_ms), tokens=line.charged)
    return buckets


def _shortage(unit: str, bucket: MinuteBucket, now_ms: int, asked: int) -> Shortage:
    return Shortage(
        unit=unit,
        limit=bucket.limit,
        remaining=bucket.remaining(now_ms),
        asked=asked,
        wait_ms=-1 if asked > bucket.limit else bucket.wait_ms(now_ms, asked),
    )


def _at_speed(per_minute: int, speed: float) -> int:
    return max(1, round(per_minute * speed))
