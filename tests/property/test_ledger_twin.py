"""The twin against the scripts on a real server: any sequence of operations gets the same answers and leaves the same memory.

An example is a string of bytes that a small world turns into operations; the time of both is moved by hand. A whole example goes
to the server in one pipeline. Examples: LAXITY_LEDGER_SEQUENCES (default 10,000); a run is repeated by LAXITY_LEDGER_SEED.
"""

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from dataclasses import replace as altered
from typing import Any

import pytest
from chaos.ledger_memory import DUMP, memory_of_server, memory_of_twin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from laxity.schemas.timing import ManualClock
from laxity.streams.ledger import decisions, pages, reconciliation, scripts, vetting
from laxity.streams.ledger.decisions import Decision
from laxity.streams.ledger.limits import CREDIT_MAX, HELD_MAX, Limits, RateLimit, SlotLimit
from laxity.streams.ledger.memory import MemoryLedger
from laxity.streams.ledger.protocol import (
    Answer,
    Call,
    Candidate,
    Claim,
    Exchange,
    Live,
    Reconciled,
    Report,
    Settle,
)
from laxity.streams.ledger.scripts import DECISIONS, channel, keys, script
from laxity.streams.ledger.wire import Wire

SEQUENCES = int(os.environ.get("LAXITY_LEDGER_SEQUENCES", "10000"))
SEED = int(os.environ.get("LAXITY_LEDGER_SEED") or secrets.randbelow(2**48))
PER_PIPELINE = 20  # sequences in one round trip
TTL_MS = 1_000
SHARDS = 2
PREFIX = f"t{secrets.token_hex(4)}."
KEYS = keys(PREFIX)
COUNT = len(KEYS)
LIMITS = Limits(
    resources={
        "llm": RateLimit(
            requests_per_minute=600, tokens_per_minute=6_000, burst_requests=10, burst_tokens=500
        ),
        "billed": RateLimit(
            requests_per_minute=0, tokens_per_minute=70_000, burst_requests=0, burst_tokens=99, refund=True
        ),
        "search": RateLimit(requests_per_minute=7, tokens_per_minute=0, burst_requests=2, burst_tokens=0),
        "gpu": SlotLimit(capacity=2),
        "cpu": SlotLimit(capacity=3),
        "account": SlotLimit(capacity=1, keyed=True),
        "room": SlotLimit(capacity=2, keyed=True),
    }
)
OTHER_LIMITS = Limits(
    resources={
        **LIMITS.resources,
        "llm": RateLimit(requests_per_minute=60, tokens_per_minute=600, burst_requests=1, burst_tokens=50),
        "gpu": SlotLimit(capacity=1),
    }
)
DEMANDS = (
    "llm",
    "billed",
    "search",
    "gpu",
    "cpu",
    "account:a",
    "account:b",
    "room:a",
    "ghost",
    "account",
    "gpu:x",
)
AMOUNTS = (1, 2, 0, 3, 60, 500, 501, 6_001, 2**53 - 1)
RUNNERS = (("f", "r1"), ("f", "r2"), ("g", "r/ü"), ("f", "z"))
PASSES_MS = (0, 1, 50, 333, 999, 1_000, 1_001, 5_000, 60_000, 10**9)


class ExhaustedError(Exception):
    """The example has no bytes left."""


@dataclass
class Bytes:
    """Choices out of an example."""

    data: bytes
    at: int = 0

    def pick(self, options: Any) -> Any:
        return options[self.below(len(options))]

    def below(self, limit: int) -> int:
        if self.at >= len(self.data):
            raise ExhaustedError
        self.at += 1
        return self.data[self.at - 1] % limit

    def some(self, option: Callable[[], Any], most: int) -> list[Any]:
        return [option() for _ in range(self.below(most + 1))]


@dataclass
class Step:
    """One operation: what the twin said, and the commands that ask the server the same."""

    name: str
    expected: Any
    woken: list[str]
    commands: list[tuple[Any, ...]]
    decision: Decision[Any] | None


