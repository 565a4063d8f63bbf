"""The same three servers in containers, for tests on machines with a container engine (extra `dev`).

The settings are those of the local stack; infra/compose.yaml has them too, and a test compares the three.
"""

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from laxity.infra.local import schema_registry
from laxity.infra.local.broker import BROKER_SETTINGS
from laxity.infra.local.endpoints import Endpoints
from laxity.infra.local.lock_jars import KAFKA_VERSION, REGISTRY_VERSION
from laxity.infra.local.probes import http_probe, kafka_probe, redis_probe
from laxity.infra.local.provisioning import until_answering

KAFKA_IMAGE = f"apache/kafka:{KAFKA_VERSION}"
REGISTRY_IMAGE = f"apicurio/apicurio-registry:{REGISTRY_VERSION}"
REDIS_IMAGE = "valkey/valkey:8.1"
REGISTRY_PORT = 8080
REDIS_PORT = 6379
CONTROLLER_PORT = 9093
READY_TIMEOUT_S = 90.0
PING_TIMEOUT_S = 5.0


def _engine_sockets() -> list[Path]:
    """Where an engine listens: DOCKER_HOST if it is a socket, else the usual places."""
    host = os.environ.get("DOCKER_HOST", "")
    if host:
        return [Path(host.removeprefix("unix://"))] if host.startswith("unix://") else []
    return [Path("/var/run/docker.sock"), Path.home() / ".docker" / "run" / "docker.sock"]


def _somebody_listens(path: Path) -> bool:
    """Tried first, because httpcore leaves its socket open when nobody does."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def engine_answers() -> bool:
    """Whether a container engine answers on its socket; a client without its daemon does not count."""
    for path in filter(_somebody_listens, _engine_sockets()):
        try:
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=PING_TIMEOUT_S) as client:
                if client.get("http://engine/_ping").status_code == httpx.codes.OK:
                    return True
        except httpx.HTTPError:
            continue  # something else listens there
    return False


def broker_environment() -> dict[str, str]:
    """BROKER_SETTINGS as the image wants them: KAFKA_, upper case, underscores."""
    return {f"KAFKA_{key.replace('.', '_').upper()}": value for key, value in BROKER_SETTINGS.items()}


def _kafka(port: int) -> Any:
    """The advertised address must be the one on the host, so the port is the same inside and outside."""
    from testcontainers.core.container import DockerContainer  # noqa: PLC0415

    container = DockerContainer(KAFKA_IMAGE).with_bind_ports(port, port)
    local = {
        "KAFKA_LISTENERS": f"PLAINTEXT://0.0.0.0:{port},CONTROLLER://0.0.0.0:{CONTROLLER_PORT}",
        "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://127.0.0.1:{port}",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": f"1@localhost:{CONTROLLER_PORT}",
    }
    for name, value in {**broker_environment(), **local}.items():
        container = container.with_env(name, value)
    return container


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_containers() -> Iterator[Endpoints]:
    """Start the three, wait until they answer, remove them at the end."""
    from testcontainers.core.container import DockerContainer  # noqa: PLC0415

    port = _free_port()
    registry = DockerContainer(REGISTRY_IMAGE).with_exposed_ports(REGISTRY_PORT)
    redis = DockerContainer(REDIS_IMAGE).with_exposed_ports(REDIS_PORT)
    redis = redis.with_command("valkey-server --appendonly yes --maxmemory-policy noeviction")
    with ExitStack() as started:
        for container in (_kafka(port), registry, redis):
            started.enter_context(container)
        registry_url = (
            f"http://127.0.0.1:{registry.get_exposed_port(REGISTRY_PORT)}{schema_registry.API_PATH}"
        )
        found = Endpoints(
            kafka=f"127.0.0.1:{port}",
            registry=registry_url,
            redis=f"redis://127.0.0.1:{redis.get_exposed_port(REDIS_PORT)}/0",
        )
        _wait(found)
        yield found


def _wait(found: Endpoints) -> None:
    async def all_answer() -> None:
        for name, probe in (
            ("kafka", kafka_probe(found.kafka)),
            ("registry", http_probe(f"{found.registry}/subjects")),
            ("redis", redis_probe(found.redis)),
        ):
            await until_answering(f"container {name}", probe, READY_TIMEOUT_S, "docker logs")

    asyncio.run(all_answer())
