"""A runner and a provider in memory: the effect protocol step by step, with a chance to crash between any two of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from laxity.schemas.identity import effect_key, reservation_id
from laxity.schemas.records import Dispatch, Outcome
from laxity.schemas.timing import Clock
from laxity.streams.ledger.limits import LEASE_TTL_MS
from laxity.streams.ledger.protocol import LedgerUnavailable, RunnerLedger
from laxity.streams.simulator.host import World, never

RUNNER_STEPS = (
    "before_claim",
    "after_claim",
    "before_call",
    "in_call",
    "after_call",
    "after_result",
    "before_commit",
)
REGISTRATION_TTL_MS = 3_000
SELF_FENCE_MS = LEASE_TTL_MS - 3_000


@dataclass(slots=True, kw_only=True)
class Provider:
    """Keeps the effects it applied: (idempotency key, task id). `dedupe`: a key is applied once."""

    dedupe: bool = True
    effects: list[tuple[str, str]] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)

    def call(self, key: str, task_id: str) -> None:
        """Apply an effect, or answer from memory."""
        if not (self.dedupe and key in self._seen):
            self.effects.append((key, task_id))
        self._seen.add(key)


Verdict = Callable[[Dispatch], tuple[str, str, bool]]
"""What an agent makes of a dispatch: outcome kind, code, retryable."""


def success(_dispatch: Dispatch) -> tuple[str, str, bool]:
    """An agent that never fails."""
    return "succeeded", "", False


@dataclass(slots=True, kw_only=True)
class _Running:
    """A claimed dispatch and what comes next."""

    name: str
    dispatch: Dispatch
    go_on: Callable[[_Running], None]
    held_until_ms: int  # by the runner's own monotonic clock: a margin before the lease's end
    verdict: tuple[str, str, bool] = ("", "", False)
    calling: bool = False


class SimRunner:
    """One process of one fleet with one partition of its dispatch topic."""

    def __init__(
        self,
        name: str,
        world: World,
        ledger: RunnerLedger,
        provider: Provider,
        clock: Clock,
        *,
        partition: int,
        fleet: str = "default",
        slots: int = 4,
        verdict: Verdict = success,
        reach: Callable[[str], None] = never,
    ) -> None:
        """What lies below the log's end now was sent to somebody else: it is bounced."""
        self.name, self._fleet, self._partition, self._slots = name, fleet, partition, slots
        self._world, self._ledger, self._provider, self._clock = world, ledger, provider, clock
        self._verdict, self._reach = verdict, reach
        topic = f"dispatch.{fleet}"
        self._topic = topic
        self._position = world.log.committed.get((topic, partition), 0)
        self._born = world.log.end(topic, partition)
        self._running: list[_Running] = []

    def register(self) -> None:
        """Announce the slots."""
        self._ledger.register(
            runner=self.name,
            fleet=self._fleet,
            partition=self._partition,
            credit=self._slots,
            ttl_ms=REGISTRATION_TTL_MS,
        )

    def tick(self) -> bool:
        """Register, take what came, go one step on with what runs, renew; whether anything was done. Raises Crash where `reach` says so."""
        try:
            self.register()
            moved = self._step()
            return self._take() or moved
        except LedgerUnavailable:
            return False

    def _take(self) -> bool:
        records = self._world.log.read(self._topic, self._partition, self._position)
        for record in records:
            dispatch = self._world.codec.decode(Dispatch, record.value)
            if record.offset < self._born:
                self._report(dispatch, "bounced", code="redelivered")
            else:
                self._begin(dispatch)
            self._position = record.offset + 1
        return bool(records)

    def _begin(self, dispatch: Dispatch) -> None:
        """Claim, or say why not."""
        name = reservation_id(dispatch.task_id, dispatch.generation, dispatch.dispatch_no)
        if dispatch.firm and self._clock.now_ms() > dispatch.latest_start_ms:
            self._report(dispatch, "bounced", code="late")
            return
        self._reach("before_claim")
        if self._ledger.claim(reservation_id=name, runner=self.name).verdict != "claimed":
            self._report(dispatch, "bounced", code="not_claimed")
            return
        self._reach("after_claim")
        until_ms = self._clock.monotonic_ms() + SELF_FENCE_MS
        self._running.append(
            _Running(name=name, dispatch=dispatch, go_on=self._report_start, held_until_ms=until_ms)
        )

    def _step(self) -> bool:
        """One step of each running task: the clock may move between any two."""
        running, self._running = self._running, []
        for task in running:
            task.go_on(task)
        if not self._running:
            self._world.log.committed[self._topic, self._partition] = self._position
        return bool(running)

    def _then(self, task: _Running, go_on: Callable[[_Running], None]) -> None:
        task.go_on = go_on
        self._running.append(task)

    def _report_start(self, task: _Running) -> None:
        self._report(task.dispatch, "started")
        self._then(task, self._perform)

    def _perform(self, task: _Running) -> None:
        """The fence is checked right before the call; a runner that slept through its lease asks no more."""
        if self._clock.monotonic_ms() >= task.held_until_ms:
            return
        order = self._ledger.renew(runner=self.name, reservation_ids=[task.name])[task.name]
        if order == "cancel":
            task.verdict = ("failed", "cancelled", False)
            self._then(task, self._report_end)
            return
        if order != "ok":
            return
        task.verdict = kind, _, _ = self._verdict(task.dispatch)
        self._reach("before_call")
        if kind == "succeeded":
            dispatch = task.dispatch
            key = effect_key(dispatch.tenant, dispatch.task_id, dispatch.effect_generation, "")
            self._provider.call(key, dispatch.task_id)
        task.calling = True
        self._reach("in_call")
        self._then(task, self._hear_answer)

    def _hear_answer(self, task: _Running) -> None:
        """However late: what it is worth, the shard decides."""
        task.calling = False
        self._reach("after_call")
        self._then(task, self._report_end)

    def calling(self) -> list[Dispatch]:
        """What is in a call and within its lease by our own clock."""
        now_ms = self._clock.monotonic_ms()
        return [task.dispatch for task in self._running if task.calling and now_ms < task.held_until_ms]

    def _report_end(self, task: _Running) -> None:
        kind, code, retryable = task.verdict
        self._report(task.dispatch, kind, code=code, retryable=retryable, result=b"{}")
        self._reach("after_result")
        self._then(task, self._release)

    def _release(self, task: _Running) -> None:
        self._ledger.release(reservation_id=task.name, runner=self.name, used={})
        self._reach("before_commit")

    def _report(
        self,
        dispatch: Dispatch,
        kind: str,
        *,
        code: str = "",
        retryable: bool = False,
        result: bytes | None = None,
    ) -> None:
        outcome = Outcome(
            kind=kind,
            task_id=dispatch.task_id,
            generation=dispatch.generation,
            dispatch_no=dispatch.dispatch_no,
            attempt=dispatch.attempt,
            runner=self.name,
            at_ms=self._clock.now_ms(),
            code=code,
            retryable=retryable,
            result=result,
        )
        value = self._world.codec.encode(outcome)
        key = dispatch.task_id.encode()
        self._world.log.append(("outcomes", dispatch.shard, key, value, ()), self._clock.now_ms())