@dataclass
class World:
    """The twin, driven by bytes; every operation is also written down for the server."""

    choose: Bytes
    clock: ManualClock = field(default_factory=ManualClock)
    steps: list[Step] = field(default_factory=list)
    epoch_of: list[int] = field(default_factory=lambda: [1, 1])
    seen_of: list[str] = field(default_factory=lambda: ["", ""])
    limits: Limits = LIMITS
    woken: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.twin = MemoryLedger(
            limits=LIMITS, shards=SHARDS, clock=self.clock, ttl_ms=TTL_MS, epochs=lambda: self.new_key
        )
        self.twin.listen(self.woken.append)
        self.new_key = ""

    def run(self) -> None:
        try:
            for shard in range(self.choose.below(SHARDS + 1)):
                self.reconcile(shard, [])
            for fleet, runner in RUNNERS[: self.choose.below(4)]:
                self.register(fleet, runner, 2)
            while True:
                self.operation()
        except ExhaustedError:
            pass

    def operation(self) -> None:
        kinds: tuple[tuple[int, Callable[[], None]], ...] = (
            (5, self.exchange), (1, self.step_clock), (2, self.claim), (1, self.renew), (1, self.call), (1, self.release),
            (1, self.announce), (1, self.deregister), (1, self.report), (1, self.takeover), (1, self.calamity),
        )  # fmt: skip
        self.choose.pick([kind for weight, kind in kinds for _ in range(weight)])()

    def announce(self) -> None:
        fleet, runner = self.choose.pick(RUNNERS)
        self.register(fleet, runner, self.choose.pick((2, 0, 1, 5, CREDIT_MAX)))

    def report(self) -> None:
        self.reconcile(self.choose.below(SHARDS), self.live())

    # Operations

    def exchange(self) -> None:
        shard = self.choose.below(SHARDS)
        parts = self.choose.below(32)
        request = Exchange(
            shard=shard,
            owner_epoch=max(0, self.epoch_of[shard] - (self.choose.below(8) == 7)),
            acknowledged=self.choose.some(self.id_of, 3) if parts & 1 else (),
            settles=self.choose.some(self.settle, 2) if parts & 2 else (),
            revokes=self.choose.some(self.id_of, 2) if parts & 4 else (),
            cancels=self.choose.some(self.id_of, 2) if parts & 8 else (),
            candidates=self.choose.some(lambda: self.candidate(shard), 4) if parts < 28 else (),
        )
        answer = self.twin.exchange(request)
        own = tuple(dict.fromkeys(self.woken))
        self.note("exchange", altered(answer, woken=own), decisions.exchange(request, self.limits))

    def candidate(self, shard: int) -> Candidate:
        demands = {}
        for _ in range(self.choose.below(4)):
            demands[self.choose.pick(DEMANDS)] = self.amount()
        number = self.choose.below(12)
        fleet = "f" if number < 9 else self.choose.pick(("g", "h"))
        return Candidate(
            reservation_id=self.id_of(shard), task_id="t", fleet=fleet, demands=demands, deadline_ms=0
        )

    def amount(self) -> int:
        number = self.choose.below(24)
        return AMOUNTS[number] if number < len(AMOUNTS) else 1

    def id_of(self, shard: int | None = None) -> str:
        known = sorted(self.twin.books.reservations)
        if shard is None and known and self.choose.below(4):
            return str(self.choose.pick(known))
        number = self.choose.below(24)
        return f"{'abc'[number % 3]}{shard if shard is not None else number // 12}:0:{number // 3 % 4}"

    def settle(self) -> Settle:
        return Settle(reservation_id=self.id_of(), used=self.used(), unclaimed=self.choose.below(2) == 1)

    def used(self) -> dict[str, int]:
        return {
            self.choose.pick(("llm", "billed", "gpu")): self.amount() for _ in range(self.choose.below(3))
        }

    def standing(self) -> tuple[str, str]:
        """Mostly a reservation and its runner, else any."""
        known = sorted(self.twin.books.reservations)
        if known and self.choose.below(8):
            reservation_id = self.choose.pick(known)
            runner = self.twin.books.reservations[reservation_id].runner
            return reservation_id, runner if self.choose.below(8) else "r1"
        return self.id_of(), self.choose.pick(RUNNERS)[1]

    def claim(self) -> None:
        reservation_id, runner = self.standing()
        result = self.twin.claim(reservation_id=reservation_id, runner=runner)
        self.note("claim", result, decisions.claim(reservation_id=reservation_id, runner=runner))

    def renew(self) -> None:
        asked = [self.standing() for _ in range(1 + self.choose.below(3))]
        runner, ids = asked[0][1], [one for one, _ in asked]
        result = self.twin.renew(runner=runner, reservation_ids=ids)
        self.note("renew", result, decisions.renew(runner=runner, reservation_ids=ids))

    def call(self) -> None:
        reservation_id, runner = self.standing()
        resource, amount = self.choose.pick(("llm", "billed", "search")), self.amount()
        asked = {"reservation_id": reservation_id, "runner": runner, "resource": resource, "amount": amount}
        limit = self.limits.of_demand(resource)
        assert isinstance(limit, RateLimit)
        self.note("call", self.twin.call(**asked), decisions.call(**asked, limit=limit))

    def release(self) -> None:
        reservation_id, runner = self.standing()
        asked: dict[str, Any] = {"reservation_id": reservation_id, "runner": runner, "used": self.used()}
        self.note("release", self.twin.release(**asked), decisions.release(**asked))

    def register(self, fleet: str, runner: str, credit: int) -> None:
        asked: dict[str, Any] = {
            "runner": runner, "fleet": fleet, "partition": self.choose.below(3), "credit": credit,
            "ttl_ms": self.choose.pick((1_000, 1, 5_000, 60_000)),
        }  # fmt: skip
        self.note("register", self.twin.register(**asked), decisions.register(**asked))

    def deregister(self) -> None:
        fleet, runner = self.choose.pick(RUNNERS)
        self.twin.deregister(runner=runner, fleet=fleet)
        self.note("deregister", None, decisions.deregister(runner=runner, fleet=fleet))

    def live(self) -> list[Live]:
        """Mostly what the ledger knows, and some that it does not; now and then little of it, or nothing."""
        ids = sorted(self.twin.books.reservations) + self.choose.some(self.id_of, 3)
        odds = self.choose.pick((5, 5, 2, 1))
        return [self.live_one(i) for i in dict.fromkeys(ids) if self.choose.below(odds)]

    def live_one(self, reservation_id: str) -> Live:
        fleet, runner = self.choose.pick(RUNNERS)
        granted = {"gpu": 1, "llm": 5, "account:a": 1, "removed": 2, f"fleet.{fleet}": 1}
        if self.choose.below(8) == 0:
            granted = {"cpu": min(self.amount(), HELD_MAX)}
        return Live(
            reservation_id=reservation_id,
            runner=runner,
            partition=1,
            granted=granted,
            active=self.choose.below(4) > 0,
        )

    def reconcile(self, shard: int, live: list[Live]) -> None:
        """Page by page; now and then the memory is lost between two."""
        asked = pages.pages(
            shard=shard,
            owner_epoch=max(0, self.epoch_of[shard] - (self.choose.below(8) == 7)),
            seen_epoch=self.seen_of[shard],
            live=live,
        )
        noted = self.choose.below(4) > 0
        try:
            page = next(asked)
            while True:
                page = asked.send(self.report_page(page))
                if self.choose.below(32) == 0:
                    self.calamity()
        except StopIteration as end:
            if end.value.status == "ok" and noted:
                self.seen_of[shard] = end.value.epoch

    def report_page(self, page: Report) -> Reconciled:
        self.new_key = f"k{len(self.steps)}"
        found = self.twin.report(page)
        self.note("reconcile", found, decisions.report(page, self.limits, new_key=self.new_key))
        return found

    def takeover(self) -> None:
        shard = self.choose.below(SHARDS)
        self.epoch_of[shard] += 1
        if self.choose.below(4):
            self.report()

    def step_clock(self) -> None:
        if self.choose.below(16) == 15:
            self.clock.step(-700)
        else:
            self.clock.advance(self.choose.pick(PASSES_MS))

    def calamity(self) -> None:
        match self.choose.below(4):
            case 0:
                self.twin.lose()
                self.steps.append(Step("lose", None, [], [("DEL", *KEYS)], None))
            case 1:
                self.twin.restart()
            case _:
                self.limits = self.twin.limits = OTHER_LIMITS if self.limits is LIMITS else LIMITS

    def note(self, name: str, expected: Any, decision: Decision[Any]) -> None:
        common = (self.clock.now_ms(), self.twin.run_id, channel(PREFIX), TTL_MS, SHARDS)
        commands = [
            ("EVALSHA", script(step).sha, COUNT, *KEYS, *common, *arguments)
            for step, arguments in decision.steps
        ]
        self.steps.append(Step(name, expected, list(self.woken), commands, decision))
        self.woken.clear()


