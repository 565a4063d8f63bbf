"""Provisioning against a real Kafka and a real registry."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import ConfigResource, NewTopic, ResourceType  # type: ignore[attr-defined]
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from laxity.infra.cli import main
from laxity.infra.local import Endpoints
from laxity.infra.provision import Plan, ProvisionError, plan, provision, shards_of
from laxity.schemas import config as configuration
from laxity.schemas.avro_schema import fingerprint, schema_of, schema_text
from laxity.schemas.contracts import ContractError, open_codec, read_contracts, verify_contracts
from laxity.schemas.kafka import KafkaClients
from laxity.schemas.records import Contract, Trigger
from laxity.schemas.registry import IncompatibleSchema, Registry, RegistryUnavailable
from laxity.schemas.settings import Settings, settings
from laxity.schemas.timing import SystemClock
from laxity.schemas.topics import catalogue, written_records

pytestmark = pytest.mark.integration

CONFIG = configuration.parse("[fleets.gpu]\npartitions = 3\n")


def deployment(stack: Endpoints) -> Settings:
    """A deployment of its own on the session's servers."""
    prefix = f"p{uuid.uuid4().hex[:8]}."
    return settings(kafka=stack.kafka, registry_url=stack.registry, prefix=prefix)


@pytest.fixture(scope="module")
def ready(stack: Endpoints) -> tuple[Settings, Plan]:
    """A provisioned deployment and the report of its first run. Tests leave it as it is."""
    found = deployment(stack)
    return found, provision(found, CONFIG, shards=2)


@pytest.fixture
def stock(stack: Endpoints) -> Iterator[SchemaRegistryClient]:
    """The stock client of the registry."""
    with SchemaRegistryClient({"url": stack.registry}) as client:
        yield client


def test_a_plan_changes_nothing(stack: Endpoints) -> None:
    found = deployment(stack)
    first, second = plan(found, CONFIG), plan(found, CONFIG)
    assert first == second
    assert {t.action for t in first.topics} == {"create"}
    assert {s.action for s in first.subjects} == {"register"}
    assert shards_of(found) is None


def test_topics_are_what_the_catalogue_says(ready: tuple[Settings, Plan]) -> None:
    found, _ = ready
    admin = KafkaClients(found, role="test").admin()
    cluster = admin.list_topics(timeout=10).topics
    wanted = catalogue({"default": 16, "gpu": 3}, shards=2)
    assert {n for n in cluster if n.startswith(found.prefix)} == {found.names.full(t.name) for t in wanted}
    resources = [ConfigResource(ResourceType.TOPIC, found.names.full(t.name)) for t in wanted]
    settings_now = {r.name: f.result() for r, f in admin.describe_configs(resources).items()}
    for topic in wanted:
        full = found.names.full(topic.name)
        assert len(cluster[full].partitions) == topic.partitions
        for key, value in topic.settings(replicas=1).items():
            assert settings_now[full][key].value == value, f"{full}: {key}"
    assert shards_of(found) == 2


def test_a_second_run_changes_nothing_and_keeps_the_number_of_shards(ready: tuple[Settings, Plan]) -> None:
    found, _ = ready
    again = provision(found, CONFIG)
    assert again.changes == 0
    assert again.shards == 2
    assert plan(found, CONFIG).changes == 0


def test_another_number_of_shards_is_refused_before_anything_is_touched(ready: tuple[Settings, Plan]) -> None:
    found, _ = ready
    more = configuration.parse("[fleets.gpu]\npartitions = 3\n[fleets.new]\n")
    with pytest.raises(
        ProvisionError, match=r"triggers\.critical has 2 partitions, asked for 8: .*fixed for life"
    ):
        provision(found, more, shards=8)
    assert (
        found.names.full("dispatch.new")
        not in KafkaClients(found, role="test").admin().list_topics(timeout=10).topics
    )
    with pytest.raises(ProvisionError, match="from 1 to 64"):
        provision(found, CONFIG, shards=0)


def test_a_changed_setting_is_put_right(stack: Endpoints) -> None:
    found = deployment(stack)
    admin = KafkaClients(found, role="test").admin()
    name = found.names.full("state")
    admin.create_topics([NewTopic(name, num_partitions=2, replication_factor=1)])[name].result()
    expected = plan(found, CONFIG, shards=2)
    detail = next(t.detail for t in expected.topics if t.name == name)
    assert "cleanup.policy: delete -> compact" in detail
    provision(found, CONFIG, shards=2)
    assert plan(found, CONFIG).changes == 0


