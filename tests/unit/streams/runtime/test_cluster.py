"""What the host makes of a cluster's answers that say nothing."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from laxity.streams.runtime.cluster import Cluster, ClusterError


@dataclass
class Answer:
    offset: int


class Admin:
    """Knows one offset of everything."""

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def list_offsets(
        self, wanted: dict[TopicPartition, Any], **_: Any
    ) -> dict[TopicPartition, Future[Answer]]:
        found: dict[TopicPartition, Future[Answer]] = {at: Future() for at in wanted}
        for answer in found.values():
            answer.set_result(Answer(self._offset))
        return found

    def describe_consumer_groups(self, groups: list[str], **_: Any) -> dict[str, Future[Any]]:
        found: dict[str, Future[Any]] = {group: Future() for group in groups}
        for group, answer in found.items():
            if group == "away":
                answer.set_exception(KafkaException(KafkaError(KafkaError.COORDINATOR_NOT_AVAILABLE)))
            else:
                answer.set_result(SimpleNamespace(members=[SimpleNamespace(member_id="me")]))
        return found

    def list_consumer_group_offsets(self, _: Any, **__: Any) -> dict[str, Future[Any]]:
        return {"g": Future()}


def cluster(offset: int) -> Cluster:
    return Cluster(Admin(offset), lambda: pytest.fail("no consumer is needed"))  # type: ignore[arg-type]


def test_an_end_that_the_leader_does_not_know_is_no_end() -> None:
    assert cluster(0).end("outcomes", 1) == 0
    with pytest.raises(ClusterError, match="-1"):
        cluster(-1).end("outcomes", 1)


def test_a_member_is_who_the_group_counts() -> None:
    assert cluster(0).has_member("g", "me")
    assert not cluster(0).has_member("g", "you")
    assert not cluster(0).has_member("g", "")
    assert not cluster(0).has_member("away", "me")
