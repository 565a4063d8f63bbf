"""Members of a fleet's group join and leave every two seconds under tasks that run longer than all that, with both group protocols.

The members that come and go are bare consumers: they take partitions away and answer nothing, which is harder on the runner than another
runner would be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition
from integration.paying import CLOCK, Deployment, deployment, eventually, task_of

from laxity.infra.local import Endpoints
from laxity.schemas.kafka import KafkaClients
from laxity.schemas.records import Dispatch

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(400)]

FLEETS = {"classic": "park-classic", "consumer": "park-consumer"}
STORM_MS = 20_000
TURN_MS = 2_000  # a member joins, and leaves as long after
LONG = tuple(f"long-{n}-" for n in range(4))


@pytest.fixture(scope="module")
def place(stack: Endpoints, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(stack, tmp_path_factory.mktemp("rebalances"), FLEETS.values()) as made:
        yield made


class Storm:
    """Members that come and go, and what the group had committed all the while."""

    def __init__(self, place: Deployment, fleet: str, protocol: str) -> None:
        self._place, self._fleet = place, fleet
        env = {"LAXITY_KAFKA__GROUP__PROTOCOL": protocol}
        self._clients = KafkaClients(place.where, role="test", env=env)
        self._topic = place.where.names.full(f"dispatch.{fleet}")
        self.joined = 0
        self.took = 0  # assignments that took something from the runner
        self.passed: list[str] = []

    def blow(self) -> None:
        """For STORM_MS."""
        until_ms = CLOCK.monotonic_ms() + STORM_MS
        turn = 0
        while CLOCK.monotonic_ms() < until_ms:
            self._visit()
            turn += 1
            self._place.publish(self._fleet, turn=f"quick-{turn}-")
            self._look()

    def _visit(self) -> None:
        member = self._clients.agents_consumer(self._fleet)
        member.subscribe([self._topic], on_assign=self._assigned)
        end_ms = CLOCK.monotonic_ms() + TURN_MS
        while CLOCK.monotonic_ms() < end_ms:
            member.poll(0.1)
        member.close()
        self.joined += 1

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.incremental_assign(partitions)
        self.took += bool(partitions)

    def _look(self) -> None:
        """The group never commits beyond a record whose task is not done with."""
        consumer = self._clients.agents_consumer(self._fleet)  # never subscribes: no member
        at = consumer.committed([TopicPartition(self._topic, p) for p in range(2)], timeout=20)
        consumer.close()
        running = {task_of(self._fleet, turn) for turn in LONG}
        for message in self._place.messages(f"dispatch.{self._fleet}"):
            order = self._place.codec.decode(Dispatch, message.value())
            if order.task_id in running and at[message.partition()].offset > message.offset():
                self.passed.append(f"{order.task_id} at {message.partition()}:{message.offset()}")


@pytest.mark.parametrize("protocol", FLEETS)
def test_running_tasks_outlive_a_storm_of_rebalances(
    place: Deployment, tmp_path: Path, protocol: str
) -> None:
    fleet, gate = FLEETS[protocol], tmp_path / "gate"
    place.runner(fleet, LAXITY_KAFKA__GROUP__PROTOCOL=protocol)
    for turn in LONG:
        place.publish(fleet, turn=turn, headers={"gate": str(gate), "then": "return"})
    eventually("all began", lambda: len(place.notes(fleet)) == len(LONG))
    storm = Storm(place, fleet, protocol)
    storm.blow()
    assert storm.took >= 3, f"{storm.joined} members joined; a storm that takes nothing is none"
    assert not storm.passed
    gate.touch()
    wanted = {task_of(fleet, t) for t in (*LONG, *(f"quick-{n}-" for n in range(1, storm.joined + 1)))}
    eventually("all ended", lambda: place.ended().keys() >= wanted, 120)
    ends = place.ended()
    assert {(e.state, e.attempt) for task in wanted for e in ends[task]} == {("SUCCEEDED", 1)}
    assert all(len(ends[task]) == 1 for task in wanted)
    began = Counter(task for task, _, _, what in place.notes(fleet) if what == "began")
    assert began == Counter(wanted), "each ran once"
    eventually("nothing is reserved", lambda: place.reserved() == 0, 60)
