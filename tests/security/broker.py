"""A Kafka broker that trusts nobody: SASL_SSL with SCRAM for roles, client certificates for its own and the administrator, ACLs for all."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from security.certificates import Authority
from security.waiting import until

from laxity.infra.local import broker
from laxity.infra.local.plan import make_plan
from laxity.infra.local.settings import StackSettings
from laxity.infra.local.software import prepare

CLUSTER_ID = "bGF4aXR5LXNlY3VyaXR5LQ"
STOP_S = 30
START_S = 150
ASKED = re.compile(
    r"Principal = User:(?P<user>\S+) is (?P<answer>Allowed|Denied) operation = (?P<operation>\w+) from host = \S+ "
    r"on resource = (?P<kind>\w+):(?P<pattern>\w+):(?P<name>\S+) for request"
)
LOGGING = f"""{broker.LOGGING}
logger.authorizer.name = kafka.authorizer.logger
logger.authorizer.level = debug
"""


@dataclass(frozen=True, slots=True, order=True)
class Question:
    """To the broker's authorizer, as it logged it."""

    user: str
    operation: str  # READ, DESCRIBE_CONFIGS
    kind: str  # Topic, Group, TransactionalId, Cluster
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SecureBroker:
    """`roles` is the listener with passwords, `trusted` the one with client certificates."""

    roles: str
    trusted: str
    log: Path
    ca: Path
    administrator: Mapping[str, str]  # librdkafka properties

    def denials(self, since: int = 0) -> list[Question]:
        """What the authorizer refused, from a position in the log on."""
        return self._asked("Denied", since)

    def allowed(self) -> set[Question]:
        """What it allowed since the start."""
        return set(self._asked("Allowed", 0))

    def _asked(self, answer: str, since: int) -> list[Question]:
        text = self.log.read_bytes()[since:].decode("utf-8", "replace")
        found = (m for m in ASKED.finditer(text) if m["answer"] == answer)
        return [Question(m["user"], m["operation"], m["kind"], m["name"]) for m in found]

    def mark(self) -> int:
        """The log's end now."""
        return self.log.stat().st_size

    def admin(self) -> AdminClient:
        """As the administrator."""
        return AdminClient({"bootstrap.servers": self.trusted, "log_level": 0, **self.administrator})


def free_ports(count: int) -> list[int]:
    """Of loopback."""
    with_sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in with_sockets]
    for one in with_sockets:
        one.close()
    return ports


def _properties(folder: Path, authority: Authority, ports: list[int]) -> str:
    own = authority.issue("broker")
    roles, trusted, controller = ports
    local = {
        "listeners": f"ROLES://127.0.0.1:{roles},TRUSTED://127.0.0.1:{trusted},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"ROLES://127.0.0.1:{roles},TRUSTED://127.0.0.1:{trusted}",
        "listener.security.protocol.map": "ROLES:SASL_SSL,TRUSTED:SSL,CONTROLLER:SSL",
        "inter.broker.listener.name": "TRUSTED",
        "controller.listener.names": "CONTROLLER",
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "log.dirs": str(folder / "data"),
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(own.both),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(authority.ca),
        "ssl.enabled.protocols": "TLSv1.3,TLSv1.2",
        "listener.name.trusted.ssl.client.auth": "required",
        "listener.name.controller.ssl.client.auth": "required",
        "ssl.principal.mapping.rules": "RULE:^CN=([^,]+).*$/$1/",
        "listener.name.roles.sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.roles.scram-sha-512.sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule required;",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "false",
        "super.users": "User:broker;User:administrator",
    }
    return "".join(f"{key}={value}\n" for key, value in {**broker.BROKER_SETTINGS, **local}.items())


@contextmanager
def running(folder: Path, authority: Authority) -> Iterator[SecureBroker]:
    """Until the block ends."""
    settings = StackSettings(kafka="", registry_url="", redis_url="", data_dir=folder)
    software = prepare(make_plan(settings, only="kafka"))
    assert software.java is not None
    ports = free_ports(3)
    folder.mkdir(parents=True)
    (folder / "server.properties").write_text(_properties(folder, authority, ports))
    (folder / "log4j2.properties").write_text(LOGGING)
    broker.format_storage(software.java, software.kafka_jars, folder, CLUSTER_ID)
    administrator = authority.issue("administrator")
    found = SecureBroker(
        roles=f"127.0.0.1:{ports[0]}",
        trusted=f"127.0.0.1:{ports[1]}",
        log=folder / "broker.log",
        ca=authority.ca,
        administrator={
            "security.protocol": "SSL",
            "ssl.ca.location": str(authority.ca),
            "ssl.certificate.location": str(administrator.certificate),
            "ssl.key.location": str(administrator.key),
        },
    )
    with found.log.open("wb") as log:
        process = subprocess.Popen(
            broker.broker_argv(software.java, folder),
            env={"CLASSPATH": broker.class_path(software.kafka_jars)},
            stdout=log,
            stderr=log,
        )
    try:
        until("the broker answers", lambda: _answers(found, process), START_S)
        yield found
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(found: SecureBroker, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, found.log.read_text()[-2_000:]
    with suppress(KafkaException):
        return bool(found.admin().list_topics(timeout=2).brokers)
    return False
