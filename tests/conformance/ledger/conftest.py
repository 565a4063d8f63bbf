"""Every ledger, under one clock that the test moves. Redis: the one given for quick runs by hand, else that of the stack."""

import os
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from laxity.schemas.timing import ManualClock
from laxity.streams.ledger.limits import Limits, RateLimit, SlotLimit
from laxity.streams.ledger.memory import MemoryLedger
from laxity.streams.ledger.redis import RedisLedger
from laxity.streams.ledger.scripts import keys

LIMITS = Limits(
    resources={
        "llm": RateLimit(
            requests_per_minute=600, tokens_per_minute=60_000, burst_requests=100, burst_tokens=10_000
        ),
        "billed": RateLimit(
            requests_per_minute=600,
            tokens_per_minute=60_000,
            burst_requests=100,
            burst_tokens=10_000,
            refund=True,
        ),
        "gpu": SlotLimit(capacity=2),
        "account": SlotLimit(capacity=1, keyed=True),
    }
)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.integration)])
def ledger(request: pytest.FixtureRequest, clock: ManualClock) -> Iterator[Any]:
    """Two shards, nothing known yet. `lose()` makes it forget, `restart()` makes it another server with the same memory."""
    if request.param == "memory":
        yield MemoryLedger(limits=LIMITS, shards=2, clock=clock)
        return
    url = os.environ.get("LAXITY_TEST_REDIS_URL") or str(request.getfixturevalue("stack").redis)
    prefix = f"t{secrets.token_hex(4)}."
    real = RedisLedger(url, limits=LIMITS, shards=2, prefix=prefix, clock=clock, timeout_s=5)
    with redis.Redis.from_url(url) as client:
        real.lose = lambda: client.delete(*keys(prefix))  # type: ignore[attr-defined]
        real.restart = lambda: client.hset(keys(prefix)[0], "run", "the server before")  # type: ignore[attr-defined]
        yield real
        client.delete(*keys(prefix))
    real.close()
