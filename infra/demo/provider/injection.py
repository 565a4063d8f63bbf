"""Failures on purpose: which call fails how is decided by seed, call and attempt, never by luck of the moment."""

from __future__ import annotations

from dataclasses import dataclass

from laxity.infra.demo.draws import draw_unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Injection:
    """Rates from 0 to 1 of calls answered 429 at once, that fail with 500 on the way, and whose answer is a 500 after the effect."""

    seed: int
    rate_429: float
    rate_500: float
    rate_lost: float = 0.0

    def refuses(self, identity: str, attempt: int) -> bool:
        """Whether the attempt is answered 429 although there is room."""
        return draw_unit(self.seed, "429", identity, attempt) < self.rate_429

    def fails_after(self, identity: str, attempt: int) -> float | None:
        """The part of its service time after which this attempt fails with 500; None if it does not."""
        if draw_unit(self.seed, "500", identity, attempt) >= self.rate_500:
            return None
        return draw_unit(self.seed, "500 after", identity, attempt)

    def loses(self, identity: str, attempt: int) -> bool:
        """Whether the attempt is answered 500 although it had its effect."""
        return draw_unit(self.seed, "lost", identity, attempt) < self.rate_lost
