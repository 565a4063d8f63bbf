"""Each role at work with one of its entries in Kafka missing. `works` says whether everything that the role is for was done."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final, Protocol

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType  # type: ignore[attr-defined]
from security import acts, rights
from security.acts import Sent
from security.deployment import CONFIG, FLEET, SHARDS, Deployment
from security.waiting import CLOCK, until

from laxity.infra.provision import ProvisionError, provision
from laxity.infra.security.roles import KafkaAcl, role
from laxity.producers.publisher import PublishFailed
from laxity.schemas import config as configuration
from laxity.schemas.contracts import ContractError
from laxity.schemas.settings import settings

LIMIT_S: Final = 240.0  # for everything, on a machine that is busy
REQUEST_S: Final = 10.0


class Trial(Protocol):
    """One role."""

    def running(self) -> AbstractContextManager[None]: ...

    def without(self, acl: KafkaAcl) -> AbstractContextManager[None]: ...

    def works(self, name: str) -> bool: ...


class _Base:
    """Entries of the deployment's own users."""

    role: str

    def __init__(self, made: Deployment) -> None:
        self.made = made
        self.user = made.role(self.role).user

    @contextmanager
    def running(self) -> Iterator[None]:
        yield

    def without(self, acl: KafkaAcl) -> AbstractContextManager[None]:
        return rights.without(self.made, self.user, acl)


class Publisher(_Base):
    role = "publisher"

    def works(self, name: str) -> bool:
        try:
            return bool(acts.publish(self.made, name))
        except (ContractError, PublishFailed):
            return False


class _Pipeline(_Base):
    """The counterpart runs all the time, the one on trial anew each time."""

    counterpart: str

    def __init__(self, made: Deployment) -> None:
        super().__init__(made)
        self._took_s = LIMIT_S  # after a refusal it has as long as all took undisturbed: what works nevertheless did not need it
        self.start: Mapping[str, Callable[[], Any]] = {"processor": made.scheduler, "agents": made.runner}

    @contextmanager
    def running(self) -> Iterator[None]:
        other = self.start[self.counterpart]()
        try:
            yield
        finally:
            other.stop()

    def works(self, name: str) -> bool:
        events, mark = acts.Events(self.made), self.made.kafka.mark()
        begun_ms = CLOCK.monotonic_ms()
        process = self.start[self.role]()
        try:
            sent = acts.publish(self.made, f"{name}-{secrets.token_hex(4)}")
            if not self._ended(events, sent, mark):
                return False
            self._took_s = (CLOCK.monotonic_ms() - begun_ms) / 1_000
            return True
        finally:
            process.kill()
            events.close()

    def _ended(self, events: acts.Events, sent: Sent, mark: int) -> bool:
        return acts.works_within(
            self.made,
            self.user,
            lambda: events.has_all(sent),
            mark=mark,
            limit_s=LIMIT_S,
            grace_s=self._took_s,
        )


class Processor(_Pipeline):
    role, counterpart = "processor", "agents"


class Agents(_Pipeline):
    role, counterpart = "agents", "processor"


class Ui(_Base):
    role = "ui"

    @contextmanager
    def running(self) -> Iterator[None]:
        """One task that has ended is enough."""
        events = acts.Events(self.made)
        processes = self.made.both_ready()
        self.sent = acts.publish(self.made, "for-the-ui")
        until("all have ended", lambda: events.has_all(self.sent))
        events.close()
        for process in processes:
            process.stop()
        yield

    def works(self, name: str) -> bool:
        try:
            return acts.look(self.made, self.sent)
        except AssertionError:  # a command failed
            return False


class Operator(Ui):
    role = "operator"

    def works(self, name: str) -> bool:
        try:
            return acts.operate(self.made)
        except (AssertionError, KafkaException):
            return False


class Provisioner(_Base):
    """Each time in a deployment of its own, from nothing."""

    role = "provisioner"

    def __init__(self, made: Deployment) -> None:
        super().__init__(made)
        self._left_out: KafkaAcl | None = None

    @contextmanager
    def without(self, acl: KafkaAcl) -> Iterator[None]:
        self._left_out = acl
        yield
        self._left_out = None

    def works(self, name: str) -> bool:
        prefix = f"t{secrets.token_hex(4)}."
        theirs = role("provisioner", prefix=prefix, fleets=[FLEET], user=self.user)
        numbers = {acl: n for n, acl in enumerate(self.made.role("provisioner").kafka)}
        kept = [
            a for n, a in enumerate(theirs.kafka) if self._left_out is None or n != numbers[self._left_out]
        ]
        rights.give(self.made, self.user, kept)
        found = settings(
            kafka=self.made.kafka.roles,
            kafka_config=self.made.properties_file("provisioner"),
            registry_url=self.made.registry,
            prefix=prefix,
        )
        config = configuration.parse(CONFIG)
        try:
            first = provision(found, config, shards=SHARDS)
            _meddle(self.made.kafka.admin(), f"{prefix}keys")
            second = provision(found, config, shards=SHARDS)
        except (ProvisionError, ContractError, KafkaException):
            return False
        return first.changes > 0 and second.changes == 1


def _meddle(admin: AdminClient, topic: str) -> None:
    """Somebody changed a setting."""
    entry = ConfigEntry("retention.ms", "1000000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    for future in admin.incremental_alter_configs([resource], request_timeout=REQUEST_S).values():
        future.result(REQUEST_S)


ACTS: Final[Mapping[str, Callable[[Deployment], Trial]]] = {
    each.role: each for each in (Publisher, Processor, Agents, Ui, Operator, Provisioner)
}
