"""One attempt from dispatch to durable outcome, with the ledger's twin."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from pydantic import BaseModel

from laxity.consumers import AgentContext, Fail, NotApplied, OutcomeUnknown, Retry, Yield, agent, execution
from laxity.consumers.errors import LeaseLost, NotWritten
from laxity.consumers.testing import settle
from laxity.schemas.identity import effect_key
from laxity.streams.ledger.protocol import Exchange


class Document(BaseModel):
    text: str


class Summary(BaseModel):
    words: int


@agent("count")
async def count(ctx: AgentContext, document: Document) -> Summary:
    ctx.usage(tokens_in=7, requests=1)
    ctx.used("llm", 7)
    return Summary(words=len(document.text.split()))


DOCUMENT = b'{"text": "to be or not"}'


async def test_a_dispatch_becomes_a_typed_result_and_the_lease_goes_back(make_world: Any) -> None:
    world = make_world(count)
    dispatch = world.reserve("count", DOCUMENT, demands={"browser": 1})
    assert world.ledger.reserved("browser") == 1
    await world.carry_out(dispatch)
    assert world.outcomes.kinds == ["started", "succeeded"]
    assert [shard for shard, _ in world.outcomes.written] == [2, 2]
    outcome = world.outcomes.last
    assert json.loads(outcome.result or b"") == {"words": 4}
    assert (outcome.task_id, outcome.dispatch_no, outcome.attempt, outcome.runner) == (
        "task1",
        1,
        1,
        "runner-1",
    )
    assert (outcome.usage, outcome.used) == ({"tokens_in": 7, "requests": 1}, {"llm": 7})
    assert world.ledger.reserved("browser") == 0
    assert world.ledger.reserved("fleet.default") == 0
    assert world.finished == ["task1"]
    assert world.slots.taken == 0
    assert world.leases.live() == ()


async def test_no_agent_runs_before_its_start_is_durable(make_world: Any) -> None:
    ran: list[str] = []

    @agent("late")
    async def late(ctx: AgentContext) -> None:
        ran.append(ctx.task_id)

    world = make_world(late)
    world.outcomes.open.clear()
    task = world.begin(world.reserve("late"))
    await settle()
    assert ran == []
    assert world.leases.live() != ()  # claimed all the same
    world.outcomes.open.set()
    await task
    assert ran == ["task1"]


async def test_the_record_is_done_with_only_after_the_durable_outcome_and_the_lease_after_that(
    make_world: Any,
) -> None:
    world = make_world(count)
    dispatch = world.reserve("count", DOCUMENT, demands={"browser": 1})
    task = world.begin(dispatch)
    world.outcomes.close_after = 1
    await settle()
    assert world.outcomes.kinds == ["started"]
    assert world.finished == []
    assert world.ledger.reserved("browser") == 1
    world.outcomes.open.set()
    await task
    assert world.finished == ["task1"]
    assert world.ledger.reserved("browser") == 0


@pytest.mark.parametrize(
    ("over", "code"),
    [
        ({"type": "nobody"}, "no_agent"),
        ({"firm": True, "latest_start_ms": 1}, "late"),
    ],
)
async def test_a_refused_dispatch_is_bounced_before_any_claim(make_world: Any, over: Any, code: str) -> None:
    world = make_world(count)
    dispatch = world.reserve("count", DOCUMENT, **{k: v for k, v in over.items() if k != "type"})
    if "type" in over:
        dispatch = world.reserve(over["type"], DOCUMENT)
    await world.carry_out(dispatch)
    assert world.outcomes.kinds == ["bounced"]
    assert world.outcomes.last.code == code
    assert world.finished == [dispatch.task_id]
    # the reservation stands unclaimed: the shard's revoke takes it back
    answer = world.ledger.exchange(
        Exchange(shard=0, owner_epoch=1, revokes=[f"{dispatch.task_id}:0:{dispatch.dispatch_no}"])
    )
    assert set(answer.verdicts.values()) == {"revoked"}


async def test_a_soft_task_runs_late(make_world: Any) -> None:
    world = make_world(count)
    await world.carry_out(world.reserve("count", DOCUMENT, latest_start_ms=1, deadline_ms=2))
    assert world.outcomes.kinds == ["started", "succeeded"]


async def test_a_revoked_reservation_is_not_run(make_world: Any) -> None:
    world = make_world(count)
    dispatch = world.reserve("count", DOCUMENT)
    world.ledger.exchange(Exchange(shard=0, owner_epoch=1, revokes=["task1:0:1"]))
    await world.carry_out(dispatch)
    assert world.outcomes.kinds == ["bounced"]
    assert world.outcomes.last.code == "gone"


async def test_a_cancelled_reservation_is_not_run(make_world: Any) -> None:
    world = make_world(count)
    dispatch = world.reserve("count", DOCUMENT)
    world.ledger.exchange(Exchange(shard=0, owner_epoch=1, cancels=["task1:0:1"]))
    await world.carry_out(dispatch)
    assert world.outcomes.kinds == ["bounced"]


async def test_a_ledger_that_is_away_is_asked_again(make_world: Any) -> None:
    world = make_world(count)
    dispatch = world.reserve("count", DOCUMENT)
    world.ledger.available = False
    task = world.begin(dispatch)
    await world.time.advance(1_000)
    assert world.outcomes.kinds == []
    world.ledger.available = True
    await world.time.advance(1_000)
    await task
    assert world.outcomes.kinds == ["started", "succeeded"]


async def test_a_ledger_that_stays_away_bounces_the_dispatch(make_world: Any) -> None:
    world = make_world(count)
    dispatch = world.reserve("count", DOCUMENT)
    world.ledger.available = False
    task = world.begin(dispatch)
    await world.time.advance(16_000)
    await task
    assert world.outcomes.kinds == ["bounced"]
    assert world.outcomes.last.code == "unavailable"


class BrokenError(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Retry("rate_limited", "slow down", 700), ("failed", "rate_limited", "slow down", True, 700)),
        (Fail("bad_input", "no such page"), ("failed", "bad_input", "no such page", False, 0)),
        (OutcomeUnknown("timeout after the body was sent"),
         ("unknown", "reported_unknown", "timeout after the body was sent", False, 0)),
        (BrokenError("oh"), ("failed", "BrokenError", "oh", True, 0)),
        (SystemExit(3), ("failed", "AgentExited", "SystemExit: 3", True, 0)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("threaded", [False, True])
async def test_what_an_agent_raises_is_its_outcome(
    make_world: Any, error: BaseException, expected: Any, threaded: Any
) -> None:
    @agent("raises")
    async def raises(ctx: AgentContext) -> None:
        raise error

    @agent("raises")
    def raises_in_thread(ctx: AgentContext) -> None:
        raise error

    world = make_world(raises_in_thread if threaded else raises)
    await world.carry_out(world.reserve("raises"))
    last = world.outcomes.last
    assert (last.kind, last.code, last.message, last.retryable, last.retry_after_ms) == expected
    assert world.slots.taken == 0


async def test_a_result_that_breaks_the_contract_is_no_success(make_world: Any) -> None:
    @agent("count")
    async def wrong(ctx: AgentContext) -> Summary:
        return {"words": "many"}  # type: ignore[return-value]

    world = make_world(wrong)
    await world.carry_out(world.reserve("count"))
    last = world.outcomes.last
    assert (last.kind, last.code, last.result) == ("failed", "outcome_contract", None)
    assert "words" in last.message
    assert "many" not in last.message


async def test_a_payload_that_does_not_fit_is_poison_and_never_starts(make_world: Any) -> None:
    world = make_world(count)
    dispatch = world.reserve("count", b'{"text": 1}', demands={"browser": 1})
    await world.carry_out(dispatch)
    assert world.outcomes.kinds == ["failed"]
    assert (world.outcomes.last.code, world.outcomes.last.retryable) == ("poison", False)
    assert world.ledger.reserved("browser") == 0


async def test_reporting_is_retried_without_running_again(make_world: Any) -> None:
    runs: list[int] = []

    @agent("once")
    async def once(ctx: AgentContext) -> None:
        runs.append(1)
        world.outcomes.refuse += [NotWritten("broker away")] * 3

    world = make_world(once)
    task = world.begin(world.reserve("once"))
    await world.time.advance(10_000)
    await task
    assert runs == [1]
    assert world.outcomes.kinds == ["started", "succeeded"]


async def test_a_result_that_the_broker_will_never_take_ends_as_a_failure(make_world: Any) -> None:
    @agent("big")
    async def big(ctx: AgentContext) -> bytes:
        world.outcomes.refuse.append(NotWritten("too large", permanent=True))
        return b"x" * 100

    world = make_world(big)
    await world.carry_out(world.reserve("big"))
    assert world.outcomes.kinds == ["started", "failed"]
    assert world.outcomes.last.code == "outcome_contract"


# Orders, fences and limits of time


@agent("waits")
async def waits(ctx: AgentContext) -> None:
    await asyncio.Event().wait()


async def test_a_cancel_stops_the_agent(make_world: Any) -> None:
    world = make_world(waits)
    task = world.begin(world.reserve("waits"))
    await settle()
    world.ledger.exchange(Exchange(shard=0, owner_epoch=1, cancels=["task1:0:1"]))
    await world.leases.renew()
    await task
    last = world.outcomes.last
    assert (last.kind, last.code, last.retryable) == ("failed", "cancelled", False)


async def test_renewals_keep_the_lease_for_an_hour(make_world: Any) -> None:
    world = make_world(waits)
    task = world.begin(world.reserve("waits", deadline_ms=2**50))
    await world.beat(3_600_000, every_ms=5_000)
    assert not task.done()
    assert world.ledger.holders("fleet.default") == ["task1:0:1"]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_without_renewal_the_agent_is_stopped_three_seconds_before_its_lease_ends(
    make_world: Any,
) -> None:
    world = make_world(waits)
    task = world.begin(world.reserve("waits"))
    await settle()
    world.ledger.available = False
    for _ in range(59):
        await world.time.advance(200)
        world.leases.sweep()
        await settle()
    assert not task.done()  # 11.8 s
    await world.time.advance(200)
    world.leases.sweep()
    await settle()
    assert world.outcomes.kinds == ["started", "unknown"]
    assert world.outcomes.last.code == "lease_lost"
    world.ledger.available = True
    await world.time.advance(1_000)
    await task


async def test_a_result_outwaits_a_broker_that_is_away_for_a_minute_under_a_lease_that_lives(
    make_world: Any,
) -> None:
    world = make_world(count)
    task = world.begin(world.reserve("count", DOCUMENT, demands={"browser": 1}))
    world.outcomes.close_after = 1  # it answers the start, then no more
    await world.beat(60_000)
    assert (world.outcomes.kinds, world.finished) == (["started"], [])
    assert world.ledger.reserved("browser") == 1, "nobody else may begin"
    world.outcomes.open.set()
    await task
    assert world.outcomes.kinds == ["started", "succeeded"]
    assert world.ledger.reserved("browser") == 0


async def test_a_start_outwaits_the_broker_too_and_runs_if_its_lease_still_holds(make_world: Any) -> None:
    world = make_world(count)
    world.outcomes.open.clear()
    task = world.begin(world.reserve("count", DOCUMENT))
    await world.beat(60_000)
    assert world.outcomes.kinds == []
    world.outcomes.open.set()
    await task
    assert world.outcomes.kinds == ["started", "succeeded"]


async def test_a_lease_that_was_taken_away_reports_nothing(make_world: Any) -> None:
    world = make_world(waits)
    task = world.begin(world.reserve("waits"))
    await settle()
    world.time.clock.advance(16_000)
    world.ledger.exchange(Exchange(shard=0, owner_epoch=1))  # reaps
    await world.leases.renew()
    await task
    assert world.outcomes.kinds == ["started"]
    assert world.finished == ["task1"]


async def test_a_fenced_start_never_runs_and_spends_no_attempt(make_world: Any) -> None:
    ran: list[int] = []

    @agent("never")
    async def never(ctx: AgentContext) -> None:
        ran.append(1)

    world = make_world(never)
    world.outcomes.open.clear()
    task = world.begin(world.reserve("never", checkpoint=b"half"))
    await settle()
    world.time.clock.advance(12_000)
    world.outcomes.open.set()
    await settle()
    await task
    assert ran == []
    assert world.outcomes.kinds == ["started", "yielded"]
    assert world.outcomes.last.checkpoint == b"half"


async def test_a_firm_task_is_stopped_at_its_deadline(make_world: Any) -> None:
    world = make_world(waits)
    task = world.begin(world.reserve("waits", firm=True))
    await world.beat(59_800)
    assert not task.done()
    await world.beat(400)
    await task
    last = world.outcomes.last  # what it had done by then, nobody knows
    assert (last.kind, last.code) == ("unknown", "deadline")


async def test_no_attempt_runs_longer_than_the_cap(make_world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert execution.ACTIVE_MS_MAX == 12 * 3_600_000
    monkeypatch.setattr(execution, "ACTIVE_MS_MAX", 90_000)
    world = make_world(waits)
    task = world.begin(world.reserve("waits", deadline_ms=2**50))
    await world.beat(89_000, every_ms=1_000)
    assert not task.done()
    await world.beat(1_000)
    await task
    assert (world.outcomes.last.kind, world.outcomes.last.code) == ("unknown", "timeout")


async def test_an_agent_that_ignores_its_cancellation_is_left_behind_with_its_slot(
    make_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laxity.consumers.performing.STOP_GRACE_MS", 20)
    release = asyncio.Event()

    @agent("stubborn")
    async def stubborn(ctx: AgentContext) -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    world = make_world(stubborn)
    task = world.begin(world.reserve("stubborn"))
    await settle()
    world.ledger.exchange(Exchange(shard=0, owner_epoch=1, cancels=["task1:0:1"]))
    await world.leases.renew()
    await task
    assert world.outcomes.last.code == "cancelled"
    assert world.slots.taken == 1
    release.set()
    await settle()
    assert world.slots.taken == 0


async def test_a_thread_keeps_its_slot_until_it_ends(make_world: Any) -> None:
    release = threading.Event()
    saw: list[bool] = []

    @agent("thread")
    def thread(ctx: AgentContext) -> None:
        release.wait(5)
        saw.append(ctx.cancelled)

    world = make_world(thread)
    task = world.begin(world.reserve("thread"))
    await settle()
    world.ledger.exchange(Exchange(shard=0, owner_epoch=1, cancels=["task1:0:1"]))
    await world.leases.renew()
    await task
    assert world.outcomes.last.code == "cancelled"
    assert world.slots.taken == 1
    release.set()
    async with asyncio.timeout(5):
        while world.slots.taken:  # noqa: ASYNC110 - a thread gives it back
            await asyncio.sleep(0.001)
    assert saw == [True]


async def test_a_thread_that_outlives_its_lease_starts_no_further_step_and_its_result_is_not_reported(
    make_world: Any,
) -> None:
    """A thread cannot be stopped: what it does without asking is not ours to prevent."""
    release, said = threading.Event(), list[str]()

    @agent("thread")
    def thread(ctx: AgentContext) -> str:
        release.wait(5)
        for step in (ctx.call("llm", 1), ctx.checkpoint(b"x")):
            try:
                ctx.wait(step)
            except LeaseLost as error:
                said.append(str(error))
        return "done all the same"

    world = make_world(thread)
    task = world.begin(world.reserve("thread", demands={"llm": 10}))
    await settle()
    world.ledger.available = False
    await world.time.advance(12_000)
    world.leases.sweep()
    await settle()
    world.ledger.available = True
    await world.time.advance(1_000)
    await task
    release.set()
    async with asyncio.timeout(5):
        while world.slots.taken:  # noqa: ASYNC110 - a thread gives it back
            await asyncio.sleep(0.001)
    assert said == ["task1:0:1: lease_lost"] * 2
    assert world.calls == []
    assert [(o.kind, o.code) for _, o in world.outcomes.written] == [
        ("started", ""),
        ("unknown", "lease_lost"),
    ]


async def test_what_was_counted_for_a_checkpoint_that_was_not_written_is_in_the_last_report(
    make_world: Any,
) -> None:
    @agent("counts")
    async def counts(ctx: AgentContext) -> None:
        ctx.usage(tokens_out=5)
        world.outcomes.refuse.append(NotWritten("queue full"))
        with pytest.raises(LeaseLost, match="may not be durable"):
            await ctx.checkpoint(b"1")
        ctx.usage(tokens_out=2)

    world = make_world(counts)
    task = world.begin(world.reserve("counts"))
    await settle()
    world.leases.live()[0].fence_at_ms = 0  # no further try
    await world.time.advance(1_000)
    await task
    assert [dict(o.usage) for _, o in world.outcomes.written] == [{}, {"tokens_out": 7}]


async def test_an_unknown_type_is_told_once_and_counted(make_world: Any, capsys: Any) -> None:
    world = make_world(count)
    for _ in range(3):
        await world.carry_out(world.reserve("nobody"))
    assert world.metrics.registry.get_sample_value("laxity_runner_bounces_total", {"code": "no_agent"}) == 3
    assert capsys.readouterr().out.count("agent.missing") == 1


# Yield, checkpoints, reconcile


async def test_a_yield_order_reaches_the_agent_and_its_checkpoint_comes_out(make_world: Any) -> None:
    @agent("steps")
    async def steps(ctx: AgentContext) -> None:
        await ctx.checkpoint(b"1")
        while not ctx.should_yield():  # noqa: ASYNC110 - as agents do between steps
            await asyncio.sleep(0)
        raise Yield

    world = make_world(steps)
    task = world.begin(world.reserve("steps"))
    await settle()
    world.leases.live()[0].yield_asked = True
    await task
    assert world.outcomes.kinds == ["started", "progress", "yielded"]
    assert [o.checkpoint for _, o in world.outcomes.written] == [None, b"1", b"1"]


async def test_usage_is_reported_once_each(make_world: Any) -> None:
    @agent("counts")
    async def counts(ctx: AgentContext) -> None:
        ctx.usage(tokens_out=5)
        await ctx.checkpoint(b"1")
        ctx.usage(tokens_out=2)

    world = make_world(counts)
    await world.carry_out(world.reserve("counts"))
    assert [dict(o.usage) for _, o in world.outcomes.written] == [{}, {"tokens_out": 5}, {"tokens_out": 2}]


async def test_a_checkpoint_comes_back_and_must_fit(make_world: Any) -> None:
    seen: list[Any] = []

    @agent("resumes")
    async def resumes(ctx: AgentContext) -> None:
        seen.append(ctx.last_checkpoint)
        await ctx.checkpoint(b"x" * 262_145)

    world = make_world(resumes)
    await world.carry_out(world.reserve("resumes", checkpoint=b"half"))
    assert seen == [b"half"]
    assert world.outcomes.last.code == "ValueError"
    assert "262145 bytes, limit 262144" in world.outcomes.last.message


def reconciling(answer: Any, ran: list[str]) -> Any:
    @agent("pays", on_unknown="reconcile")
    async def pays(ctx: AgentContext) -> str:
        ran.append("agent")
        return "paid now"

    @pays.reconcile
    async def ask(ctx: AgentContext) -> Any:
        ran.append("asked")
        if isinstance(answer, Exception):
            raise answer
        return answer

    return pays


@pytest.mark.parametrize(
    ("answer", "ran", "kind", "result"),
    [
        ("paid before", ["asked"], "succeeded", b"paid before"),
        (NotApplied, ["asked", "agent"], "succeeded", b"paid now"),
        (NotApplied(), ["asked", "agent"], "succeeded", b"paid now"),
        (BrokenError("provider away"), ["asked"], "unknown", None),
        (Retry("busy"), ["asked"], "unknown", None),
        (17, ["asked"], "unknown", None),  # breaks the contract: still nobody knows
    ],
)
async def test_after_an_unknown_outcome_the_provider_is_asked_first(
    make_world: Any, answer: Any, ran: list[str], kind: str, result: bytes | None
) -> None:
    calls: list[str] = []
    world = make_world(reconciling(answer, calls))
    await world.carry_out(world.reserve("pays", after_unknown=True, on_unknown="reconcile"))
    assert calls == ran
    assert (world.outcomes.last.kind, world.outcomes.last.result) == (kind, result)


async def test_a_first_attempt_asks_nobody(make_world: Any) -> None:
    calls: list[str] = []
    world = make_world(reconciling("paid before", calls))
    await world.carry_out(world.reserve("pays", on_unknown="reconcile"))
    assert calls == ["agent"]


async def test_reconcile_without_a_function_runs_nothing(make_world: Any) -> None:
    world = make_world(waits)
    await world.carry_out(world.reserve("waits", after_unknown=True, on_unknown="reconcile"))
    assert (world.outcomes.last.kind, world.outcomes.last.code) == ("failed", "no_reconcile")


async def test_the_effect_key_is_the_same_on_every_attempt_and_changes_with_the_effect_generation(
    make_world: Any,
) -> None:
    keys: list[str] = []

    @agent("keyed")
    async def keyed(ctx: AgentContext) -> None:
        keys.extend([ctx.idempotency_key(), ctx.idempotency_key("charge")])

    world = make_world(keyed)
    for attempt, generation in ((1, 0), (2, 0), (3, 1)):
        await world.carry_out(
            world.reserve(
                "keyed", task_id="t", dispatch_no=attempt, attempt=attempt, effect_generation=generation
            )
        )
    assert keys[:2] == keys[2:4] == [effect_key("acme", "t", 0, ""), effect_key("acme", "t", 0, "charge")]
    assert len(set(keys)) == 4


async def test_draining_bounces_what_has_not_begun(make_world: Any) -> None:
    world = make_world(waits, slots=1)
    running = world.begin(world.reserve("waits"))
    await settle()
    queued = world.begin(world.reserve("waits"))
    await settle()
    world.execution.drain()
    await queued
    await world.carry_out(world.reserve("waits"))
    assert world.outcomes.kinds == ["started", "bounced", "bounced"]
    assert world.outcomes.last.code == "draining"
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
