"""The process table: for each process of a plan its command, environment, folder and readiness probe."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from laxity.infra.local import broker, redis_server, schema_registry
from laxity.infra.local.data_dir import cluster_id, redis_password, write_private
from laxity.infra.local.endpoints import Endpoints
from laxity.infra.local.plan import StackPlan
from laxity.infra.local.probes import Probe, http_probe, kafka_probe, redis_probe, registry_probe
from laxity.infra.local.software import Software


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """How to run one process. `http` is the base URL of its own /livez, /readyz and /metrics, if it has them."""

    role: str
    name: str
    argv: tuple[str, ...]
    address: str
    log: Path
    probe: Probe
    http: str = ""
    cwd: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)


DRAIN_MS = 8_000  # of a runner told to stop: with its reports well within the child's STOP_GRACE_S


def stack_endpoints(plan: StackPlan, ports: Mapping[str, int]) -> Endpoints:
    """Existing services where they were given, else ours."""

    def ours(role: str, address: str) -> str:
        return address if role in plan.roles else ""

    redis = ""
    if "redis" in plan.roles:
        redis = redis_server.url(port=ports["redis"], password=redis_password(plan.data))
    return Endpoints(
        kafka=plan.existing_kafka or ours("kafka", f"127.0.0.1:{ports.get('kafka')}"),
        registry=plan.existing_registry
        or ours("registry", schema_registry.base_url(ports.get("registry", 0))),
        redis=plan.existing_redis or redis,
        provider=plan.existing_provider or ours("provider", f"http://127.0.0.1:{ports.get('provider')}"),
    )


def kafka_process(plan: StackPlan, ports: Mapping[str, int], software: Software) -> ProcessSpec:
    """Write the broker's files, format its storage at the first start, describe it."""
    assert software.java is not None
    folder = plan.data.folder("kafka")
    broker.write_configuration(folder, port=ports["kafka"], controller_port=ports["kafka-controller"])
    broker.format_storage(software.java, software.kafka_jars, folder, cluster_id(plan.data))
    address = f"127.0.0.1:{ports['kafka']}"
    return ProcessSpec(
        role="kafka",
        name="kafka",
        argv=tuple(broker.broker_argv(software.java, folder)),
        env={"CLASSPATH": broker.class_path(software.kafka_jars)},
        address=address,
        log=plan.data.logs / "kafka.log",
        probe=kafka_probe(address),
    )


def registry_process(plan: StackPlan, ports: Mapping[str, int], software: Software) -> ProcessSpec:
    """The registry with its database in the data directory."""
    assert software.java is not None
    port, management_port = ports["registry"], ports["registry-management"]
    base_url = schema_registry.base_url(port)
    return ProcessSpec(
        role="registry",
        name="registry",
        argv=tuple(schema_registry.argv(software.java, port=port, management_port=management_port)),
        env=schema_registry.environment(plan.data.folder("registry")),
        cwd=software.registry_folder,
        address=base_url,
        log=plan.data.logs / "registry.log",
        probe=registry_probe(schema_registry.health_url(management_port), base_url),
    )


def redis_process(plan: StackPlan, ports: Mapping[str, int], software: Software) -> ProcessSpec:
    """Redis with its append-only file in the data directory."""
    assert software.redis is not None
    folder = plan.data.folder("redis")
    password = redis_password(plan.data)
    conf = folder / "redis.conf"
    write_private(conf, redis_server.configuration(port=ports["redis"], folder=folder, password=password))
    return ProcessSpec(
        role="redis",
        name="redis",
        argv=(str(software.redis.path), str(conf)),
        address=f"127.0.0.1:{ports['redis']}",
        log=plan.data.logs / "redis.log",
        probe=redis_probe(redis_server.url(port=ports["redis"], password=password)),
    )


def provider_ledger(plan: StackPlan) -> Path:
    """Where the provider appends its effects."""
    return plan.data.root / "provider" / "ledger.jsonl"


def _arguments(plan: StackPlan, role: str, port: int) -> tuple[str, ...]:
    if role == "provider":
        ledger = str(provider_ledger(plan))
        return ("provider", "--port", str(port), "--ledger", ledger, *plan.provider_args)
    if role == "runner":
        return ("agents", plan.agents, "--http-port", str(port))
    return ("scheduler", "--http-port", str(port))


def worker_process(plan: StackPlan, ports: Mapping[str, int], name: str) -> ProcessSpec:
    """One of our own processes: addresses by environment, its HTTP port by flag."""
    role = name.partition("-")[0]
    http = f"http://127.0.0.1:{ports[name]}"
    environment = {
        **stack_endpoints(plan, ports).environment(),
        "LAXITY_DATA_DIR": str(plan.data.root),
        "LAXITY_PREFIX": plan.prefix,
        "LAXITY_CONFIG": plan.config,
        "LAXITY_AGENTS_GRACE_MS": str(DRAIN_MS),
        "PYTHONUNBUFFERED": "1",
        **dict(plan.worker_env),
    }
    return ProcessSpec(
        role=role,
        name=name,
        argv=(sys.executable, "-m", "laxity.infra.cli", *_arguments(plan, role, ports[name])),
        env={key: value for key, value in environment.items() if value},
        address=http,
        http=http,
        log=plan.data.logs / f"{name}.log",
        probe=http_probe(f"{http}/readyz"),
    )


def process_table(plan: StackPlan, ports: Mapping[str, int], software: Software) -> list[ProcessSpec]:
    """All processes of the plan in the order of their start."""
    servers = {"kafka": kafka_process, "registry": registry_process, "redis": redis_process}
    return [
        servers[name](plan, ports, software) if name in servers else worker_process(plan, ports, name)
        for name in plan.names()
    ]


def full_environment(spec: ProcessSpec) -> dict[str, str]:
    """The caller's environment with the process's own on top; JAVA_TOOL_OPTIONS of the caller is left out."""
    inherited = {key: value for key, value in os.environ.items() if key != "JAVA_TOOL_OPTIONS"}
    return {**inherited, **spec.env}
