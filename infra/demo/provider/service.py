"""What happens to a call: known key → limits → failure on purpose → service time → effect → answer.

The effect is applied at the END of the service time, just before the answer: a caller that dies meanwhile may
find it applied or not, as with real providers. A call goes on when its caller has left.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from laxity.infra.demo.generator import service_ms
from laxity.infra.demo.provider.answers import (
    Answer,
    completion,
    effect_unknown,
    effect_unsettled,
    injected_429,
    injected_500,
    injected_loss,
    invalid,
    key_reused,
    limit_headers,
    no_room,
    unknown_model,
)
from laxity.infra.demo.provider.injection import Injection
from laxity.infra.demo.provider.limits import buckets_after
from laxity.infra.demo.provider.line import Kind, Line
from laxity.infra.demo.provider.memory import Memory
from laxity.infra.demo.provider.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterable

    from laxity.infra.demo.provider.ledger import Ledger
    from laxity.infra.demo.provider.settings import ProviderSettings
    from laxity.infra.demo.provider.wire import Call, InvalidCallError, Origin
    from laxity.schemas.timing import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class _Flight:
    """A call under a key that has no outcome yet."""

    body: str
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Provider:
    """One provider behind its HTTP surface. Every answer's line is in the ledger before it is returned."""

    def __init__(
        self, *, settings: ProviderSettings, ledger: Ledger, lines: Iterable[Line], clock: Clock
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._clock = clock
        self._injection = Injection(
            seed=settings.seed,
            rate_429=settings.inject_429,
            rate_500=settings.inject_500,
            rate_lost=settings.inject_lost,
        )
        self._flights: dict[str, _Flight] = {}
        self._under_way: Counter[str] = Counter()  # calls by key, also where keys are not deduplicated
        self.metrics = Metrics()
        lines = list(lines)
        self._memory = Memory(lines)
        self._buckets = buckets_after(
            settings, lines, now_ms=clock.now_ms(), monotonic_ms=clock.monotonic_ms()
        )

    @property
    def models(self) -> tuple[str, ...]:
        """Names on offer."""
        return tuple(self._buckets)

    @property
    def limits(self) -> dict[str, dict[str, int]]:
        """What is enforced per minute, by model: at this provider's speed."""
        return {
            name: {"requests_per_minute": of.requests.limit, "tokens_per_minute": of.tokens.limit}
            for name, of in self._buckets.items()
        }

    @property
    def speed(self) -> float:
        """How many times faster than recorded."""
        return self._settings.speed

    @property
    def healthy(self) -> bool:
        """The ledger takes lines."""
        return self._ledger.error is None

    async def call(self, call: Call) -> Answer:
        """Serve one valid call. Raises `LedgerError` if its outcome could not be written: it may be either."""
        arrived_ms = self._clock.now_ms()
        if call.model not in self._buckets:
            return await self._refuse_model(call, arrived_ms)
        key = call.origin.key
        self._under_way[key] += 1
        try:
            deduplicated = self._settings.dedupe and bool(key)
            return await (self._once if deduplicated else self._attempt)(call, arrived_ms)
        finally:
            self._under_way[key] -= 1
            if not self._under_way[key]:
                del self._under_way[key]

    def effect_of(self, key: str) -> Answer:
        """The completion of the first effect under a key; 409 while a call may still have one, 404 if none had."""
        known = self._memory.effect(key)
        if known is not None:
            return completion(known, max_tokens=known.charged - known.tokens_in)
        return effect_unsettled(key) if key in self._under_way else effect_unknown(key)

    async def reject(self, origin: Origin, error: InvalidCallError) -> Answer:
        """Record and answer a request that is no valid call."""
        now_ms = self._clock.now_ms()
        line = Line(
            ts_ms=now_ms,
            key=origin.key,
            tenant=origin.tenant,
            task=origin.task,
            model="",
            tokens_in=0,
            tokens_out=0,
            kind=Kind.REFUSED,
            status=error.status,
            reason="invalid",
            body="",
            charged=0,
            arrived_ms=now_ms,
        )
        await self._record(line)
        return invalid(error)

    async def _once(self, call: Call, arrived_ms: int) -> Answer:
        """One effect per key: a duplicate waits for the call in flight, then gets its answer or tries itself."""
        key = call.origin.key
        while (known := self._memory.effect(key)) is None and (flight := self._flights.get(key)) is not None:
            if flight.body != call.body:
                return await self._conflict(call, arrived_ms)
            await flight.over.wait()
        if known is not None:
            return await self._replay(call, known, arrived_ms)
        flight = self._flights[key] = _Flight(body=call.body)
        try:
            return await self._attempt(call, arrived_ms)
        finally:
            del self._flights[key]
            flight.over.set()

    async def _attempt(self, call: Call, arrived_ms: int) -> Answer:
        """Admission, chance, service, effect."""
        attempt = self._memory.next_attempt(call.identity)
        if self._injection.refuses(call.identity, attempt):
            self._memory.begin(call.identity)
            await self._record(self._line(call, arrived_ms, Kind.INJECTED, status=429, reason="limit"))
            return self._with_limits(call, injected_429(call.model, self._settings.speed))
        charge = call.tokens_in + call.max_tokens
        shortage = self._buckets[call.model].admit(self._clock.monotonic_ms(), tokens=charge)
        if shortage is not None:
            await self._record(self._line(call, arrived_ms, Kind.REFUSED, status=429, reason=shortage.unit))
            return self._with_limits(call, no_room(call.model, shortage))
        self._memory.begin(call.identity)
        service = service_ms(call.tokens_in, call.tokens_out, self._settings.speed)
        part = self._injection.fails_after(call.identity, attempt)
        await asyncio.sleep(service * (1 if part is None else part) / 1_000)
        if part is not None:
            line = self._line(call, arrived_ms, Kind.INJECTED, status=500, reason="failure", charged=charge)
            await self._record(line)
            return self._with_limits(call, injected_500())
        line = self._line(call, arrived_ms, Kind.EFFECT, status=200, reason="", charged=charge)
        await self._record(line)
        if self._injection.loses(call.identity, attempt):
            return self._with_limits(call, injected_loss())
        return self._with_limits(call, completion(line, max_tokens=call.max_tokens))

    async def _replay(self, call: Call, known: Line, arrived_ms: int) -> Answer:
        """The first answer again. It costs nothing: a caller that lost it must always be able to learn it."""
        if known.body != call.body:
            return await self._conflict(call, arrived_ms)
        await self._record(self._line(call, arrived_ms, Kind.REPLAY, status=200, reason="", known=known))
        answer = completion(known, max_tokens=call.max_tokens)
        return self._with_limits(
            call, Answer(status=200, body=answer.body, headers={"idempotent-replayed": "true"})
        )

    async def _conflict(self, call: Call, arrived_ms: int) -> Answer:
        """As Stripe has it: a key stands for one request."""
        await self._record(self._line(call, arrived_ms, Kind.REFUSED, status=400, reason="conflict"))
        return key_reused(call.origin.key)

    async def _refuse_model(self, call: Call, arrived_ms: int) -> Answer:
        await self._record(self._line(call, arrived_ms, Kind.REFUSED, status=404, reason="model"))
        return unknown_model(call.model, self.models)

    async def _record(self, line: Line) -> None:
        await self._ledger.append(line)
        self._memory.learn(line)
        self.metrics.count(line)

    def _line(
        self,
        call: Call,
        arrived_ms: int,
        kind: Kind,
        *,
        status: int,
        reason: str,
        charged: int = 0,
        known: Line | None = None,
    ) -> Line:
        tokens_out = call.tokens_out if kind is Kind.EFFECT else 0
        return Line(
            ts_ms=self._clock.now_ms(),
            key=call.origin.key,
            tenant=call.origin.tenant,
            task=call.origin.task,
            model=call.model if call.model in self._buckets else "",
            tokens_in=known.tokens_in if known else call.tokens_in,
            tokens_out=known.tokens_out if known else tokens_out,
            kind=kind,
            status=status,
            reason=reason,
            body=call.body,
            charged=charged,
            arrived_ms=arrived_ms,
        )

    def _with_limits(self, call: Call, answer: Answer) -> Answer:
        limits = limit_headers(self._buckets[call.model], self._clock.monotonic_ms())
        return Answer(status=answer.status, body=answer.body, headers={**limits, **answer.headers})
