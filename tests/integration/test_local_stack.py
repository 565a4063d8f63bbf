"""The session's stack answers through the clients that the rest of the project uses."""

import httpx
import pytest
import redis
from confluent_kafka.admin import AdminClient

from laxity.infra.local import Endpoints

pytestmark = pytest.mark.integration


def test_the_three_servers_answer(stack: Endpoints) -> None:
    metadata = AdminClient({"bootstrap.servers": stack.kafka}).list_topics(timeout=10)
    assert len(metadata.brokers) == 1
    level = httpx.get(f"{stack.registry}/config").json()["compatibilityLevel"]
    assert level != "NONE"
    with redis.Redis.from_url(stack.redis) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