def compare(wire: Wire, dump_sha: str, examples: list[bytes]) -> None:
    """Run the worlds; ask the server everything in one pipeline; hold each answer and the memory after each world against the twin's."""
    worlds = [World(Bytes(data)) for data in examples]
    commands: list[tuple[Any, ...]] = []
    for world in worlds:
        world.run()
        commands.append(("DEL", *KEYS))
        commands += [command for step in world.steps for command in step.commands]
        commands.append(("EVALSHA", dump_sha, COUNT, *KEYS))
    replies = iter(wire._send(commands))
    for world in worlds:
        next(replies)
        for number, step in enumerate(world.steps):
            mine = [next(replies) for _ in step.commands]
            if step.decision is None:
                continue
            found = step.decision.read(mine)
            assert found == step.expected, f"step {number} {step.name}"
            woken = [name for reply in mine for name in reply[4]]
            assert woken == step.woken, f"step {number} {step.name} woke"
        assert memory_of_server(next(replies)) == memory_of_twin(world.twin)


@pytest.fixture(scope="module", autouse=True)
def _small_pages() -> Iterator[None]:
    """Pages of one, and two are looked at: a handful of reservations then takes several."""
    with pytest.MonkeyPatch.context() as patch:
        for where, name, value in (
            (pages, "REPORT_MAX", 1),
            (vetting, "REPORT_MAX", 1),
            (reconciliation, "LOOK_MAX", 2),
        ):
            patch.setattr(where, name, value)
        patch.setitem(scripts._CONSTANTS, "REPORT_MAX", 1)
        patch.setitem(scripts._CONSTANTS, "LOOK_MAX", 2)
        script.cache_clear()
        yield
    script.cache_clear()


