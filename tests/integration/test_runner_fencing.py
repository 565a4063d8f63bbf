"""A runner that cannot renew its leases stops itself before anybody else may begin; one that slept through them does nothing more that counts.

Real runners behind a proxy to Redis: all cases at the same time, each in a fleet of its own, as each takes a lease's 15 s.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest
from chaos.flow import Weather
from chaos.proxy import Edge, Proxy
from integration.paying import CLOCK, Deployment, deployment, eventually, task_of

from laxity.consumers.leases import FENCE_MARGIN_MS
from laxity.infra.local import Endpoints
from laxity.schemas.records import TaskEvent
from laxity.streams.ledger.limits import LEASE_TTL_MS

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

AWAY = ("retry-partitioned", "retry-half-open", "retry-slow")
ASLEEP = ("retry-asleep-then-calls", "retry-asleep-then-returns")
FENCE_MS = LEASE_TTL_MS - FENCE_MARGIN_MS
BUSY_MS = 1_500  # a loaded machine sweeps and schedules later than five times a second


def break_off(edge: Edge, fleet: str) -> None:
    if fleet == "retry-partitioned":
        edge.turn(Weather(up=False, down=False))
    elif fleet == "retry-half-open":
        edge.turn(Weather(down=False))
    else:
        edge.turn(Weather(delay_ms=1_000))  # no answer within the 500 ms that a call may take


@dataclass(frozen=True, kw_only=True)
class Seen:
    """After all is over."""

    place: Deployment
    broken_ms: Mapping[str, int]  # wall clock, by fleet
    events: Sequence[TaskEvent]

    def of(self, fleet: str) -> list[TaskEvent]:
        return [event for event in self.events if event.task_id == task_of(fleet)]

    def lapsed_ms(self, fleet: str) -> int:
        """When the shard took the lease for lost, or heard that it is: nobody else begins earlier."""
        (at_ms,) = (s.at_ms for e in self.of(fleet) for s in e.transitions if s.after == "UNKNOWN")
        return at_ms

    def noted(self, fleet: str, what: str, attempt: int) -> list[int]:
        return [at for _, number, at, said in self.place.notes(fleet) if (number, said) == (attempt, what)]


@pytest.fixture(scope="module")
def seen(stack: Endpoints, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    folder, fleets = tmp_path_factory.mktemp("fencing"), (*AWAY, *ASLEEP)
    redis = urlsplit(stack.redis)
    with Proxy(seed=1) as proxy, deployment(stack, folder, fleets) as place:
        edges = {fleet: proxy.edge(fleet, (redis.hostname or "", redis.port or 0)) for fleet in AWAY}
        first = {}
        for fleet in fleets:
            url = (
                stack.redis.replace(redis.netloc.rpartition("@")[2], edges[fleet].address)
                if fleet in edges
                else stack.redis
            )
            first[fleet] = place.runner(fleet, LAXITY_REDIS_URL=url)
            then = "return" if fleet.endswith("returns") else "call"
            place.publish(fleet, headers={"gate": str(folder / f"{fleet}.gate"), "then": then})
        eventually("all began", lambda: all(place.notes(fleet) for fleet in fleets))
        broken_ms = {}
        for fleet in fleets:
            broken_ms[fleet] = CLOCK.now_ms()
            if fleet in edges:
                break_off(edges[fleet], fleet)
            else:
                first[fleet].send_signal(signal.SIGSTOP)
        for fleet in fleets:
            place.runner(fleet)  # whoever goes on with it
        eventually("all ended", lambda: place.ended().keys() >= {task_of(fleet) for fleet in fleets}, 120)
        for fleet in ASLEEP:
            (folder / f"{fleet}.gate").touch()
            first[fleet].send_signal(signal.SIGCONT)
        eventually("both sleepers reported", lambda: len(_late(place.events())) >= len(ASLEEP))
        yield Seen(place=place, broken_ms=broken_ms, events=place.events())


def _late(events: Sequence[TaskEvent]) -> list[TaskEvent]:
    return [event for event in events if event.kind == "late_completion"]


@pytest.mark.parametrize("fleet", AWAY)
def test_without_answers_the_agent_is_stopped_before_its_slot_can_be_another_s(
    seen: Seen, fleet: str
) -> None:
    (stopped_ms,) = seen.noted(fleet, "stopped", 1)
    # the last answer came at most a third of a TTL before the break
    assert FENCE_MS - LEASE_TTL_MS // 3 - 200 <= stopped_ms - seen.broken_ms[fleet] <= FENCE_MS + BUSY_MS
    (again_ms,) = seen.noted(fleet, "began", 2)
    assert stopped_ms < seen.lapsed_ms(fleet) <= again_ms
    told = [(o.kind, o.code) for o in seen.place.outcomes(task_of(fleet)) if o.dispatch_no == 1]
    reports = [
        one for one in told if one[0] != "bounced"
    ]  # whoever got the partition meanwhile asks about it
    assert reports == [("started", ""), ("unknown", "lease_lost")]


@pytest.mark.parametrize("fleet", ASLEEP)
def test_a_sleeper_s_late_word_is_recorded_and_ignored(seen: Seen, fleet: str) -> None:
    (late,) = _late(seen.of(fleet))
    assert late.dispatch_no == 1
    # awake again, either it goes on first or its fence stops it first
    went_on, stopped = seen.noted(fleet, "went on", 1), seen.noted(fleet, "stopped", 1)
    assert went_on or stopped, "it neither went on nor was told to stop"
    returned = bool(went_on) and fleet.endswith("returns")
    assert late.detail in ({"succeeded", "unknown"} if returned else {"unknown"})


@pytest.mark.parametrize("fleet", [*AWAY, *ASLEEP])
def test_the_task_ends_once_with_one_effect_of_its_second_attempt(seen: Seen, fleet: str) -> None:
    (end,) = seen.place.ended()[task_of(fleet)]
    assert (end.state, end.attempt, end.dispatch_no) == ("SUCCEEDED", 2, 2)
    assert b"late" not in (end.result or b"")
    calls = [line.kind.value for line in seen.place.calls("retry") if line.task == task_of(fleet)]
    assert calls == ["effect"], "the first attempt started no call after its lease"
