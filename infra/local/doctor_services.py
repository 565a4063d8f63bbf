"""The part of `laxity doctor` that asks servers: given ones, or those of the running stack."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from laxity.infra.local.endpoints import Endpoints
from laxity.infra.local.findings import Finding, Level
from laxity.infra.local.probes import ANSWER_TIMEOUT_S, http_probe, kafka_probe, redis_probe
from laxity.schemas.masking import masked
from laxity.streams.ledger.servers import judge


def judge_redis(url: str, info: dict[str, Any], *, trusted: str = "") -> Finding:
    """Too old is an error; unpatched is a warning on loopback and an error anywhere else."""
    found = judge(url, info, trusted=trusted)
    if not found.problem:
        return Finding(name="redis server", level=Level.OK, detail=found.shown)
    level = Level.ERROR if found.fatal else Level.WARN
    return Finding(name="redis server", level=level, detail=found.problem, remedy="upgrade it")


async def _redis_version(url: str) -> Finding:
    from redis.asyncio import Redis  # noqa: PLC0415
    from redis.exceptions import NoPermissionError  # noqa: PLC0415

    client = Redis.from_url(url, socket_timeout=ANSWER_TIMEOUT_S, socket_connect_timeout=ANSWER_TIMEOUT_S)
    try:
        trusted = os.environ.get("LAXITY_REDIS_TRUSTED_VERSION", "")
        return judge_redis(url, dict(await client.info("server")), trusted=trusted)
    except NoPermissionError:
        detail = "this user may not ask for the version"
        return Finding(name="redis server", level=Level.WARN, detail=detail, remedy="ask as a scheduler")
    finally:
        await client.aclose()


async def _ask(found: Endpoints) -> AsyncIterator[Finding]:
    probes = (
        ("kafka", found.kafka, kafka_probe(found.kafka)),
        ("registry", found.registry, http_probe(f"{found.registry}/subjects")),
        ("redis", found.redis, redis_probe(found.redis) if found.redis else None),
    )
    for name, address, probe in probes:
        if not address or probe is None:
            continue
        reason = await probe()
        if reason:
            yield Finding(name=name, level=Level.ERROR, detail=reason, remedy="laxity status")
            continue
        yield Finding(name=name, level=Level.OK, detail=f"answers at {masked(address)}")
        if name == "redis":
            yield await _redis_version(address)


def service_findings(found: Endpoints) -> list[Finding]:
    """One finding per address that answers or does not, and one about the version of Redis."""

    async def collect() -> list[Finding]:
        return [finding async for finding in _ask(found)]

    return asyncio.run(collect())
