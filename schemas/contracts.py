"""The `contracts` topic: which schema has which id, kept beside the data, so that a lost or foreign registry cannot make old records mean something else.

Provisioning writes it; every process reads it once at start, compares the registry with it and pins the ids. Its own records are read
without asking anybody: the schema of Contract never changes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from laxity.schemas.avro_schema import fingerprint, record_class
from laxity.schemas.kafka import KafkaClients
from laxity.schemas.records import Contract
from laxity.schemas.registry import Registry, RegistryUnavailable
from laxity.schemas.serde import HEADER_BYTES, Codec, Pin, Undecodable, decode_row
from laxity.schemas.settings import Settings
from laxity.schemas.timing import Clock, SystemClock
from laxity.schemas.topics import written_records

TOPIC = "contracts"
READ_TIMEOUT_MS = 15_000  # a broker that is starting answers within that
_POLL_S = 0.2
_log = logging.getLogger("laxity.contracts")


class ContractError(Exception):
    """The contracts cannot be read, or the registry does not agree with them. The text says which and what to do."""


def verify_contracts(contracts: Iterable[Contract], registry: Registry) -> None:
    """ContractError unless the registry has, for every contract's id, a schema of the same fingerprint. RegistryUnavailable passes through."""
    wrong = []
    for contract in contracts:
        text = registry.schema(contract.registry_id)
        if text is None:
            wrong.append(f"id {contract.registry_id} ({contract.subject}) is missing")
        elif _fingerprint(text) != contract.fingerprint:
            wrong.append(f"id {contract.registry_id} ({contract.subject}) is another schema")
    if wrong:
        raise ContractError(
            f"the registry does not hold the schemas that the records were written with: {'; '.join(wrong)}. "
            "Records would be decoded wrongly: point LAXITY_REGISTRY_URL at the right registry, or restore it."
        )


def codec_of(contracts: Iterable[Contract]) -> Codec:
    """A codec with the ids of the contracts. Those of records that this release does not know are left out: it never reads them.

    ContractError for a version that this release cannot read: records of it may already lie in its topics.
    """
    try:
        return Codec(pin for contract in contracts if (pin := _pin(contract)))
    except ValueError as error:
        raise ContractError(
            f"a registered schema cannot be read by this release: {error}. Upgrade it"
        ) from error


def open_codec(
    settings: Settings, *, clients: KafkaClients | None = None, clock: Clock | None = None
) -> Codec:
    """Once per process: read `contracts`, compare the registry, pin the ids.

    ContractError if the topic is missing or empty, or the registry disagrees. A registry that is not configured or does not answer is only
    logged: the contracts alone are enough to work, and a restart must not wait for it.
    """
    contracts = read_contracts(
        settings, clients or KafkaClients(settings, role="start"), clock or SystemClock()
    )
    if not contracts:
        raise ContractError("no schemas are registered for this deployment: run `laxity topics apply`")
    if settings.registry_url:
        try:
            with Registry(settings.registry_url) as registry:
                verify_contracts(contracts.values(), registry)
        except RegistryUnavailable as error:
            _log.warning("working by the pinned contracts alone: %s", error)
    codec = codec_of(contracts.values())
    missing = sorted(record.__name__ for record in written_records() - set(codec.ids()))
    if missing:
        raise ContractError(f"no schema id is pinned for {', '.join(missing)}: run `laxity topics apply`")
    return codec


def read_contracts(settings: Settings, clients: KafkaClients, clock: Clock) -> dict[str, Contract]:
    """Newest contract by fingerprint, in the order they were written; empty if there is no topic. ContractError if it cannot be read in time."""
    topic = settings.names.full(TOPIC)
    consumer = clients.restore_consumer()
    try:
        partitions = _partitions(consumer, topic)
        return _read_to_end(consumer, topic, partitions, clock) if partitions else {}
    except KafkaException as error:
        raise ContractError(f"{topic} cannot be read from {settings.kafka}: {error.args[0].str()}") from error
    finally:
        consumer.close()


def _partitions(consumer: Consumer, topic: str) -> list[int]:
    found = consumer.list_topics(topic, timeout=READ_TIMEOUT_MS / 1_000).topics[topic]
    if found.error is not None and found.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
        return []
    if found.error is not None:
        raise KafkaException(found.error)
    return sorted(found.partitions)


def _read_to_end(consumer: Consumer, topic: str, partitions: list[int], clock: Clock) -> dict[str, Contract]:
    consumer.assign([TopicPartition(topic, p, 0) for p in partitions])
    found: dict[str, Contract] = {}
    open_ends = set(partitions)
    deadline_ms = clock.monotonic_ms() + READ_TIMEOUT_MS
    while open_ends:
        if clock.monotonic_ms() > deadline_ms:
            raise ContractError(f"{topic} could not be read to its end within {READ_TIMEOUT_MS} ms")
        message: Any = consumer.poll(_POLL_S)
        if message is None:
            continue
        if message.error() is None:
            _take(message, found)
        elif message.error().code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - the client's own name for it
            open_ends.discard(message.partition())
        else:
            raise KafkaException(message.error())
    return found


def _take(message: Any, found: dict[str, Contract]) -> None:
    key = (message.key() or b"").decode("utf-8", "replace")
    if message.value() is None:
        found.pop(key, None)
        return
    try:
        contract = decode_row(Contract, message.value()[HEADER_BYTES:])
    except Undecodable as error:
        where = f"{message.topic()}/{message.partition()}/{message.offset()}"
        raise ContractError(f"{where} is no contract: {error}") from error
    found[contract.fingerprint] = contract


def _fingerprint(text: str) -> str | None:
    """None for a text that is no Avro schema."""
    try:
        return fingerprint(text)
    except Exception:  # noqa: BLE001 - fastavro raises whatever a hostile text provokes
        return None


def _pin(contract: Contract) -> Pin | None:
    try:
        name = str(json.loads(contract.schema)["name"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"schema id {contract.registry_id} is no Avro record: {type(error).__name__}"
        ) from error
    try:
        record = record_class(name)
    except KeyError:
        return None
    return Pin(registry_id=contract.registry_id, record=record, schema=contract.schema)
