"""What the host makes of a cluster's answers that say nothing."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import pytest
from confluent_kafka import TopicPartition

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


def cluster(offset: int) -> Cluster:
    return Cluster(Admin(offset), lambda: pytest.fail("no consumer is needed"))  # type: ignore[arg-type]


def test_an_end_that_the_leader_does_not_know_is_no_end() -> None:
    assert cluster(0).end("outcomes", 1) == 0
    with pytest.raises(ClusterError, match="-1"):
        cluster(-1).end("outcomes", 1)
