"""What an agent sees of its attempt.

    async def summarise(ctx: AgentContext, document: Document) -> Summary:
        await ctx.call("llm", 1_200)                                  # its turn at the provider, most urgent first
        answer = await post(..., headers={"Idempotency-Key": ctx.idempotency_key()})
        ctx.usage(requests=1, tokens_in=answer.tokens_in, tokens_out=answer.tokens_out)
        return Summary(text=answer.text)

A plain (synchronous) agent runs in a thread and awaits through `ctx.wait(...)`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

from laxity.consumers.errors import CallRefused, LeaseLost, counts_of
from laxity.consumers.leases import RETRY_MS, CallAnswer, Lease, Sleep, Stop
from laxity.consumers.slots import Slot
from laxity.schemas.crashpoints import armed, reach
from laxity.schemas.identity import effect_key
from laxity.schemas.limits import (
    CHECKPOINT_BYTES_MAX,
    QUANTITY_MAX,
    RESOURCE_CHARS_MAX,
    RESOURCE_KEY_BYTES_MAX,
)
from laxity.schemas.records import Dispatch
from laxity.schemas.timing import Clock

T = TypeVar("T")

GRANT_FRESH_MS: Final = 5_000  # a later call would fall into another window of the provider's bucket
RESOURCES_USED_MAX: Final = 64  # in one attempt's report to the ledger
UNIT_BYTES_MAX: Final = RESOURCE_CHARS_MAX + len(":") + RESOURCE_KEY_BYTES_MAX  # a resource with its key
IN_CALL_MS: Final = 100  # an armed crash point in_call: by then the agent's request is at the provider


class Calls(Protocol):
    """Asks the ledger for a further call of a running task."""

    async def call(self, lease: Lease, resource: str, amount: int) -> CallAnswer:
        """One question."""
        ...


SaveCheckpoint = Callable[[bytes, Mapping[str, int]], Awaitable[None]]


@dataclass(slots=True, kw_only=True)
class Attempt:
    """The runner's side of one attempt; an agent only sees its context."""

    dispatch: Dispatch
    lease: Lease
    slot: Slot
    clock: Clock
    sleep: Sleep
    calls: Calls
    save: SaveCheckpoint  # durable when it returns; takes the usage counted since the last report
    loop: asyncio.AbstractEventLoop
    waited_ms: int = 0  # for calls, in all
    used: dict[str, int] = field(default_factory=dict)
    usage: dict[str, int] = field(default_factory=dict)  # not yet reported
    first_calls: dict[str, int] = field(default_factory=dict)  # of the grant, not yet taken
    checkpoint: bytes | None = None
    in_call: asyncio.TimerHandle | None = None  # an armed crash point

    def answered(self) -> None:
        """The agent is in no call any more, as far as we can tell."""
        if self.in_call is not None:
            self.in_call.cancel()

    def take_usage(self) -> dict[str, int]:
        """The counts since the last report; shards add up what each report brings."""
        usage, self.usage = self.usage, {}
        return usage

    def require_lease(self) -> None:
        """LeaseLost if no further step may begin."""
        lease = self.lease
        if not lease.holds(self.clock.monotonic_ms()):
            raise LeaseLost(f"{lease.reservation_id}: {lease.stop or Stop.LEASE_LOST}")


