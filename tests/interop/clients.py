"""Clients that are not ours read every topic and publish triggers: stock confluent-kafka, Node, Java, kaskade, Kafka's own tools.

`make interop` runs this file; the general test targets do not collect it, because it needs Node, a JDK and Maven.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any

import pytest
from interop import foreign
from interop.foreign import Sent
from interop.load import FOREIGN_TIERS, POISON, original_key
from interop.stock import Found
from interop.world import World

from laxity.schemas.identity import run_id_of, shard_of, task_id_of
from laxity.schemas.topics import PREFIX_DEFAULT, SHARDS_DEFAULT, TIERS, Topic, catalogue

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # the first test starts the stack and loads it

TOPICS = {PREFIX_DEFAULT + topic.name: topic for topic in catalogue({"default": 16})}
DECODED = [name for name, topic in TOPICS.items() if topic.record]
LETTERS = [name for name, topic in TOPICS.items() if not topic.record]
CLIENTS = pytest.mark.parametrize("client", sorted(FOREIGN_TIERS))
SHOWN_CHARS = 60  # of a decoded row in kaskade's table, which cuts at its column
AT_A_TIME = 2  # kaskades


# What ours did first: else the rest would prove nothing.


def test_every_trigger_has_its_end(world: World) -> None:
    for ids, state in (
        (world.load.succeed, "SUCCEEDED"),
        (world.load.dead, "DEAD"),
        (world.load.cancelled, "CANCELLED"),
    ):
        assert {task_id: last_state(world, task_id) for task_id in ids} == dict.fromkeys(ids, state)


def test_the_catalogue_is_what_the_broker_has(world: World) -> None:
    assert world.reader.topics(PREFIX_DEFAULT) == set(TOPICS)


# Readers.


@pytest.mark.parametrize("name", DECODED)
def test_stock_deserialiser_reads(world: World, name: str) -> None:
    """Every record but the poison that this test put there; with exactly the fields of the catalogue's record."""
    found = world.of(name)
    assert found, f"{name} is empty: nothing is proved"
    assert {f.place: f.problem for f in found if f.problem and f.place not in world.load.poison} == {}
    columns = columns_of(TOPICS[name])
    values = [f.value for f in found if f.value is not None]
    assert values
    assert all(set(value) == columns for value in values)


@pytest.mark.parametrize("name", LETTERS)
def test_letters_are_the_original_bytes(world: World, name: str) -> None:
    """A dead letter is decodable if and only if its original is: the bytes and the key are the same."""
    originals = {f.place: f for f in world.records}
    letters = world.of(name)
    assert letters, f"{name} is empty: nothing is proved"
    for letter in letters:
        original = originals[origin_of(letter)]
        assert (letter.raw, letter.key) == (original.raw, original.key)
        assert letter.value == original.value
        assert bool(letter.problem) == (letter.raw == POISON)
    if name != "laxity.dlq.internal":
        assert {bool(letter.problem) for letter in letters} == {True, False}, "both kinds were wanted"


def test_state_rows(world: World) -> None:
    rows = [f.value for f in world.of("laxity.state") if f.value is not None]
    assert {row["table"] for row in rows} >= {"task", "payload", "shard"}
    assert all(isinstance(row["row"], bytes) for row in rows)


def test_node_reads_the_same(world: World) -> None:
    """Another registry client, another Avro library, another Kafka client: record by record the same values."""
    ends = dict[str, dict[int, int]]()
    for topic, partition, offset in (f.place for f in world.records):
        ends.setdefault(topic, {}).setdefault(partition, -1)
        ends[topic][partition] = max(offset, ends[topic][partition])
    lines = foreign.node_reads(world.tools, world.stack, ends)
    theirs = {(line["topic"], line["partition"], line["offset"]): line for line in lines}
    assert len(theirs) == len(lines)
    assert set(theirs) == {f.place for f in world.records}
    for found in world.records:
        line = theirs[found.place]
        if found.problem:
            assert line["error"], found.place
        elif found.raw is None:
            assert line["tombstone"], found.place
        else:
            assert line["value"] == as_json(found.value), found.place


def test_kaskade_shows_every_topic(world: World) -> None:
    """A row of each topic decoded through the registry, in a terminal."""
    texts = dict(shown(world))
    assert set(texts) == set(TOPICS) - {"laxity.dlq.internal"}  # that one holds the poison alone
    with ThreadPoolExecutor(AT_A_TIME) as several:
        screens = several.map(
            lambda name: foreign.kaskade_shows(world.tools, world.stack, name, texts[name]), texts
        )
        failed = {name: screen for name, (seen, screen) in zip(texts, screens, strict=True) if not seen}
    assert not failed, "\n".join(f"{name}\n{screen}" for name, screen in failed.items())


