"""A whole runner over topics in memory and the ledger's twin: its thread and its loops are real, its clock is the system's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

import pytest

from laxity.consumers import AgentContext, agent
from laxity.consumers.desk import Desk
from laxity.consumers.doors import ConsumerFailed
from laxity.consumers.errors import NotWritten
from laxity.consumers.execution import Execution
from laxity.consumers.leases import Leases
from laxity.consumers.metrics import RunnerMetrics
from laxity.consumers.pace import Pace
from laxity.consumers.reports import Reporter
from laxity.consumers.runner import Runner, RunnerFailed, runner_name
from laxity.consumers.slots import Slots
from laxity.consumers.testing import Inline, MemoryDispatches, MemoryOutcomes
from laxity.schemas.addresses import Address, headers_of
from laxity.schemas.identity import murmur2
from laxity.schemas.records import Dispatch
from laxity.schemas.serde import Codec
from laxity.schemas.timing import SystemClock
from laxity.streams.ledger.limits import Limits
from laxity.streams.ledger.memory import MemoryLedger
from laxity.streams.ledger.protocol import Candidate, Exchange, Grant

CODEC = Codec.local()
NAME = "runner-1"


async def sleep(ms: int) -> None:
    await asyncio.sleep(ms / 1_000)


@dataclass(kw_only=True)
class Stage:
    """A runner and the test's end of everything it talks to."""

    runner: Runner
    topic: MemoryDispatches
    outcomes: MemoryOutcomes
    ledger: MemoryLedger

    async def until(self, probe: Callable[[], Any]) -> None:
        async with asyncio.timeout(10):
            while not probe():  # noqa: ASYNC110 - threads answer
                await asyncio.sleep(0.005)

    async def grant(self, task_id: str, number: int = 1) -> Grant:
        def ask() -> Any:
            candidate = Candidate(
                reservation_id=f"{task_id}:0:{number}",
                task_id=task_id,
                fleet="default",
                demands={},
                deadline_ms=0,
            )
            return self.ledger.exchange(Exchange(shard=0, owner_epoch=1, candidates=[candidate])).grants

        await self.until(ask)
        return ask()[0]  # type: ignore[no-any-return]

    async def send(self, type_: str, task_id: str, number: int = 1, **over: Any) -> Dispatch:
        dispatch = await self.order(type_, task_id, number, **over)
        self.topic.append(self.ledger.books.runners["default", NAME].partition, CODEC.encode(dispatch))
        return dispatch

    async def order(self, type_: str, task_id: str, number: int = 1, **over: Any) -> Dispatch:
        grant = await self.grant(task_id, number)
        now_ms = SystemClock().now_ms()
        values: dict[str, Any] = {
            "task_id": task_id, "tenant": "t", "run_id": "r", "key": "k", "type": type_, "shard": 1, "generation": 0,
            "dispatch_no": number, "attempt": 1, "runner": grant.runner, "deadline_ms": now_ms + 60_000,
            "latest_start_ms": now_ms + 60_000, "granted": dict(grant.granted), "granted_ms": grant.granted_ms,
        }  # fmt: skip
        return Dispatch(**values | over)

    def of(self, task_id: str) -> list[tuple[str, str]]:
        return [(o.kind, o.code) for _, o in self.outcomes.written if o.task_id == task_id]