class AgentContext:
    """One attempt at one task, as its agent sees it."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    @property
    def task_id(self) -> str:
        """H(tenant, run, key): the same on all attempts."""
        return self._attempt.dispatch.task_id

    @property
    def tenant(self) -> str:
        """As in the trigger."""
        return self._attempt.dispatch.tenant

    @property
    def run_id(self) -> str:
        """As in the trigger, or derived."""
        return self._attempt.dispatch.run_id

    @property
    def key(self) -> str:
        """The trigger's idempotency key."""
        return self._attempt.dispatch.key

    @property
    def type(self) -> str:
        """Task type."""
        return self._attempt.dispatch.type

    @property
    def attempt(self) -> int:
        """From 1."""
        return self._attempt.dispatch.attempt

    @property
    def deadline_ms(self) -> int:
        """Absolute UTC ms."""
        return self._attempt.dispatch.deadline_ms

    @property
    def headers(self) -> Mapping[str, str]:
        """The trigger's headers."""
        return self._attempt.dispatch.headers

    @property
    def content_type(self) -> str:
        """Of the payload."""
        return self._attempt.dispatch.content_type

    @property
    def last_checkpoint(self) -> bytes | None:
        """The newest durable checkpoint of this task, of this attempt or an earlier one."""
        return self._attempt.checkpoint

    @property
    def cancelled(self) -> bool:
        """Whether the attempt was told to end. Async agents get a CancelledError as well; a thread must look here."""
        return self._attempt.lease.stop is not None

    def time_left_ms(self) -> int:
        """Until the deadline; negative once it has passed."""
        return self.deadline_ms - self._attempt.clock.now_ms()

    def should_yield(self) -> bool:
        """Whether somebody else should run now: save what there is and `raise Yield(checkpoint)`."""
        return self._attempt.lease.yield_asked

    def idempotency_key(self, step: str = "") -> str:
        """What the provider gets as Idempotency-Key: the same for this step on every attempt. Name the steps if there are several."""
        dispatch = self._attempt.dispatch
        return effect_key(dispatch.tenant, dispatch.task_id, dispatch.effect_generation, step)

    def usage(self, *, tokens_in: int = 0, tokens_out: int = 0, requests: int = 0) -> None:
        """Count what the attempt cost; calls add up. Thread-safe only from the agent itself."""
        _add("usage", self._attempt.usage, tokens_in=tokens_in, tokens_out=tokens_out, requests=requests)

    def used(self, resource: str, amount: int) -> None:
        """What was really used of a resource, to settle the estimate; calls add up."""
        used = self._attempt.used
        if resource not in used and len(used) >= RESOURCES_USED_MAX:
            raise ValueError(
                f"used: {resource} would be resource {len(used) + 1}, limit {RESOURCES_USED_MAX}"
            )
        _add("used", used, **{resource: amount})

    async def call(self, resource: str, amount: int = 1) -> None:
        """Returns when one more provider call, of `amount` LLM tokens of a rate, may be made; asked in urgency order over all runners.

        The first call of each resource was reserved with the dispatch, and costs no question while the grant is fresh. Waiting gives the
        slot back. CallRefused if a firm task's deadline comes first; LeaseLost if the attempt may not go on.
        """
        if not isinstance(amount, int) or isinstance(amount, bool) or not 0 <= amount <= QUANTITY_MAX:
            raise ValueError(f"call: amount of {resource} is {amount!r}, an integer from 0 to {QUANTITY_MAX}")
        attempt = self._attempt
        attempt.require_lease()
        held = _take_first(attempt, resource)
        if held is None:
            await _ask(attempt, resource, amount)
        elif amount > held:
            await _ask(attempt, resource, amount - held)
        reach("before_call")
        if armed("in_call"):
            attempt.answered()
            attempt.in_call = attempt.loop.call_later(IN_CALL_MS / 1_000, reach, "in_call")

    async def checkpoint(self, data: bytes) -> None:
        """Durable when it returns: the next attempt finds it as `last_checkpoint`. LeaseLost if the attempt may not go on."""
        if not isinstance(data, bytes):
            raise TypeError(f"checkpoint: data is {type(data).__name__}, bytes are kept")
        if len(data) > CHECKPOINT_BYTES_MAX:
            raise ValueError(f"checkpoint: {len(data)} bytes, limit {CHECKPOINT_BYTES_MAX}")
        attempt = self._attempt
        attempt.require_lease()
        usage = attempt.take_usage()
        try:
            await attempt.save(data, usage)
        except LeaseLost:
            _add("usage", attempt.usage, **usage)  # not written: the report of the end brings it
            raise
        attempt.checkpoint = data

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """Inside, the attempt only waits: its slot serves another task meanwhile."""
        async with self._attempt.slot.away():
            yield

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """For agents in threads: `ctx.wait(ctx.call("llm", 900))`. From an async agent it would wait for itself: RuntimeError."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run_coroutine_threadsafe(coroutine, self._attempt.loop).result()
        coroutine.close()
        raise RuntimeError("ctx.wait is for agents in threads; an async agent awaits")


def _add(field_name: str, counts: dict[str, int], **more: int) -> None:
    """ValueError for what neither the ledger nor a shard would take: the agent hears of it, not the runner."""
    for unit, quantity in counts_of(field_name, more).items():
        if not 0 < len(unit.encode()) <= UNIT_BYTES_MAX:
            raise ValueError(f"{field_name}: name {unit[:80]!r}, 1 to {UNIT_BYTES_MAX} bytes")
        total = counts.get(unit, 0) + quantity
        if total > QUANTITY_MAX:
            raise ValueError(f"{field_name}: {unit} would be {total}, limit {QUANTITY_MAX}")
        if quantity:
            counts[unit] = total


def _take_first(attempt: Attempt, resource: str) -> int | None:
    """What the grant holds for the first call of the resource; None once it was taken or is stale."""
    held = attempt.first_calls.pop(resource, None)
    return held if _grant_is_fresh(attempt) else None


def _grant_is_fresh(attempt: Attempt) -> bool:
    ahead_ms = attempt.lease.ledger_ahead_ms
    if ahead_ms is None:
        return False
    age_ms = attempt.clock.monotonic_ms() + ahead_ms - attempt.dispatch.granted_ms
    return age_ms <= GRANT_FRESH_MS


REFUSED_FOR_GOOD: Final = frozenset({"over_capacity", "unknown_resource"})  # no waiting changes it
LEASE_ENDED: Final = {"gone": Stop.REVOKED, "fenced": Stop.REVOKED, "cancelled": Stop.CANCELLED}


async def _ask(attempt: Attempt, resource: str, amount: int) -> None:
    while True:
        answer = await attempt.calls.call(attempt.lease, resource, amount)
        if answer.reason in LEASE_ENDED:
            attempt.lease.halt(LEASE_ENDED[answer.reason])
        attempt.require_lease()  # the answer may also have taken its time
        if answer.granted:
            return
        if answer.reason in REFUSED_FOR_GOOD:
            raise CallRefused(resource=resource, amount=amount, reason=answer.reason)
        await _wait_out(attempt, resource, amount, answer)
        attempt.require_lease()


async def _wait_out(attempt: Attempt, resource: str, amount: int, answer: CallAnswer) -> None:
    """Wait as long as the ledger said, in the slot of somebody else; a firm task never past its deadline."""
    wait_ms = answer.retry_ms if answer.retry_ms > 0 else RETRY_MS
    left_ms = attempt.dispatch.deadline_ms - attempt.clock.now_ms()
    if attempt.dispatch.firm and wait_ms >= left_ms:
        raise CallRefused(
            resource=resource,
            amount=amount,
            reason=f"{answer.reason}, again in {wait_ms} ms, but the deadline is in {left_ms} ms",
        )
    began_ms = attempt.clock.monotonic_ms()
    async with attempt.slot.away():
        await attempt.sleep(wait_ms)
    attempt.waited_ms += attempt.clock.monotonic_ms() - began_ms
