"""`laxity doctor`: what could keep the stack from working, each finding with its remedy."""

import os
import shutil
import sys
from pathlib import Path

from laxity.infra.local.artifacts import load_lock
from laxity.infra.local.doctor_security import connection_findings, file_findings
from laxity.infra.local.doctor_services import service_findings
from laxity.infra.local.endpoints import Endpoints, endpoints
from laxity.infra.local.errors import StackError
from laxity.infra.local.fetch import missing
from laxity.infra.local.findings import Finding, Level
from laxity.infra.local.java import find_java
from laxity.infra.local.plan import StackPlan, make_plan
from laxity.infra.local.redis_server import find_redis_server
from laxity.infra.local.settings import StackSettings
from laxity.infra.local.software import wanted_artifacts
from laxity.streams.ledger.servers import unpatched

DISK_BYTES_MIN = 2 << 30  # jars and registry take 0.4 GiB, Kafka's segments and logs grow beside them


def _existing_parent(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _python() -> Finding:
    return Finding(name="python", level=Level.OK, detail=f"{sys.version.split()[0]} at {sys.executable}")


def _folder(name: str, path: Path) -> Finding:
    """Writable, with room."""
    parent = _existing_parent(path)
    if not os.access(parent, os.W_OK):
        return Finding(
            name=name, level=Level.ERROR, detail=f"{parent} is not writable", remedy="choose another"
        )
    free = shutil.disk_usage(parent).free
    level = Level.OK if free >= DISK_BYTES_MIN else Level.WARN
    remedy = "" if level is Level.OK else f"make room: {DISK_BYTES_MIN >> 30} GiB are advised"
    return Finding(name=name, level=level, detail=f"{path}, {free / (1 << 30):.1f} GiB free", remedy=remedy)


def _java(plan: StackPlan) -> list[Finding]:
    if not plan.roles & {"kafka", "registry"}:
        return []
    try:
        java = find_java()
    except StackError as error:
        return [
            Finding(
                name="java", level=Level.ERROR, detail=f"{error.what}: {error.why}", remedy=error.next_step
            )
        ]
    return [Finding(name="java", level=Level.OK, detail=f"{java.version} from {java.origin}, {java.path}")]


def _redis_binary(plan: StackPlan) -> list[Finding]:
    if "redis" not in plan.roles:
        return []
    try:
        server = find_redis_server()
    except StackError as error:
        detail = f"{error.what}: {error.why}"
        return [Finding(name="redis binary", level=Level.ERROR, detail=detail, remedy=error.next_step)]
    reason = unpatched(server.flavour, server.version)
    shown = f"{server.flavour} {'.'.join(map(str, server.version))} from {server.origin}, {server.path}"
    level = Level.WARN if reason else Level.OK
    return [
        Finding(
            name="redis binary", level=level, detail=reason or shown, remedy="upgrade it" if reason else ""
        )
    ]


def _jars(plan: StackPlan) -> list[Finding]:
    wanted = wanted_artifacts(plan, load_lock())
    if not wanted:
        return []
    absent = missing(plan.cache_dir, wanted)
    size = sum(artifact.size for artifact in absent) / 1e6
    detail = (
        f"{len(absent)} files ({size:.0f} MB) will be fetched by the next start" if absent else "all cached"
    )
    return [Finding(name="jars", level=Level.OK, detail=detail)]


def _reachable(plan: StackPlan) -> Endpoints:
    """Given services, else those of the running stack."""
    running = endpoints(plan.data.root) or Endpoints()
    return Endpoints(
        kafka=plan.existing_kafka or running.kafka,
        registry=plan.existing_registry or running.registry,
        redis=plan.existing_redis or running.redis,
    )


def _services(plan: StackPlan) -> list[Finding]:
    found = _reachable(plan)
    if not found.environment():
        detail = f"nothing runs in {plan.data.root}"
        return [Finding(name="stack", level=Level.OK, detail=detail, remedy="laxity up --detach starts it")]
    return [*service_findings(found), *connection_findings(found)]


def examine(settings: StackSettings) -> list[Finding]:
    """All findings, in the order in which they would matter."""
    plan = make_plan(settings)
    return [
        _python(),
        *_java(plan),
        *_redis_binary(plan),
        *_jars(plan),
        _folder("data directory", plan.data.root),
        _folder("cache", plan.cache_dir),
        *file_findings(plan.data.root),
        *_services(plan),
    ]
