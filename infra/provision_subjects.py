"""Subjects and contracts: register our schemas under every topic's subject, set its compatibility, keep the ids in the `contracts` topic.

A schema whose fingerprint has a contract is registered with the contract's text: an edited doc makes no second id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from confluent_kafka import KafkaError, Message, Producer

from laxity.infra.provision_topics import ProvisionError
from laxity.schemas.avro_schema import fingerprint, schema_text
from laxity.schemas.contracts import TOPIC
from laxity.schemas.records import Contract
from laxity.schemas.registry import IncompatibleSchema, Registry, RegistryError
from laxity.schemas.serde import Codec, Pin
from laxity.schemas.topics import Names, Topic

FLUSH_S = 30.0
_NO_SUBJECT = 40401


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectChange:
    """What becomes of one subject; `registry_id` is None for one that a plan would register."""

    subject: str  # full
    record: str
    action: Literal["ok", "register"]
    registry_id: int | None
    compatibility: str

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "subject": self.subject,
            "record": self.record,
            "action": self.action,
            "id": self.registry_id,
            "compatibility": self.compatibility,
        }


def look(
    topics: Sequence[Topic], names: Names, registry: Registry, contracts: Mapping[str, Contract]
) -> list[SubjectChange]:
    """What is registered; asks only."""
    entries = []
    for topic, record in _with_schema(topics):
        subject = f"{names.full(topic.name)}-value"
        text, known = _text(record, contracts)
        found = registry.lookup(subject, text)
        entries.append(
            _entry(subject, topic, record, "ok" if found is not None and known else "register", found)
        )
    return entries


def register(
    topics: Sequence[Topic], names: Names, registry: Registry, contracts: Mapping[str, Contract]
) -> tuple[list[SubjectChange], list[Contract]]:
    """(one entry per subject, contracts to be written). IncompatibleSchema names the subject; ProvisionError where ids disagree."""
    entries, new = [], dict[str, Contract]()
    for topic, record in _with_schema(topics):
        subject = f"{names.full(topic.name)}-value"
        text, known = _text(record, contracts)
        before = registry.lookup(subject, text)
        number = _register(registry, subject, text, topic)
        contract = Contract(fingerprint=fingerprint(text), subject=subject, registry_id=number, schema=text)
        _agree(contracts.get(contract.fingerprint) or new.get(contract.fingerprint), contract)
        if not known:
            new.setdefault(contract.fingerprint, contract)
        entries.append(
            _entry(subject, topic, record, "ok" if before is not None and known else "register", number)
        )
    return entries, list(new.values())


def write(
    producer: Producer, names: Names, new: Sequence[Contract], contracts: Mapping[str, Contract]
) -> None:
    """Append `new` contracts and wait until the broker has them. ProvisionError otherwise. `contracts` are those that stood before."""
    failed: list[str] = []
    codec = _contract_codec([*contracts.values(), *new])

    def delivered(error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            failed.append(error.str())

    for contract in new:
        producer.produce(
            names.full(TOPIC), key=contract.fingerprint, value=codec.encode(contract), on_delivery=delivered
        )
    left = producer.flush(FLUSH_S)
    if left or failed:
        reason = failed[0] if failed else f"{left} records were not acknowledged within {FLUSH_S} s"
        raise ProvisionError(f"{names.full(TOPIC)}: {reason}")


def _with_schema(topics: Sequence[Topic]) -> Iterator[tuple[Topic, type]]:
    return ((topic, topic.record) for topic in topics if topic.record)


def _text(record: type, contracts: Mapping[str, Contract]) -> tuple[str, bool]:
    """(what to register, is there a contract of it)."""
    ours = schema_text(record)
    contract = contracts.get(fingerprint(ours))
    return (contract.schema, True) if contract else (ours, False)


def _register(registry: Registry, subject: str, text: str, topic: Topic) -> int:
    """The mode first, so that it judges this very version; a subject without versions takes it afterwards."""
    try:
        registry.set_compatibility(subject, topic.compatibility)
        pending = False
    except RegistryError as error:
        if error.error_code != _NO_SUBJECT:
            raise
        pending = True
    try:
        number = registry.register(subject, text)
    except IncompatibleSchema as error:
        raise IncompatibleSchema(
            f"{subject}: the new schema cannot be read with the old ones ({topic.compatibility}): {error}",
            error.error_code,
        ) from error
    if pending:
        registry.set_compatibility(subject, topic.compatibility)
    return number


def _agree(known: Contract | None, found: Contract) -> None:
    if known and known.registry_id != found.registry_id:
        raise ProvisionError(
            f"{found.subject}: the registry gives id {found.registry_id} to the schema that {known.subject} has under "
            f"{known.registry_id}; records would have two meanings. One schema must have one id in all subjects"
        )


def _entry(
    subject: str, topic: Topic, record: type, action: Literal["ok", "register"], number: int | None
) -> SubjectChange:
    return SubjectChange(
        subject=subject,
        record=record.__name__,
        action=action,
        registry_id=number,
        compatibility=topic.compatibility,
    )


def _contract_codec(contracts: Sequence[Contract]) -> Codec:
    """Frames contracts by the id that Contract itself has among them."""
    ours = fingerprint(schema_text(Contract))
    number = next(c.registry_id for c in contracts if c.fingerprint == ours)
    return Codec([Pin(registry_id=number, record=Contract, schema=schema_text(Contract))])
