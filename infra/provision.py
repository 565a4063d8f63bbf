"""Make topics, subjects and contracts what the catalogue says. Idempotent: a second run changes nothing.

    report = provision(settings(), config.load())

Numbers of partitions are fixed for life: a run's shard follows from them, so another number is refused before anything is touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from laxity.infra import provision_subjects as subjects
from laxity.infra import provision_topics as topics
from laxity.infra.local import Endpoints
from laxity.infra.provision_topics import ProvisionError, TopicChange
from laxity.schemas import limits
from laxity.schemas.config import Config, load
from laxity.schemas.contracts import read_contracts, verify_contracts
from laxity.schemas.kafka import KafkaClients
from laxity.schemas.registry import Registry
from laxity.schemas.settings import Settings
from laxity.schemas.settings import settings as make_settings
from laxity.schemas.timing import Clock, SystemClock
from laxity.schemas.topics import SHARDS_DEFAULT, Topic, catalogue

__all__ = ["Plan", "ProvisionError", "plan", "provision", "provision_stack", "shards_of"]

_ANCHOR = "triggers.critical"  # its partitions are the number of shards of a deployment that exists
REPLICAS_MAX = 3  # two copies may be lost in turn; more costs without need


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run does (or did): one entry per topic and subject, in the order of the catalogue."""

    shards: int
    replicas: int
    topics: Sequence[TopicChange]
    subjects: Sequence[subjects.SubjectChange]

    @property
    def changes(self) -> int:
        """Entries that are not `ok`."""
        return sum(t.action != "ok" for t in self.topics) + sum(s.action != "ok" for s in self.subjects)

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "shards": self.shards,
            "replicas": self.replicas,
            "changes": self.changes,
            "topics": [entry.document() for entry in self.topics],
            "subjects": [entry.document() for entry in self.subjects],
        }


def plan(settings: Settings, config: Config, shards: int | None = None, clock: Clock | None = None) -> Plan:
    """What `provision` would do; changes nothing. Refusals are entries here."""
    _check(settings, shards)
    return _Provisioning(settings, config, shards, clock or SystemClock()).look()


def provision(
    settings: Settings, config: Config, shards: int | None = None, clock: Clock | None = None
) -> Plan:
    """Carry it out and report. `shards`: default what exists, else SHARDS_DEFAULT.

    ProvisionError for a refused change (nothing is touched then) or a broker's refusal; RegistryError, ContractError and SettingsError pass through.
    """
    _check(settings, shards)
    return _Provisioning(settings, config, shards, clock or SystemClock()).carry_out()


def provision_stack(endpoints: Endpoints, prefix: str, config_path: str = "") -> Plan:
    """For the local stack: its addresses, and the configuration of `config_path` (empty: as `config.load` finds it)."""
    addresses = {"kafka": endpoints.kafka, "registry_url": endpoints.registry, "redis_url": endpoints.redis}
    return provision(make_settings(**addresses, prefix=prefix), load(config_path or None))


def shards_of(settings: Settings) -> int | None:
    """The number of shards of the deployment; None before it is provisioned. ProvisionError if Kafka does not answer."""
    seen, _ = _seen(KafkaClients(settings, role="provision").admin(), settings)
    return seen.get(settings.names.full(_ANCHOR))


def _check(settings: Settings, shards: int | None) -> None:
    if shards is not None and not 1 <= shards <= limits.SHARDS_MAX:
        raise ProvisionError(f"{shards} shards: from 1 to {limits.SHARDS_MAX}")
    if not settings.registry_url:
        raise ProvisionError("no schema registry: set LAXITY_REGISTRY_URL, or start a stack with `laxity up`")


class _Provisioning:
    """One run: its clients and what it saw at its beginning."""

    def __init__(self, settings: Settings, config: Config, shards: int | None, clock: Clock) -> None:
        self._settings, self._clock = settings, clock
        self._clients = KafkaClients(settings, role="provision")
        self._admin: AdminClient = self._clients.admin()
        self._seen, self._replicas = _seen(self._admin, settings)
        anchor = self._seen.get(settings.names.full(_ANCHOR))
        self._shards = shards or anchor or SHARDS_DEFAULT
        fleets = {name: fleet.partitions for name, fleet in config.fleets.items()}
        self._catalogue: tuple[Topic, ...] = catalogue(fleets, self._shards)

    def look(self) -> Plan:
        """What is missing or differs."""
        with Registry(self._settings.registry_url) as registry:
            contracts = read_contracts(self._settings, self._clients, self._clock)
            found = subjects.look(self._catalogue, self._settings.names, registry, contracts)
        return self._plan(self._topic_changes(), found)

    def carry_out(self) -> Plan:
        """Topics first, then contracts against the registry, then schemas, then new contracts."""
        changes = self._topic_changes()
        topics.refuse(changes)
        with Registry(self._settings.registry_url) as registry:
            contracts = read_contracts(self._settings, self._clients, self._clock)
            verify_contracts(contracts.values(), registry)
            topics.carry_out(self._admin, self._catalogue, changes, self._settings.names, self._replicas)
            done, added = subjects.register(self._catalogue, self._settings.names, registry, contracts)
        if added:
            subjects.write(self._clients.producer(), self._settings.names, added, contracts)
        return self._plan(changes, done)

    def _topic_changes(self) -> list[TopicChange]:
        return topics.compare(self._admin, self._catalogue, self._seen, self._settings.names, self._replicas)

    def _plan(self, changed: list[TopicChange], found: Iterable[subjects.SubjectChange]) -> Plan:
        return Plan(shards=self._shards, replicas=self._replicas, topics=changed, subjects=tuple(found))


def _seen(admin: AdminClient, settings: Settings) -> tuple[dict[str, int], int]:
    """(partitions by full topic name, number of copies).

    A deployment that exists keeps its number of copies: the brokers that happen to be up now say nothing of how many copies its topics
    have, and two in-sync replicas asked of a topic with two copies would stop it with the first broker that is away.
    """
    try:
        cluster = admin.list_topics(timeout=topics.REQUEST_TIMEOUT_S)
    except KafkaException as error:
        raise ProvisionError(f"Kafka at {settings.kafka} does not answer: {error.args[0].str()}") from error
    anchor = cluster.topics.get(settings.names.full(_ANCHOR))
    copies = len(anchor.partitions[0].replicas) if anchor else min(REPLICAS_MAX, len(cluster.brokers))
    return {name: len(topic.partitions) for name, topic in cluster.topics.items()}, copies