@asynccontextmanager
async def staged(*agents: Any, grace_ms: int = 5_000) -> AsyncIterator[Stage]:
    clock, metrics, slots, pace = SystemClock(), RunnerMetrics(), Slots(4), Pace(slots=4)
    ledger = MemoryLedger(limits=Limits(resources={}), shards=1, clock=clock)
    ledger.reconcile(shard=0, owner_epoch=1, seen_epoch="", live=[])
    outcomes, topic = MemoryOutcomes(), MemoryDispatches()
    leases = Leases(ledger, runner=NAME, clock=clock, sleep=sleep, lanes=(Inline(), Inline()))
    reporter = Reporter(outcomes, runner=NAME, clock=clock, sleep=sleep)
    execution = Execution(
        agents={a.type: a for a in agents}, slots=slots, leases=leases, reporter=reporter, metrics=metrics,
        pace=pace, clock=clock, sleep=sleep,
    )  # fmt: skip
    desk = Desk(
        runner=NAME,
        topic="laxity.dispatch.default",
        codec=CODEC,
        execution=execution,
        reporter=reporter,
        metrics=metrics,
    )
    runner = Runner(
        name=NAME, fleet="default", consumer=topic, leases=leases, execution=execution, desk=desk, slots=slots,
        pace=pace, metrics=metrics, clock=clock, sleep=sleep, grace_ms=grace_ms,
    )  # fmt: skip
    stage = Stage(runner=runner, topic=topic, outcomes=outcomes, ledger=ledger)
    running = asyncio.create_task(runner.run())
    try:
        yield stage
    finally:
        runner.stop()
        async with asyncio.timeout(20):
            await asyncio.gather(running, return_exceptions=True)
    assert topic.closed


@agent("quick")
async def quick(ctx: AgentContext) -> int:
    return ctx.attempt


def holding(gate: asyncio.Event, ran: list[str]) -> Any:
    @agent("hold")
    async def hold(ctx: AgentContext) -> None:
        ran.append(ctx.task_id)
        await gate.wait()

    return hold


async def test_it_registers_only_while_it_has_a_partition_and_takes_the_lowest() -> None:
    async with staged(quick) as stage:
        assert not stage.runner.ready()
        stage.topic.assign(3, 2)
        await stage.until(stage.runner.ready)
        assert (await stage.grant("a")).partition == 2
        stage.topic.revoke(2)
        await stage.until(lambda: stage.ledger.books.runners["default", NAME].partition == 3)
        stage.topic.revoke(3)
        await stage.until(lambda: stage.ledger.books.runners["default", NAME].credit == 0)
        assert not stage.runner.ready()
        assert stage.runner.alive()


async def test_a_dispatch_is_carried_out_and_its_offset_committed() -> None:
    async with staged(quick) as stage:
        stage.topic.assign(0)
        await stage.send("quick", "a", attempt=2)
        await stage.until(lambda: stage.of("a") == [("started", ""), ("succeeded", "")])
        await stage.until(lambda: stage.topic.committed == {0: 1})
        assert stage.outcomes.last.result == b"2"
        await stage.until(lambda: stage.ledger.holders("fleet.default") == [])


async def test_redelivered_and_foreign_dispatches_are_answered_not_run() -> None:
    async with staged(quick) as stage:
        old = Dispatch(
            task_id="old", tenant="t", run_id="r", key="k", type="quick", shard=3, generation=1, dispatch_no=7,
            attempt=1, runner="dead", deadline_ms=2**50, latest_start_ms=2**50,
        )  # fmt: skip
        stage.topic.append(0, CODEC.encode(old))
        stage.topic.assign(0)
        await stage.until(lambda: stage.of("old") == [("bounced", "redelivered")])
        shard, outcome = stage.outcomes.written[0]
        assert (shard, outcome.generation, outcome.dispatch_no) == (3, 1, 7)
        await stage.until(stage.runner.ready)
        await stage.send("quick", "foreign", runner="somebody")
        await stage.until(lambda: stage.of("foreign") == [("bounced", "other_runner")])
        await stage.until(lambda: stage.topic.committed == {0: 2})


async def test_a_partition_that_comes_back_disturbs_nothing_that_runs() -> None:
    gate, ran = asyncio.Event(), list[str]()
    async with staged(holding(gate, ran)) as stage:
        stage.topic.assign(0)
        await stage.send("hold", "a")
        await stage.until(lambda: ran == ["a"])
        stage.topic.revoke(0)
        await stage.until(lambda: not stage.runner._intake.assignment)
        stage.topic.assign(0)
        await stage.until(lambda: stage.runner._intake.assignment)
        await stage.send("hold", "b")
        await stage.until(lambda: ran == ["a", "b"])
        assert stage.of("a") == [("started", "")]
        gate.set()
        await stage.until(lambda: stage.of("a") == [("started", ""), ("succeeded", "")])
        await stage.until(lambda: stage.topic.committed == {0: 2})
        assert ran == ["a", "b"]