@pytest.fixture(scope="module")
def wire(redis_url: str) -> Iterator[Wire]:
    wire = Wire(redis_url, timeout_s=10)
    wire._connected()
    wire._send([("SCRIPT", "LOAD", script(decision).text) for decision in DECISIONS])
    yield wire
    wire._send([("DEL", *KEYS)])
    wire.close()


@pytest.fixture(scope="module")
def dump_sha(wire: Wire) -> str:
    return str(wire._send([("SCRIPT", "LOAD", DUMP)])[0])


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_twin_and_scripts_agree(wire: Wire, dump_sha: str) -> None:
    agree(wire, dump_sha, SEQUENCES)


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_twin_and_scripts_agree_at_length(wire: Wire, dump_sha: str) -> None:
    agree(wire, dump_sha, 10 * SEQUENCES)


def agree(wire: Wire, dump_sha: str, sequences: int) -> None:
    """Reproducible noise. A failure prints the shortest string of bytes that still fails."""
    for start in range(SEED, SEED + sequences, PER_PIPELINE):
        examples = [_noise(number, 160) for number in range(start, start + PER_PIPELINE)]
        try:
            compare(wire, dump_sha, examples)
        except AssertionError as failure:
            shortest = _shortest(examples, lambda data: compare(wire, dump_sha, [data]))
            pytest.fail(f"LAXITY_LEDGER_SEED={start}, bytes.fromhex({shortest.hex()!r}): {failure}")


@pytest.mark.integration
@settings(
    max_examples=max(1, SEQUENCES // 20),
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(data=st.binary(max_size=200))
def test_twin_and_scripts_agree_on_odd_sequences(wire: Wire, dump_sha: str, data: bytes) -> None:
    """Hypothesis likes repeated and extreme bytes, which noise hardly has."""
    compare(wire, dump_sha, [data])


def _shortest(examples: list[bytes], check: Callable[[bytes], None]) -> bytes:
    def fails(data: bytes) -> bool:
        try:
            check(data)
        except AssertionError:
            return True
        return False

    shortest = next(data for data in examples if fails(data))
    size = len(shortest) // 2
    while size:
        at = 0
        while at < len(shortest):
            shorter = shortest[:at] + shortest[at + size :]
            if fails(shorter):
                shortest = shorter
            else:
                at += size
        size //= 2
    return shortest


def test_sequences_reach_what_matters() -> None:
    """Otherwise agreement would prove little: each kind of answer occurs in a modest number of sequences."""
    seen: set[str] = set()
    for number in range(2_000):
        world = World(Bytes(_noise(number, 160)))
        world.run()
        for step in world.steps:
            seen |= {step.name, *_words(step.expected)}
    expected = {
        "ok", "recovering", "fenced", "reaped", "granted", "revoked", "claimed", "gone", "cancelled", "cancel", "lapsed",
        "restored", "dropped", "repeat", "unknown_resource", "over_capacity", "slots_full", "key_busy", "rate_requests",
        "rate_tokens", "calls_first", "fleet_full", "no_runner", "call granted", "released", "rival", "lose", "more", "lost between pages",
    }  # fmt: skip
    assert expected - seen == set()


def _noise(number: int, length: int) -> bytes:
    """A reproducible string of bytes."""
    return hashlib.shake_128(number.to_bytes(8, "big")).digest(length)


def _words(expected: Any) -> Iterator[str]:
    match expected:
        case Answer():
            yield expected.status
            yield from expected.verdicts.values()
            yield from (refusal.reason for refusal in expected.refusals)
            yield from ("rival" for refusal in expected.refusals if refusal.rival)
            yield from ("granted" if g.granted_ms == expected.now_ms else "repeat" for g in expected.grants)
            yield from ("reaped" for _ in expected.reaped)
        case Claim():
            yield expected.verdict
        case Call():
            yield "call granted" if expected.granted else expected.reason
        case Reconciled():
            yield expected.status
            yield from ("lapsed" for _ in expected.lapsed)
            yield from (word for word in ("restored", "dropped", "more") if getattr(expected, word))
            yield from ("lost between pages" for _ in range(expected.status == "recovering"))
        case dict():
            yield from expected.values()
        case True:
            yield "released"
