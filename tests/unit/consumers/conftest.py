"""A runner's parts around a ledger in memory, with time that only tests move."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from laxity.consumers.agents import AnyAgent
from laxity.consumers.execution import Execution
from laxity.consumers.leases import Leases
from laxity.consumers.metrics import RunnerMetrics
from laxity.consumers.pace import Pace
from laxity.consumers.reports import Reporter
from laxity.consumers.slots import Slots
from laxity.consumers.testing import Inline, ManualTime, MemoryOutcomes, settle
from laxity.schemas.records import Dispatch
from laxity.streams.ledger.limits import Limits, RateLimit, SlotLimit
from laxity.streams.ledger.memory import MemoryLedger
from laxity.streams.ledger.protocol import Call, Candidate, Exchange

RUNNER = "runner-1"


@dataclass(kw_only=True)
class World:
    """One runner's pipeline; `send` reserves in the ledger as a shard does."""

    time: ManualTime
    ledger: MemoryLedger
    outcomes: MemoryOutcomes
    slots: Slots
    leases: Leases
    execution: Execution
    metrics: RunnerMetrics
    reporter: Reporter
    finished: list[str] = field(default_factory=list)
    numbers: int = 0
    calls: list[int] = field(default_factory=list)  # amounts asked of the ledger for further calls

    def reserve(
        self, type_: str, payload: bytes = b"{}", *, demands: Mapping[str, int] | None = None, **over: Any
    ) -> Dispatch:
        """A dispatch whose reservation stands in the ledger for this runner."""
        now_ms = self.time.clock.now_ms()
        self.numbers += 1
        task_id = over.pop("task_id", f"task{self.numbers}")
        self.ledger.register(runner=RUNNER, fleet="default", partition=0, credit=1_000, ttl_ms=60_000)
        number = over.get("dispatch_no", 1)
        answer = self.ledger.exchange(
            Exchange(
                shard=0,
                owner_epoch=1,
                candidates=[
                    Candidate(
                        reservation_id=f"{task_id}:0:{number}",
                        task_id=task_id,
                        fleet="default",
                        demands=dict(demands or {}),
                        deadline_ms=now_ms,
                    )
                ],
            )
        )
        assert len(answer.grants) == 1, answer.refusals
        grant = answer.grants[0]
        values: dict[str, Any] = {
            "task_id": task_id, "tenant": "acme", "run_id": "run", "key": "key", "type": type_, "shard": 2,
            "generation": 0, "dispatch_no": number, "attempt": 1, "runner": grant.runner, "payload": payload,
            "deadline_ms": now_ms + 60_000, "latest_start_ms": now_ms + 50_000, "granted": dict(grant.granted),
            "granted_ms": grant.granted_ms,
        }  # fmt: skip
        return Dispatch(**values | over)

    def begin(self, dispatch: Dispatch) -> asyncio.Task[None]:
        """Execute beside the test."""
        return asyncio.get_running_loop().create_task(
            self.execution.execute(dispatch, lambda: self.finished.append(dispatch.task_id))
        )

    async def carry_out(self, dispatch: Dispatch) -> None:
        """Execute to the end."""
        async with asyncio.timeout(5):
            await self.begin(dispatch)

    async def beat(self, ms: int, every_ms: int = 200) -> None:
        """Let time pass as the runner does: renewals each TTL/3, sweeps in between."""
        for passed in range(every_ms, ms + 1, every_ms):
            await self.time.advance(every_ms)
            if passed % self.leases.renew_every_ms < every_ms:
                await self.leases.renew()
            self.leases.sweep()
            await settle()


LIMITS = Limits(
    resources={
        "llm": RateLimit(
            requests_per_minute=60_000, tokens_per_minute=60_000, burst_requests=10_000, burst_tokens=10_000
        ),
        "browser": SlotLimit(capacity=2),
    }
)

MakeWorld = Callable[..., World]


@pytest.fixture
async def make_world() -> MakeWorld:
    """world(agent, ..., slots=2)"""

    def make(*agents: AnyAgent, slots: int = 2) -> World:
        time = ManualTime()
        ledger = MemoryLedger(limits=LIMITS, shards=1, clock=time.clock)
        ledger.reconcile(shard=0, owner_epoch=1, seen_epoch="", live=[])
        time.clock.advance(60_000)  # buckets start empty
        outcomes = MemoryOutcomes()
        places = Slots(slots)
        metrics = RunnerMetrics()
        leases = Leases(ledger, runner=RUNNER, clock=time.clock, sleep=time.sleep, lanes=(Inline(), Inline()))
        reporter = Reporter(outcomes, runner=RUNNER, clock=time.clock, sleep=time.sleep)
        execution = Execution(
            agents={agent.type: agent for agent in agents},
            slots=places,
            leases=leases,
            reporter=reporter,
            metrics=metrics,
            pace=Pace(slots=slots),
            clock=time.clock,
            sleep=time.sleep,
        )
        world = World(
            time=time,
            ledger=ledger,
            outcomes=outcomes,
            slots=places,
            leases=leases,
            execution=execution,
            metrics=metrics,
            reporter=reporter,
        )
        ask = ledger.call

        def noted(**question: Any) -> Call:
            world.calls.append(question["amount"])
            return ask(**question)

        ledger.call = noted  # type: ignore[method-assign]
        return world

    return make