async def test_poison_goes_to_a_shard_by_its_key_and_the_next_record_flows() -> None:
    async with staged(quick) as stage:
        stage.topic.assign(0)
        await stage.until(stage.runner.ready)
        stage.topic.append(0, b"junk", key=b"some key")
        await stage.send("quick", "a")
        await stage.until(lambda: ("succeeded", "") in stage.of("a"))
        shard, report = next((s, o) for s, o in stage.outcomes.written if o.code == "poison")
        assert shard == murmur2(b"some key") % 4
        assert report.original is not None
        assert (report.original.value, report.original.key, report.original.offset) == (
            b"junk",
            b"some key",
            0,
        )
        await stage.until(lambda: stage.topic.committed == {0: 2})


async def test_the_headers_of_poison_say_whose_it_is() -> None:
    async with staged(quick) as stage:
        stage.topic.assign(0)
        await stage.until(stage.runner.ready)
        address = Address(shard=2, task_id="0" * 32, generation=1, dispatch_no=7)
        stage.topic.append(0, b"junk", headers=headers_of(address, "high"))
        nowhere = Address(shard=99, task_id="1" * 32, generation=1, dispatch_no=7)
        stage.topic.append(0, b"junk", headers=headers_of(nowhere, "high"))
        await stage.until(lambda: len(stage.outcomes.written) == 2)
        (shard, named), (_, unnamed) = stage.outcomes.written
        assert (shard, named.task_id, named.generation, named.dispatch_no) == (2, "0" * 32, 1, 7)
        assert (named.kind, named.code, named.original is not None) == ("failed", "poison", True)
        assert (unnamed.task_id, unnamed.code) == ("", "poison")


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"shard": 99}, "shard 99: there are 4"),
        ({"shard": -1}, "shard -1"),
        ({"task_id": "t" * 65}, "task_id"),
    ],
)
async def test_an_order_that_nobody_could_be_told_of_is_poison_not_the_runners_end(
    over: dict[str, Any], said: str
) -> None:
    async with staged(quick) as stage:
        stage.topic.assign(0)
        dispatch = await stage.order("quick", "forged")
        stage.topic.append(0, CODEC.encode(replace(dispatch, **over)))
        await stage.until(lambda: stage.outcomes.written)
        assert (stage.outcomes.last.code, said in stage.outcomes.last.message) == ("poison", True)
        await stage.send("quick", "next")
        await stage.until(lambda: ("succeeded", "") in stage.of("next"))


async def test_poison_that_inflated_beyond_what_outcomes_take_is_reported_by_its_place() -> None:
    async with staged(quick) as stage:
        stage.topic.assign(0)
        await stage.until(stage.runner.ready)
        stage.outcomes.refuse.append(NotWritten("too large", permanent=True))
        stage.topic.append(0, b"junk")
        await stage.until(lambda: stage.outcomes.written)
        report = stage.outcomes.last
        assert report.original is not None
        assert (report.original.offset, report.original.value) == (0, None)
        assert report.message.endswith(f"; 4 bytes, CRC-32 {crc32(b'junk'):08x}")


async def test_a_stop_deregisters_finishes_what_runs_and_commits() -> None:
    gate, ran = asyncio.Event(), list[str]()
    async with staged(holding(gate, ran)) as stage:
        stage.topic.assign(0)
        await stage.send("hold", "a")
        await stage.until(lambda: ran == ["a"])
        stage.runner.stop()
        await stage.until(lambda: stage.ledger.free_credit("default") == 0)
        assert not stage.runner.ready()
        gate.set()
    assert stage.of("a") == [("started", ""), ("succeeded", "")]
    assert stage.topic.committed == {0: 1}


async def test_what_outlives_the_grace_is_reported_unknown() -> None:
    gate, ran = asyncio.Event(), list[str]()
    async with staged(holding(gate, ran), grace_ms=50) as stage:
        stage.topic.assign(0)
        await stage.send("hold", "a")
        await stage.until(lambda: ran == ["a"])
    assert stage.of("a") == [("started", ""), ("unknown", "drained")]