def test_subjects_and_modes(ready: tuple[Settings, Plan], stock: SchemaRegistryClient) -> None:
    _, report = ready
    for entry in report.subjects:
        assert stock.get_latest_version(entry.subject).schema_id == entry.registry_id
        assert stock.get_compatibility(entry.subject) == entry.compatibility
    by_record: dict[str, set[int | None]] = {}
    for entry in report.subjects:
        by_record.setdefault(entry.record, set()).add(entry.registry_id)
    assert all(len(ids) == 1 for ids in by_record.values()), "one schema has one id"


def test_contracts_pin_what_the_registry_says(ready: tuple[Settings, Plan]) -> None:
    found, report = ready
    contracts = read_contracts(found, KafkaClients(found, role="test"), SystemClock())
    assert {c.fingerprint for c in contracts.values()} == {
        fingerprint(schema_text(cls)) for cls in written_records()
    }
    codec = open_codec(found)
    assert {cls.__name__: number for cls, number in codec.ids().items()} == {
        s.record: s.registry_id for s in report.subjects
    }


def test_stock_clients_and_ours_understand_each_other(
    ready: tuple[Settings, Plan], stock: SchemaRegistryClient
) -> None:
    found, _ = ready
    codec = open_codec(found)
    topic = found.names.full("triggers.low")
    trigger = Trigger(type="t", payload=b"\x00\xff", demands={"llm": 3}, headers={"é": "🧾"})
    read = AvroDeserializer(stock)(codec.encode(trigger), SerializationContext(topic, MessageField.VALUE))
    assert read["type"] == "t"
    assert read["payload"] == b"\x00\xff"
    write: Any = AvroSerializer(stock, schema_text(Trigger), conf={"auto.register.schemas": False})
    theirs = write(read, SerializationContext(topic, MessageField.VALUE))
    assert codec.decode(Trigger, theirs) == trigger
    assert theirs == codec.encode(trigger)


BAD: dict[str, Callable[[dict[str, Any]], object]] = {
    "required": lambda s: s["fields"].append({"name": "x", "type": "string"}),
    "type": lambda s: s["fields"][0].update(type="long"),
    "dropped": lambda s: s["fields"].pop(0),
}


@pytest.mark.parametrize("name", BAD)
def test_the_registry_refuses_an_incompatible_change(
    name: str, ready: tuple[Settings, Plan], stack: Endpoints
) -> None:
    found, _ = ready
    schema = json.loads(json.dumps(schema_of(Trigger)))
    BAD[name](schema)
    with Registry(stack.registry) as registry, pytest.raises(IncompatibleSchema):
        registry.register(found.names.full("triggers.low-value"), json.dumps(schema))


def test_a_compatible_version_of_tomorrow_is_read_today(stack: Endpoints) -> None:
    """A newer release registers its version; this one reads its records without asking."""
    found = deployment(stack)
    provision(found, CONFIG, shards=1)
    newer = json.loads(json.dumps(schema_of(Trigger)))
    newer["fields"].append({"name": "colour", "type": "string", "default": "", "doc": "New."})
    with Registry(stack.registry) as registry:
        number = registry.register(found.names.full("triggers.low-value"), json.dumps(newer))
    text = json.dumps(newer)
    contract = Contract(fingerprint=fingerprint(text), subject="s", registry_id=number, schema=text)
    append(found, contract)
    codec = open_codec(found)
    row = codec.encode(Trigger(type="t"))[5:] + b"\x06red"
    assert codec.decode(Trigger, b"\0" + number.to_bytes(4, "big") + row) == Trigger(type="t")
    assert codec.ids()[Trigger] != number, "our own version is written"


def append(found: Settings, contract: Contract) -> None:
    producer = KafkaClients(found, role="test").producer()
    producer.produce(
        found.names.full("contracts"), key=contract.fingerprint, value=open_codec(found).encode(contract)
    )
    assert producer.flush(10) == 0


def test_a_registry_that_lost_its_schemas_is_refused(stack: Endpoints) -> None:
    """Another registry behind the same address would decode old records wrongly, without a sign."""
    found = deployment(stack)
    provision(found, CONFIG, shards=1)
    text = (
        schema_text(Trigger)
        .replace('"Asks for', '"asks for')
        .replace('"default":"default"', '"default":"else"')
    )
    append(found, Contract(fingerprint=fingerprint(text), subject="lost", registry_id=2_000_000, schema=text))
    for attempt in (lambda: open_codec(found), lambda: provision(found, CONFIG)):
        with pytest.raises(ContractError, match=r"id 2000000 \(lost\) is missing"):
            attempt()


