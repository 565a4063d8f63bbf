"""One attempt as a pipeline: resolve, in time, place, claim, started, perform, judge, report, finished, release.

Each refusal before the claim is an answer (`bounced`) and spends no attempt. No agent runs before its `started` is durable, no lease is
released before its outcome is durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog

from laxity.consumers.agents import AnyAgent
from laxity.consumers.context import Attempt, Calls
from laxity.consumers.errors import LeaseLost, NotApplied, NotWritten
from laxity.consumers.judging import judge, judge_reconciled, stopped
from laxity.consumers.leases import CLAIM_MS_MAX, Lease, Leases, Sleep, Stop
from laxity.consumers.metrics import RunnerMetrics
from laxity.consumers.pace import Pace
from laxity.consumers.payloads import PayloadMismatch
from laxity.consumers.performing import perform
from laxity.consumers.reports import Reporter, Verdict
from laxity.consumers.slots import Slot, Slots, SlotsClosed, slot_of
from laxity.schemas.crashpoints import reach
from laxity.schemas.identity import reservation_id
from laxity.schemas.limits import ESTIMATE_MS_MAX
from laxity.schemas.records import Dispatch
from laxity.schemas.timing import Clock

ACTIVE_MS_MAX: Final = ESTIMATE_MS_MAX  # no attempt runs longer, whatever its deadline
MISSING_TOLD_MAX: Final = 100  # types without an agent that are logged: types are made by whoever publishes
DROPPED: Final = frozenset({"taken"})  # verdicts that need no answer: whoever has it reports

_log = structlog.get_logger("laxity.agents")
Finished = Callable[[], None]


class Execution:
    """Carries out dispatches, each in a coroutine of its own."""

    def __init__(
        self,
        *,
        agents: Mapping[str, AnyAgent],
        slots: Slots,
        leases: Leases,
        reporter: Reporter,
        metrics: RunnerMetrics,
        pace: Pace,
        clock: Clock,
        sleep: Sleep,
    ) -> None:
        self._agents = agents
        self._slots = slots
        self._leases = leases
        self._calls: Calls = leases
        self._reporter = reporter
        self._metrics = metrics
        self._pace = pace
        self._clock = clock
        self._sleep = sleep
        self._draining = False
        self._missing: set[str] = set()

    async def execute(self, dispatch: Dispatch, finished: Finished) -> None:
        """Ends once the outcome is durable and the lease released. `finished` is called in between: the record is done with."""
        taken = self._refusal(dispatch) or await self._take_and_carry_out(dispatch)
        if isinstance(taken, str):
            await self._bounce(dispatch, taken, finished)
        else:
            await self._conclude(*taken, finished)

    def drain(self) -> None:
        """Begin nothing any more: what waits for a slot is bounced at once."""
        self._draining = True
        self._slots.close()

    async def _take_and_carry_out(self, dispatch: Dispatch) -> tuple[Attempt, Verdict | None] | str:
        """In a slot: claim and run. The attempt and its verdict, or why it did not begin."""
        received_ms = self._clock.monotonic_ms()
        try:
            async with slot_of(self._slots, dispatch.deadline_ms) as slot:
                began_ms = self._clock.monotonic_ms()
                lease = await self._take_up(dispatch, received_ms)
                if isinstance(lease, str):
                    return lease
                attempt = self._attempt(dispatch, lease, slot)
                verdict = await self._carry_out(self._agents[dispatch.type], attempt)
                self._pace.took(self._clock.monotonic_ms() - began_ms)
                return attempt, verdict
        except SlotsClosed:
            return "draining"

    def _refusal(self, dispatch: Dispatch) -> str | None:
        """Why this dispatch is not to be carried out here and now."""
        if self._draining:
            return "draining"
        if dispatch.type not in self._agents:
            return "no_agent"
        if dispatch.firm and self._clock.now_ms() > dispatch.latest_start_ms:
            return "late"
        return None

    async def _take_up(self, dispatch: Dispatch, received_ms: int) -> Lease | str:
        """The lease, or why there is none. Time passed while it waited for a slot, so the refusals count again."""
        refusal = self._refusal(dispatch)
        if refusal is not None:
            return refusal
        name = reservation_id(dispatch.task_id, dispatch.generation, dispatch.dispatch_no)
        claimed = await self._leases.claim(name, give_up_ms=received_ms + CLAIM_MS_MAX)
        self._metrics.claims.labels("claimed" if isinstance(claimed, Lease) else claimed).inc()
        return claimed

    def _attempt(self, dispatch: Dispatch, lease: Lease, slot: Slot) -> Attempt:
        async def save(data: bytes, usage: Mapping[str, int]) -> None:
            if not await self._reporter.progress(dispatch, data, usage, while_=self._holds(lease)):
                raise LeaseLost(f"{lease.reservation_id}: the checkpoint may not be durable")

        attempt = Attempt(
            dispatch=dispatch,
            lease=lease,
            slot=slot,
            clock=self._clock,
            sleep=self._sleep,
            calls=self._calls,
            save=save,
            loop=asyncio.get_running_loop(),
            first_calls=dict(dispatch.granted),
            checkpoint=dispatch.checkpoint,
        )
        self._limit(attempt)
        return attempt

    def _limit(self, attempt: Attempt) -> None:
        """A firm task ends at its deadline, any other after ACTIVE_MS_MAX."""
        active_ms, dispatch = ACTIVE_MS_MAX, attempt.dispatch
        left_ms = max(dispatch.deadline_ms - self._clock.now_ms(), 0)
        if dispatch.firm and left_ms < active_ms:
            active_ms, attempt.lease.stop_at_reason = left_ms, Stop.DEADLINE
        attempt.lease.stop_at_ms = self._clock.monotonic_ms() + active_ms

    async def _carry_out(self, agent: AnyAgent, attempt: Attempt) -> Verdict | None:
        """From the claim to the verdict."""
        dispatch, lease = attempt.dispatch, attempt.lease
        try:
            payload = (dispatch.payload, dispatch.content_type)
            arguments = (agent.decode(*payload),) if agent.takes_payload else ()
        except PayloadMismatch as error:
            return Verdict(kind="failed", code="poison", message=str(error))
        started = await self._reporter.started(dispatch, while_=self._holds(lease))
        if not started or not lease.holds(self._clock.monotonic_ms()):
            return stopped(lease.stop or Stop.LEASE_LOST, began=False, checkpoint=dispatch.checkpoint)
        with self._metrics.running.track_inprogress(), self._metrics.run_seconds.time():
            return await self._run(agent, attempt, arguments)

    async def _run(self, agent: AnyAgent, attempt: Attempt, arguments: tuple[Any, ...]) -> Verdict | None:
        """The agent's verdict; after an unknown outcome first that of its reconcile function, if the task asks for it."""
        dispatch = attempt.dispatch
        if dispatch.after_unknown and dispatch.on_unknown == "reconcile":
            if agent.reconciler is None:
                text = "the task says reconcile, but its agent has no reconcile function"
                return Verdict(kind="failed", code="no_reconcile", message=text)
            asked = await perform(agent.reconciler, attempt, arguments)
            if not _says_not_applied(asked):
                return judge_reconciled(agent, attempt, asked)
            if not attempt.lease.holds(self._clock.monotonic_ms()):
                return judge_reconciled(agent, attempt, _lost(attempt))
        work = await perform(agent.function, attempt, arguments)
        attempt.answered()
        reach("after_call")
        return judge(agent, attempt, work)

    async def _conclude(self, attempt: Attempt, verdict: Verdict | None, finished: Finished) -> None:
        dispatch, lease = attempt.dispatch, attempt.lease
        if verdict is None:
            _log.info("attempt.left_to_its_lease", task=dispatch.task_id, stop=lease.stop)
            self._metrics.outcomes.labels("none").inc()
        else:
            await self._report(attempt, verdict)
        reach("after_result")
        self._metrics.call_wait_seconds.observe(attempt.waited_ms / 1_000)
        self._leases.forget(lease)
        finished()
        if verdict is not None and not await self._leases.release(lease, attempt.used):
            _log.warning("lease.not_released", task=dispatch.task_id, until="it lapses")

    async def _report(self, attempt: Attempt, verdict: Verdict) -> None:
        dispatch, used, usage = attempt.dispatch, attempt.used, attempt.take_usage()
        try:
            await self._reporter.ended(dispatch, verdict, used=used, usage=usage)
        except NotWritten as error:
            # the broker takes no such record, however often it is offered: the work is done, its result cannot be kept
            refused = Verdict(kind="failed", code="outcome_contract", message=str(error))
            await self._reporter.ended(dispatch, refused, used={}, usage={})
            verdict = refused
        self._metrics.outcomes.labels(verdict.kind).inc()

    async def _bounce(self, dispatch: Dispatch, code: str, finished: Finished) -> None:
        if code == "no_agent":
            self._tell_missing(dispatch.type)
        if code not in DROPPED:
            await self._reporter.bounced(dispatch, code)
            self._metrics.bounces.labels(code).inc()
        finished()

    def _tell_missing(self, type_: str) -> None:
        """Once for each type: its tasks wait until a runner of the fleet knows it."""
        if type_ not in self._missing and len(self._missing) < MISSING_TOLD_MAX:
            self._missing.add(type_)
            _log.warning("agent.missing", type=type_, known=sorted(self._agents))

    def _holds(self, lease: Lease) -> Callable[[], bool]:
        return lambda: lease.holds(self._clock.monotonic_ms())


def _says_not_applied(asked: asyncio.Future[Any]) -> bool:
    """Returned or raised, the class or an instance of it."""
    if not asked.done() or asked.cancelled():
        return False
    answer = asked.exception() or asked.result()
    return answer is NotApplied or isinstance(answer, NotApplied)


def _lost(attempt: Attempt) -> asyncio.Future[Any]:
    future = attempt.loop.create_future()
    future.set_exception(LeaseLost(attempt.lease.reservation_id))
    return future
