"""What shall run: roles, addresses and ports of one stack, settled before anything starts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from laxity.infra.local.data_dir import DataDir
from laxity.infra.local.errors import ConfigurationError
from laxity.infra.local.settings import StackSettings

SERVERS = ("kafka", "registry", "redis")
WORKERS = ("provider", "scheduler", "runner")
ROLES = (*SERVERS, *WORKERS)
DEMO_AGENTS = "laxity.infra.demo.agents"
SCHEDULERS = 2  # two, so that a takeover can be seen
RUNNERS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class StackPlan:
    """One stack. `roles` are those that we start; an address of an existing service replaces its role."""

    data: DataDir
    cache_dir: Path
    maven_url: str
    roles: frozenset[str]
    agents: str = DEMO_AGENTS
    existing_kafka: str = ""
    existing_registry: str = ""
    existing_redis: str = ""
    existing_provider: str = ""
    prefix: str = "laxity."
    config: str = ""
    provider_args: tuple[str, ...] = ()
    worker_env: tuple[tuple[str, str], ...] = ()  # further variables of our own processes

    def names(self) -> list[str]:
        """Names of all processes of the plan, in the order of their start."""
        counts = {"scheduler": SCHEDULERS, "runner": RUNNERS}
        names: list[str] = []
        for role in ROLES:
            if role in self.roles:
                names += [f"{role}-{n}" for n in range(counts[role])] if role in counts else [role]
        return names

    def port_names(self) -> list[str]:
        """Ports the plan needs: one per process, and two that only the servers themselves use."""
        extra = {"kafka": ["kafka-controller"], "registry": ["registry-management"]}
        return [port for name in self.names() for port in (name, *extra.get(name, []))]


def to_json(plan: StackPlan) -> dict[str, Any]:
    """The plan as a JSON object, for the process that carries it out."""
    return {
        **asdict(plan),
        "data": str(plan.data.root),
        "cache_dir": str(plan.cache_dir),
        "roles": sorted(plan.roles),
    }


def from_json(document: dict[str, Any]) -> StackPlan:
    """The reverse of `to_json`."""
    typed = {
        "data": DataDir(root=Path(document["data"])),
        "cache_dir": Path(document["cache_dir"]),
        "roles": frozenset(document["roles"]),
        "provider_args": tuple(document["provider_args"]),
        "worker_env": tuple((name, value) for name, value in document["worker_env"]),
    }
    return StackPlan(**{**document, **typed})


def chosen_roles(only: str) -> frozenset[str]:
    """Roles of `--only a,b`; all of them for an empty text."""
    wanted = frozenset(part.strip() for part in only.split(",") if part.strip())
    if unknown := wanted - set(ROLES):
        raise ConfigurationError(f"--only {','.join(sorted(unknown))}", f"roles are {', '.join(ROLES)}")
    return wanted or frozenset(ROLES)


def make_plan(
    settings: StackSettings,
    *,
    only: str = "",
    agents: str = "",
    provider_args: Sequence[str] = (),
    worker_env: Mapping[str, str] | None = None,
) -> StackPlan:
    """Settings and flags to a plan; a role whose address is given is not started."""
    given = {
        "kafka": settings.kafka,
        "registry": settings.registry_url,
        "redis": settings.redis_url,
        "provider": settings.provider_url,
    }
    return StackPlan(
        data=DataDir.at(settings.data_dir),
        cache_dir=settings.cache_dir.expanduser().resolve(),
        maven_url=settings.maven_url,
        roles=frozenset(role for role in chosen_roles(only) if not given.get(role)),
        agents=agents or DEMO_AGENTS,
        existing_kafka=settings.kafka,
        existing_registry=settings.registry_url,
        existing_redis=settings.redis_url,
        existing_provider=settings.provider_url,
        prefix=settings.prefix,
        config=settings.config,
        provider_args=tuple(provider_args),
        worker_env=tuple((worker_env or {}).items()),
    )
