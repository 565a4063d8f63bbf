"""Before our servers: check the given ones. Between servers and schedulers: topics and subjects."""

import asyncio

from laxity.infra.local.endpoints import Endpoints
from laxity.infra.local.errors import StackError
from laxity.infra.local.plan import StackPlan
from laxity.infra.local.probes import Probe, http_probe, kafka_probe, redis_probe

PROBE_EVERY_S = 0.2
EXISTING_TIMEOUT_S = 5.0  # a service that was named by hand should be up
NEED_TOPICS = frozenset({"scheduler", "runner"})


def existing_probes(plan: StackPlan) -> list[tuple[str, Probe]]:
    """(variable, probe) of each service that was given."""
    return [
        (variable, probe(address))
        for variable, address, probe in (
            ("LAXITY_KAFKA", plan.existing_kafka, kafka_probe),
            ("LAXITY_REGISTRY_URL", plan.existing_registry, lambda url: http_probe(f"{url}/subjects")),
            ("LAXITY_REDIS_URL", plan.existing_redis, redis_probe),
        )
        if address
    ]


async def until_answering(what: str, probe: Probe, timeout_s: float, next_step: str) -> None:
    """Ask until the probe is content; StackError with its last reason after `timeout_s`."""
    reason: str | None = "no answer yet"
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                if (reason := await probe()) is None:
                    return
                await asyncio.sleep(PROBE_EVERY_S)
    except TimeoutError:
        raise StackError(f"{what} does not answer", reason or "", next_step) from None


async def check_existing(plan: StackPlan) -> None:
    """StackError if a given service does not answer in time."""
    for variable, probe in existing_probes(plan):
        await until_answering(variable, probe, EXISTING_TIMEOUT_S, f"start the service, or unset {variable}")


async def provision(plan: StackPlan, endpoints: Endpoints) -> None:
    """Create topics and subjects, if any of our own processes is going to need them."""
    if plan.roles & NEED_TOPICS:
        await asyncio.to_thread(_provision, plan, endpoints)


def _provision(plan: StackPlan, endpoints: Endpoints) -> None:
    from laxity.infra.provision import ProvisionError, provision_stack  # noqa: PLC0415  # keeps --help quick
    from laxity.schemas.config import ConfigError  # noqa: PLC0415
    from laxity.schemas.contracts import ContractError  # noqa: PLC0415
    from laxity.schemas.registry import RegistryError  # noqa: PLC0415
    from laxity.schemas.settings import SettingsError  # noqa: PLC0415

    try:
        provision_stack(endpoints, plan.prefix, plan.config)
    except (ProvisionError, ConfigError, ContractError, RegistryError, SettingsError) as error:
        raise StackError("cannot set up topics and subjects", str(error), "laxity topics plan") from error
