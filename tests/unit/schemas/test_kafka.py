"""Client settings: what we rely on cannot be undone, everything else can be added."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer
from pydantic import ValidationError

from laxity.schemas import kafka_properties as p
from laxity.schemas.kafka import REPEAT_S, KafkaClients, quiet_logger
from laxity.schemas.kafka_properties import PropertyRefused
from laxity.schemas.settings import Settings, SettingsError, settings

PLACE = Settings(kafka="127.0.0.1:9", prefix="p.")


def clients(**env: str) -> KafkaClients:
    return KafkaClients(PLACE, role="test", env=env)


def test_every_client_is_accepted_by_librdkafka() -> None:
    made = clients()
    consumers = [
        made.urgent_consumer(),
        made.bulk_consumer(),
        made.restore_consumer(),
        made.agents_consumer("default"),
        made.reader("tail"),
    ]
    producers = [
        made.producer(),
        made.outcomes_producer(),
        made.shard_producer(0),
        made.transactional_producer("operator"),
    ]
    assert made.admin() is not None
    for consumer in consumers:
        assert isinstance(consumer, Consumer)
        consumer.close()
    assert all(isinstance(producer, Producer) for producer in producers)


def test_the_new_group_protocol_is_accepted_too() -> None:
    """librdkafka refuses classic settings beside group.protocol=consumer."""
    consumer = clients(LAXITY_KAFKA__GROUP__PROTOCOL="consumer").urgent_consumer()
    consumer.close()


def test_the_new_group_protocol_takes_no_static_members() -> None:
    static = {"LAXITY_KAFKA__GROUP__INSTANCE__ID": "me"}
    clients(**static).urgent_consumer().close()
    with pytest.raises(PropertyRefused, match=r"group\.instance\.id"):
        clients(LAXITY_KAFKA__GROUP__PROTOCOL="consumer", **static).urgent_consumer()


def test_what_exactly_once_rests_on() -> None:
    made = clients()
    for tables, group in (
        ((p.MEMBER, p.URGENT), "scheduler"),
        ((p.BULK,), "scheduler"),
        ((p.RESTORE,), "restore"),
    ):
        found = made.consumer_properties(*tables, group=group)
        assert found["isolation.level"] == "read_committed"
        assert found["auto.offset.reset"] == "earliest"
        assert found["enable.auto.commit"] is False
        assert found["enable.auto.offset.store"] is False
        assert found["check.crcs"] is True
        assert found["enable.partition.eof"] is True
        assert found["group.id"] == f"p.{group}"
    for table in (p.PUBLISHER, p.OUTCOMES, p.SHARD_PRODUCER):
        made_with = made.producer_properties(table, {})
        assert made_with["acks"] == "all"
        assert made_with["enable.idempotence"] is True
        assert made_with["partitioner"] == "murmur2_random"
    shard = made.producer_properties(p.SHARD_PRODUCER, {"transactional.id": "p.scheduler.3"})
    assert int(shard["message.timeout.ms"]) < int(shard["transaction.timeout.ms"]) == 5_000
    assert shard["transactional.id"] == "p.scheduler.3"


def test_an_outcome_is_never_given_up_whatever_publishers_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    made = clients(LAXITY_KAFKA__MESSAGE__TIMEOUT__MS="1000")
    seen: list[Any] = []
    monkeypatch.setattr("laxity.schemas.kafka.Producer", lambda found, **_: seen.append(found))
    made.producer()
    made.outcomes_producer()
    assert [found["message.timeout.ms"] for found in seen] == ["1000", 0]


def test_client_ids_tell_role_host_and_number() -> None:
    made = clients()
    first = made.producer_properties(p.PUBLISHER, {})["client.id"]
    second = made.producer_properties(p.PUBLISHER, {})["client.id"]
    assert str(first).startswith("laxity-test-")
    assert first != second


def test_every_property_has_a_reason() -> None:
    tables = [value for value in vars(p).values() if isinstance(value, dict) and value]
    because = [b for table in tables for b in table.values() if isinstance(b, p.Because)]
    assert len(because) > 30
    assert all(len(b.reason) > 10 for b in because)


@pytest.mark.parametrize("key", p.PROTECTED)
def test_protected_properties_are_refused_with_the_reason(key: str, tmp_path: Path) -> None:
    variable = "LAXITY_KAFKA__" + key.upper().replace(".", "__")
    with pytest.raises(PropertyRefused, match=f"Kafka property {key} cannot be set: .+"):
        clients(**{variable: "x"}).producer()
    file = tmp_path / "kafka.properties"
    file.write_text(f"{key}=x\n", encoding="utf-8")
    with pytest.raises(PropertyRefused, match=key):
        KafkaClients(PLACE.model_copy(update={"kafka_config": file}), role="test", env={}).urgent_consumer()


def test_security_passes_through_verbatim(tmp_path: Path) -> None:
    file = tmp_path / "kafka.properties"
    file.write_text("# secrets\n\nsasl.username = me\nsasl.password=a=b #c\nlinger.ms=7\n", encoding="utf-8")
    file.chmod(0o600)
    place = PLACE.model_copy(update={"kafka_config": file})
    env = {
        "LAXITY_KAFKA__SECURITY__PROTOCOL": "SASL_SSL",
        "LAXITY_KAFKA__LINGER__MS": "9",
        "LAXITY_KAFKA": "other:1",
    }
    found = KafkaClients(place, role="test", env=env).producer_properties(p.PUBLISHER, {})
    assert found["security.protocol"] == "SASL_SSL"
    assert found["sasl.username"] == "me"
    assert found["sasl.password"] == "a=b #c"
    assert found["linger.ms"] == "9", "variables go over the file, both over ours"
    assert found["bootstrap.servers"] == "127.0.0.1:9"


def test_a_bad_file_of_properties(tmp_path: Path) -> None:
    file = tmp_path / "kafka.properties"
    with pytest.raises(SettingsError, match="cannot be read"):
        KafkaClients(PLACE.model_copy(update={"kafka_config": file}), role="test", env={})
    file.write_text("linger.ms=1\nnonsense\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"kafka\.properties:2: expected key=value"):
        KafkaClients(PLACE.model_copy(update={"kafka_config": file}), role="test", env={})


def test_without_an_address_it_says_what_to_do() -> None:
    with pytest.raises(SettingsError, match="set LAXITY_KAFKA"):
        KafkaClients(Settings(kafka=""), role="test", env={})


def test_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAXITY_KAFKA", "k:1")
    monkeypatch.setenv("LAXITY_REGISTRY_URL", "http://r/apis/ccompat/v7/")
    monkeypatch.setenv("LAXITY_REDIS_URL", "redis://:secret@r")
    monkeypatch.setenv("LAXITY_PREFIX", "x.")
    monkeypatch.setenv("LAXITY_KAFKA__SECURITY__PROTOCOL", "SSL")
    found = settings(kafka=None, prefix="flag.")
    assert (found.kafka, found.prefix) == ("k:1", "flag.")
    assert found.registry_url == "http://r/apis/ccompat/v7"
    assert "secret" not in repr(found)
    assert found.kafka_properties() == {"security.protocol": "SSL"}
    assert found.names.full("state") == "flag.state"
    with pytest.raises(ValidationError, match="prefix"):
        settings(prefix="a b")
    with pytest.raises(ValidationError):
        found.kafka = "other"


def test_a_flood_of_log_lines_stays_one(caplog: pytest.LogCaptureFixture) -> None:
    """librdkafka says the same every second for as long as a broker is away."""
    logger = quiet_logger()
    assert quiet_logger() is logger
    assert len(list(logger.filters)) == 1

    def line(facility: str, created: float) -> None:
        record = logger.makeRecord(
            logger.name, logging.ERROR, "f", 1, "%s [%s] %s", (facility, "client", "text"), None
        )
        record.created = created
        logger.handle(record)

    start = 1e12  # later than any line of another test
    for second in range(60):
        line("FAIL", start + second)
    line("REQTMOUT", start)
    assert len(caplog.records) == 60 / REPEAT_S + 1