def test_an_id_that_means_something_else_is_refused(ready: tuple[Settings, Plan], stack: Endpoints) -> None:
    found, report = ready
    contracts = read_contracts(found, KafkaClients(found, role="test"), SystemClock())
    other = next(s.registry_id for s in report.subjects if s.record == "Usage")
    trigger = contracts[fingerprint(schema_text(Trigger))]
    swapped = Contract(
        fingerprint=trigger.fingerprint,
        subject=trigger.subject,
        registry_id=other or 0,
        schema=trigger.schema,
    )
    with Registry(stack.registry) as registry, pytest.raises(ContractError, match="is another schema"):
        verify_contracts([swapped], registry)


def test_processes_start_without_the_registry_once_the_ids_are_pinned(ready: tuple[Settings, Plan]) -> None:
    found, _ = ready
    away = found.model_copy(update={"registry_url": "http://127.0.0.1:9/apis/ccompat/v7"})
    assert open_codec(away).ids() == open_codec(found).ids()
    with pytest.raises(RegistryUnavailable):
        provision(away, CONFIG)


def test_without_topics_a_process_says_what_to_type(stack: Endpoints) -> None:
    with pytest.raises(ContractError, match="laxity topics apply"):
        open_codec(deployment(stack))


def test_the_registry_by_itself(ready: tuple[Settings, Plan], stack: Endpoints) -> None:
    found, report = ready
    subject = found.names.full("triggers.low-value")
    number = next(s.registry_id for s in report.subjects if s.subject == subject)
    with Registry(stack.registry + "/") as registry:
        assert registry.lookup(subject, schema_text(Trigger)) == number
        assert registry.lookup(subject, '{"type":"record","name":"Nobody","fields":[]}') is None
        assert registry.lookup(found.prefix + "nobody", schema_text(Trigger)) is None
        assert fingerprint(registry.schema(number or 0) or "") == fingerprint(schema_text(Trigger))
        assert registry.schema(2_000_000) is None


def test_large_triggers_are_refused_by_the_broker_not_stored(ready: tuple[Settings, Plan]) -> None:
    found, _ = ready
    producer = KafkaClients(found, role="test").producer()
    errors: list[str] = []
    for size in (2**20 + 1, 2**20 - 4096):
        # Compressible: the limit counts the bytes as they will be stored.
        producer.produce(
            found.names.full("triggers.low"),
            value=b"\0" * size,
            on_delivery=lambda error, _: errors.append(error.name() if error else "ok"),
        )
        assert producer.flush(20) == 0
    assert errors == ["MSG_SIZE_TOO_LARGE", "ok"]


def test_append_time_is_the_broker_s(ready: tuple[Settings, Plan]) -> None:
    found, _ = ready
    clients = KafkaClients(found, role="test")
    topic, producer, stamps = found.names.full("triggers.high"), clients.producer(), list[TopicPartition]()
    producer.produce(
        topic,
        value=b"x",
        timestamp=1,
        on_delivery=lambda _, m: stamps.append(TopicPartition(topic, m.partition() or 0, m.offset() or 0)),
    )
    producer.flush(10)
    consumer = clients.restore_consumer()
    consumer.assign(stamps)
    message = consumer.poll(10)
    assert message is not None
    assert message.timestamp()[1] > 1_600_000_000_000
    consumer.close()


def test_the_commands(
    stack: Endpoints, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = deployment(stack)
    monkeypatch.setenv("LAXITY_KAFKA", found.kafka)
    monkeypatch.setenv("LAXITY_REGISTRY_URL", found.registry_url)
    monkeypatch.setenv("LAXITY_PREFIX", found.prefix)

    def laxity(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["laxity", "topics", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        shown = capsys.readouterr()
        return int(caught.value.code or 0), shown.out, shown.err

    code, out, _ = laxity("plan", "--json")
    planned = json.loads(out)
    assert code == 0
    assert planned["changes"] == len(planned["topics"]) + len(planned["subjects"]) == 46
    code, out, _ = laxity("apply", "--shards", "3", "--json")
    assert code == 0
    assert json.loads(out)["shards"] == 3
    code, out, err = laxity("apply")
    assert (code, out) == (0, "")
    assert "0 of 46 changed" in err
    code, out, _ = laxity("ls", "--json")
    rows = {row["topic"]: row for row in json.loads(out)["topics"]}
    assert rows[found.prefix + "state"]["partitions"] == 3, "as it is, not as it would be"
    code, out, _ = laxity("plan", "--shards", "4", "--json")
    assert code == 1
    assert {t["action"] for t in json.loads(out)["topics"] if "triggers" in t["topic"]} == {"refuse"}
    code, out, err = laxity("apply", "--shards", "4")
    assert code == 1
    assert "fixed for life" in err
    assert err.count("\n") == 1
    monkeypatch.setenv("LAXITY_KAFKA__ACKS", "1")
    code, out, err = laxity("apply")
    assert code == 2
    assert "acks cannot be set" in err
