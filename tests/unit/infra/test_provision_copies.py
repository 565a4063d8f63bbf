"""How many copies a deployment's topics get, and which in-sync replicas follow."""

from types import SimpleNamespace
from typing import Any

import pytest

from laxity.infra.provision import _seen
from laxity.schemas.settings import Settings

PLACE = Settings(
    kafka="127.0.0.1:1", registry_url="http://127.0.0.1:1", redis_url="redis://127.0.0.1:1", prefix="p."
)


def cluster(brokers: int, copies: int | None) -> Any:
    partition = SimpleNamespace(replicas=list(range(copies or 0)))
    anchor = SimpleNamespace(partitions={0: partition, 1: partition})
    topics = {} if copies is None else {"p.triggers.critical": anchor}
    return SimpleNamespace(
        list_topics=lambda **_: SimpleNamespace(topics=topics, brokers=dict.fromkeys(range(brokers)))
    )


@pytest.mark.parametrize(
    ("brokers", "existing", "copies"),
    [(1, None, 1), (2, None, 2), (5, None, 3), (3, 2, 2), (2, 3, 3), (5, 1, 1)],
)
def test_a_deployment_keeps_its_number_of_copies(brokers: int, existing: int | None, copies: int) -> None:
    assert _seen(cluster(brokers, existing), PLACE)[1] == copies
