"""Between the servers and the schedulers: check existing services, then topics and subjects."""

import asyncio
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from laxity.infra.local.endpoints import Endpoints
from laxity.infra.local.errors import StackError
from laxity.infra.local.plan import WORKERS, StackPlan
from laxity.infra.local.probes import Probe, http_probe, kafka_probe, redis_probe

EXISTING_TIMEOUT_S = 10.0  # a service that was named by hand should be up
MODULE = "laxity.infra.provision"


def existing_probes(plan: StackPlan) -> list[tuple[str, str, Probe]]:
    """(variable, address, probe) of each service that was given."""
    return [
        (variable, address, probe(address))
        for variable, address, probe in (
            ("LAXITY_KAFKA", plan.existing_kafka, kafka_probe),
            ("LAXITY_REGISTRY_URL", plan.existing_registry, lambda url: http_probe(f"{url}/subjects")),
            ("LAXITY_REDIS_URL", plan.existing_redis, redis_probe),
        )
        if address
    ]


async def check_existing(plan: StackPlan) -> None:
    """StackError if a given service does not answer in time."""
    for variable, _, probe in existing_probes(plan):
        reason = None
        try:
            async with asyncio.timeout(EXISTING_TIMEOUT_S):
                while reason := await probe():
                    await asyncio.sleep(0.2)
        except TimeoutError:
            raise StackError(f"{variable} does not answer", reason or "", f"start it, or unset {variable}") from None


async def provision(plan: StackPlan, endpoints: Endpoints) -> None:
    """Create topics and subjects, if any of our own processes is going to need them."""
    await check_existing(plan)
    if plan.roles & set(WORKERS[1:]) and find_spec(MODULE):
        module: Any = import_module(MODULE)
        await asyncio.to_thread(module.provision, endpoints, plan.prefix)
