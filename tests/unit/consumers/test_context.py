"""Further provider calls, waiting, and what else an agent sees."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from laxity.consumers import AgentContext, CallRefused, LeaseLost, agent
from laxity.consumers.testing import settle
from laxity.streams.ledger.protocol import Exchange


def caller(*calls: tuple[str, int], after_ms: int = 0) -> Any:
    @agent("calls")
    async def calls_(ctx: AgentContext) -> int:
        if after_ms:
            await ctx._attempt.sleep(after_ms)
        for resource, amount in calls:
            await ctx.call(resource, amount)
        return len(calls)

    return calls_


def tokens(world: Any) -> int:
    """Left in the bucket of llm, which refills 1 per ms up to 10,000."""
    bucket = world.ledger.books.buckets["llm"]
    bucket.refill(world.time.clock.now_ms())
    return int(bucket.tokens // 60_000)


async def test_the_first_call_was_reserved_with_the_dispatch(make_world: Any) -> None:
    world = make_world(caller(("llm", 400)))
    dispatch = world.reserve("calls", demands={"llm": 400})
    assert tokens(world) == 9_600
    await world.carry_out(dispatch)
    assert world.outcomes.last.kind == "succeeded"
    assert tokens(world) == 9_600


async def test_the_second_call_is_asked(make_world: Any) -> None:
    world = make_world(caller(("llm", 400), ("llm", 300)))
    await world.carry_out(world.reserve("calls", demands={"llm": 400}))
    assert tokens(world) == 9_300


async def test_a_first_call_beyond_the_grant_asks_for_the_rest(make_world: Any) -> None:
    world = make_world(caller(("llm", 1_000)))
    await world.carry_out(world.reserve("calls", demands={"llm": 400}))
    assert tokens(world) == 9_000


@pytest.mark.parametrize(("age_ms", "asked"), [(5_000, False), (5_001, True)])
async def test_a_stale_grant_is_asked_anew(make_world: Any, age_ms: int, asked: bool) -> None:  # noqa: FBT001
    world = make_world(caller(("llm", 9_000), after_ms=age_ms))
    task = world.begin(world.reserve("calls", demands={"llm": 9_000}))
    await world.time.advance(age_ms)
    await world.time.advance(20_000)  # 1,000 left + 1 per ms: a second grant has to wait
    await task
    assert world.outcomes.last.kind == "succeeded"
    assert (world.calls != []) is asked


async def test_a_step_of_our_own_clock_does_not_age_the_grant(make_world: Any) -> None:
    @agent("calls")
    async def calls(ctx: AgentContext) -> None:
        world.time.clock.step(3_600_000)
        await ctx.call("llm", 400)

    world = make_world(calls)
    await world.carry_out(world.reserve("calls", demands={"llm": 400}))
    assert world.outcomes.last.kind == "succeeded"
    assert world.calls == []


async def test_a_refused_call_waits_in_somebody_elses_slot(make_world: Any) -> None:
    order: list[str] = []

    @agent("calls")
    async def calls(ctx: AgentContext) -> None:
        order.append("first begins")
        await ctx.call("llm", 10_000)
        await ctx.call("llm", 5_000)
        order.append("first goes on")

    @agent("other")
    async def other(ctx: AgentContext) -> None:
        order.append("other runs")

    world = make_world(calls, other, slots=1)
    first = world.begin(world.reserve("calls"))
    await settle()
    second = world.begin(world.reserve("other"))
    await world.time.advance(100)
    await second
    assert order == ["first begins", "other runs"]
    await world.time.advance(6_000)
    await first
    assert order[-1] == "first goes on"
    assert world.outcomes.last.kind == "succeeded"


async def test_a_firm_task_does_not_wait_past_its_deadline(make_world: Any) -> None:
    seen: list[CallRefused] = []

    @agent("calls")
    async def calls(ctx: AgentContext) -> None:
        await ctx.call("llm", 10_000)
        try:
            await ctx.call("llm", 10_000)
        except CallRefused as error:
            seen.append(error)
            raise

    world = make_world(calls)
    now_ms = world.time.clock.now_ms()
    await world.carry_out(
        world.reserve("calls", firm=True, deadline_ms=now_ms + 3_000, latest_start_ms=now_ms)
    )
    assert "deadline is in 3000 ms" in str(seen[0])
    assert (world.outcomes.last.code, world.outcomes.last.retryable) == ("call_refused", True)


async def test_a_call_beyond_capacity_is_refused_at_once(make_world: Any) -> None:
    world = make_world(caller(("llm", 60_001)))
    await world.carry_out(world.reserve("calls"))
    assert world.outcomes.last.message == "60001 of llm were not granted: over_capacity"


async def test_no_call_without_a_lease(make_world: Any) -> None:
    seen: list[BaseException] = []

    @agent("calls")
    async def calls(ctx: AgentContext) -> None:
        await ctx._attempt.sleep(12_000)  # nobody renews
        try:
            await ctx.call("llm", 1)
        except LeaseLost as error:
            seen.append(error)
            raise

    world = make_world(calls)
    task = world.begin(world.reserve("calls", demands={"llm": 1}))
    await world.time.advance(12_000)
    await task
    assert len(seen) == 1
    assert (world.outcomes.last.kind, world.outcomes.last.code) == ("unknown", "lease_lost")


async def test_a_cancel_is_heard_at_the_next_call(make_world: Any) -> None:
    go_on = asyncio.Event()

    @agent("calls")
    async def calls(ctx: AgentContext) -> None:
        await go_on.wait()
        await ctx.call("llm", 1)

    world = make_world(calls)
    task = world.begin(world.reserve("calls"))
    await settle()
    world.ledger.exchange(Exchange(shard=0, owner_epoch=1, cancels=["task1:0:1"]))
    go_on.set()
    await task
    assert (world.outcomes.last.kind, world.outcomes.last.code) == ("failed", "cancelled")


async def test_a_thread_waits_for_its_calls(make_world: Any) -> None:
    @agent("calls")
    def calls(ctx: AgentContext) -> bytes:
        ctx.wait(ctx.call("llm", 400))
        ctx.wait(ctx.checkpoint(b"1"))
        return ctx.last_checkpoint or b""

    world = make_world(calls)
    await world.carry_out(world.reserve("calls"))
    assert world.outcomes.kinds == ["started", "progress", "succeeded"]
    assert tokens(world) == 9_600


async def test_an_async_agent_cannot_wait_for_itself(make_world: Any) -> None:
    @agent("calls")
    async def calls(ctx: AgentContext) -> None:
        ctx.wait(ctx.call("llm", 1))

    world = make_world(calls)
    await world.carry_out(world.reserve("calls"))
    assert world.outcomes.last.code == "RuntimeError"


@pytest.mark.parametrize("amount", [-1, True, 1.5, 2**53])
async def test_amounts_are_vetted(make_world: Any, amount: Any) -> None:
    world = make_world(caller(("llm", amount)))
    await world.carry_out(world.reserve("calls"))
    assert world.outcomes.last.code == "ValueError"
    assert f"{amount!r}" in world.outcomes.last.message


async def test_waiting_gives_the_slot_back_and_takes_it_again(make_world: Any) -> None:
    world = make_world(slots=1)
    inside, leave = asyncio.Event(), asyncio.Event()

    @agent("waits")
    async def waits(ctx: AgentContext) -> int:
        async with ctx.waiting():
            inside.set()
            await leave.wait()
        return int(world.slots.taken)

    world = make_world(waits, slots=1)
    task = world.begin(world.reserve("waits"))
    await inside.wait()
    assert (world.slots.taken, world.slots.away) == (0, 1)
    leave.set()
    await task
    assert world.outcomes.last.result == b"1"
    assert (world.slots.taken, world.slots.away) == (0, 0)


async def test_what_the_agent_sees(make_world: Any) -> None:
    seen: dict[str, Any] = {}

    @agent("sees")
    async def sees(ctx: AgentContext) -> None:
        seen.update(
            task=ctx.task_id, tenant=ctx.tenant, type=ctx.type, attempt=ctx.attempt, headers=dict(ctx.headers),
            left=ctx.time_left_ms(), checkpoint=ctx.last_checkpoint, cancelled=ctx.cancelled, run=ctx.run_id,
        )  # fmt: skip

    world = make_world(sees)
    await world.carry_out(world.reserve("sees", attempt=3, headers={"a": "b"}))
    assert seen == {
        "task": "task1", "tenant": "acme", "type": "sees", "attempt": 3, "headers": {"a": "b"},
        "left": 60_000, "checkpoint": None, "cancelled": False, "run": "run",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("unit", "amount"),
    [("", 1), ("x" * 322, 1), ("\ud800", 1), ("llm", 2**53), ("llm", -1), ("llm", 2**70)],
)
async def test_a_count_that_nobody_would_take_is_the_agents_error_not_the_runners(
    make_world: Any, unit: str, amount: int
) -> None:
    @agent("calls")
    async def calls(ctx: AgentContext) -> None:
        ctx.used(unit, amount)

    world = make_world(calls)
    await world.carry_out(world.reserve("calls"))
    assert (world.outcomes.last.kind, world.outcomes.last.retryable) == ("failed", True)
    assert world.outcomes.last.code in {"ValueError", "UnicodeEncodeError"}
    assert world.outcomes.last.used == {}


async def test_counts_add_up_to_the_limit_and_no_further(make_world: Any) -> None:
    @agent("calls")
    async def calls(ctx: AgentContext) -> None:
        ctx.usage(tokens_in=2**53 - 2)
        ctx.usage(tokens_in=1)
        with pytest.raises(ValueError, match="tokens_in would be 9007199254740992, limit 9007199254740991"):
            ctx.usage(tokens_in=1)

    world = make_world(calls)
    await world.carry_out(world.reserve("calls"))
    assert world.outcomes.last.usage == {"tokens_in": 2**53 - 1}