def test_console_consumer_reads(world: World) -> None:
    """Kafka's own consumer sees the same committed records, headers and keys among them."""
    name = "laxity.dispatch.default"
    found = world.of(name)
    text = world.stack.kafka_tool(
        "console-consumer",
        *("--topic", name, "--from-beginning", "--max-messages", str(len(found)), "--timeout-ms", "30000"),
        *("--isolation-level", "read_committed"),
        *(f"--formatter-property=print.{what}=true" for what in ("partition", "offset", "headers", "key")),
        "--formatter-property=print.value=false",
    )
    lines = sorted(line.split("\t") for line in text.splitlines() if line.startswith("Partition:"))
    wanted = sorted(
        [
            f"Partition:{f.place[1]}",
            f"Offset:{f.place[2]}",
            ",".join(f"{header}:{value.decode()}" for header, value in f.headers),
            (f.key or b"").decode(),
        ]
        for f in found
    )
    assert lines == wanted


# Writers.


@CLIENTS
def test_the_documented_ids(world: World, client: str) -> None:
    """The run id from the text alone is ours, and the schema's id is the one that ours are written with."""
    ids = {
        int.from_bytes((f.raw or b"")[1:5], "big")
        for f in world.of(f"laxity.triggers.{FOREIGN_TIERS[client]}")
    }
    for sent in world.load.sent[client]:
        assert sent.run_id == names(sent)[0]
        assert sent.schema_id in ids


@CLIENTS
def test_triggers_by_run_id_land_at_home(world: World, client: str) -> None:
    keyed = [sent for sent in world.load.sent[client] if sent.order.keyed]
    assert len({sent.partition for sent in keyed}) > 2, "so few shards would prove nothing"
    for sent in keyed:
        assert sent.partition == shard_of(sent.run_id, SHARDS_DEFAULT), sent
        assert not rehomed(world, sent), sent


@CLIENTS
def test_triggers_without_a_record_key_are_brought_home(world: World, client: str) -> None:
    unkeyed = [sent for sent in world.load.sent[client] if not sent.order.keyed]
    strays = [sent for sent in unkeyed if sent.partition != shard_of(sent.run_id, SHARDS_DEFAULT)]
    assert strays, "all fell on their own shard: one run in 65,000"
    assert [sent for sent in unkeyed if rehomed(world, sent)] == strays


@CLIENTS
def test_new_triggers_run_once(world: World, client: str) -> None:
    effects = world.stack.effects()
    for sent in new(world, client):
        task_id = names(sent)[1]
        assert last_state(world, task_id) == "SUCCEEDED", sent
        assert effects[task_id] == 1, sent


@CLIENTS
def test_duplicates_of_ours_do_nothing_twice(world: World, client: str) -> None:
    """Another library wrote the same business values: the payload's bytes are the same, so it is no conflict."""
    effects = world.stack.effects()
    duplicates = [sent for sent in world.load.sent[client] if sent not in new(world, client)]
    assert {sent.order.keyed for sent in duplicates} == {True, False}
    for sent in duplicates:
        task_id = names(sent)[1]
        assert task_id in world.load.duplicates
        told = [event.value or {} for event in world.events(task_id, "duplicate")]
        assert [event["detail"] for event in told].count(sent.place) == 1, told
        assert effects[task_id] == 1


@pytest.mark.parametrize("tier", TIERS)
def test_ours_ran_once(world: World, tier: str) -> None:
    [task_id] = [task_id for task_id, found in world.load.succeed.items() if found == tier]
    assert world.stack.effects()[task_id] == 1
    assert len(world.events(task_id, "conflict")) == 1


# How it is asked.


def columns_of(topic: Topic) -> set[str]:
    record: Any = topic.record
    return {column.name for column in fields(record)}


def origin_of(letter: Found) -> tuple[str, int, int]:
    """From our headers, which are text."""
    words = [letter.last_header(f"laxity.error.{what}").decode() for what in ("topic", "partition", "offset")]
    return words[0], int(words[1]), int(words[2])


def names(sent: Sent) -> tuple[str, str]:
    """Run id and task id by our own derivation."""
    given = sent.order.fields
    tenant, key = given.get("tenant", "default"), given["key"]
    run_id = run_id_of(tenant, given.get("run_id", ""), key)
    return run_id, task_id_of(tenant, run_id, key)


def new(world: World, client: str) -> list[Sent]:
    key = original_key(FOREIGN_TIERS[client])
    return [sent for sent in world.load.sent[client] if sent.order.fields["key"] != key]


def rehomed(world: World, sent: Sent) -> bool:
    events = world.events(names(sent)[1], "rehomed")
    return any((event.value or {})["detail"].startswith(f"{sent.place} ") for event in events)


def last_state(world: World, task_id: str) -> str:
    events = world.events(task_id, "transitions")
    return str((events[-1].value or {})["state"]) if events else "unknown to the scheduler"


def shown(world: World) -> Iterator[tuple[str, list[str]]]:
    """What kaskade, which shows a decoded value as Python writes it, can begin a row with: by topic."""
    for name in TOPICS:
        rows = {repr(f.value)[:SHOWN_CHARS] for f in world.of(name) if f.value is not None}
        if rows:
            yield name, sorted(rows)


def as_json(value: Any) -> Any:
    """The notation of read.js."""
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, Mapping):
        return {name: as_json(item) for name, item in value.items()}
    if isinstance(value, list):
        return [as_json(item) for item in value]
    return value