async def test_a_consumer_that_fails_ends_the_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    async with staged(quick) as stage:
        stage.topic.assign(0)
        await stage.until(stage.runner.ready)

        def fail(records_max: int, wait_ms: int) -> Any:
            raise ConsumerFailed("fenced")

        monkeypatch.setattr(stage.topic, "poll", fail)
        running = next(t for t in asyncio.all_tasks() if "Runner.run" in repr(t.get_coro()))
        with pytest.raises(RunnerFailed, match="fenced"):
            await asyncio.wait_for(asyncio.shield(running), 10)


async def test_what_runs_comes_to_its_end_although_nothing_more_can_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate, ran = asyncio.Event(), list[str]()
    async with staged(holding(gate, ran)) as stage:
        stage.topic.assign(0)
        await stage.send("hold", "a")
        await stage.until(lambda: ran == ["a"])

        def fail(records_max: int, wait_ms: int) -> Any:
            raise ConsumerFailed("fenced")

        monkeypatch.setattr(stage.topic, "poll", fail)
        running = next(t for t in asyncio.all_tasks() if "Runner.run" in repr(t.get_coro()))
        await stage.until(stage.runner._stop.is_set)
        gate.set()
        with pytest.raises(RunnerFailed, match="fenced"):
            await asyncio.wait_for(asyncio.shield(running), 10)
        assert stage.of("a") == [("started", ""), ("succeeded", "")]


async def test_a_bug_ends_the_runner_instead_of_hanging_its_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    async with staged(quick) as stage:
        stage.topic.assign(0)
        monkeypatch.setattr(stage.runner._execution, "_attempt", lambda *_: 1 / 0)
        running = next(t for t in asyncio.all_tasks() if "Runner.run" in repr(t.get_coro()))
        await stage.send("quick", "a")
        with pytest.raises(RunnerFailed, match="division by zero"):
            await asyncio.wait_for(asyncio.shield(running), 10)


async def test_registration_survives_a_ledger_that_is_away_for_a_while() -> None:
    async with staged(quick) as stage:
        stage.topic.assign(0)
        await stage.until(stage.runner.ready)
        stage.ledger.available = False
        await stage.until(lambda: not stage.runner.ready())
        stage.ledger.available = True
        await stage.until(stage.runner.ready)
        await stage.send("quick", "a")
        await stage.until(lambda: ("succeeded", "") in stage.of("a"))


async def test_a_dispatch_on_another_of_its_partitions_runs_all_the_same() -> None:
    """It was granted before the lowest partition came: the registration has moved, the order still counts."""
    async with staged(quick) as stage:
        stage.topic.assign(3)
        await stage.until(stage.runner.ready)
        order = await stage.order("quick", "a")
        stage.topic.assign(1)
        await stage.until(lambda: stage.ledger.books.runners["default", NAME].partition == 1)
        stage.topic.append(3, CODEC.encode(order))
        await stage.until(lambda: stage.of("a") == [("started", ""), ("succeeded", "")])


async def test_a_broker_that_does_not_let_it_go_does_not_hold_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laxity.consumers.runner.LEAVE_MS", 50)
    answers = threading.Event()
    async with staged(quick) as stage:
        stage.topic.assign(0)
        await stage.until(stage.runner.ready)
        leave = stage.topic.close

        def close(positions: Any) -> None:
            answers.wait(10)
            leave(positions)

        monkeypatch.setattr(stage.topic, "close", close)
        running = next(t for t in asyncio.all_tasks() if "Runner.run" in repr(t.get_coro()))
        stage.runner.stop()
        await asyncio.wait_for(asyncio.shield(running), 10)
        assert not stage.topic.closed
        answers.set()
        await stage.until(lambda: stage.topic.closed)


def test_a_runners_name_is_never_used_twice() -> None:
    clock = SystemClock()
    assert runner_name(clock) != runner_name(clock)
