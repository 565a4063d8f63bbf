"""One stack for all tests of this folder, loaded once: ours, then Node's and Java's, then everything has ended."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient
from interop import load, stack, stock, tools
from interop.world import EVENTS, World, ends, settled

ENDED_MS = 180_000  # 50 tasks of 50 ms; the rest is for a busy machine
KNOWN_MS = 60_000


@pytest.fixture(scope="session")
def installed() -> tools.Tools:
    """The foreign clients. pytest ends with one line if the machine lacks what they need."""
    try:
        return tools.prepare()
    except tools.Missing as missing:
        pytest.exit(str(missing), returncode=2)


@pytest.fixture(scope="session")
def world(installed: tools.Tools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with (
        stack.running(tmp_path_factory.mktemp("interop")) as started,
        SchemaRegistryClient({"url": started.registry}) as registry,
    ):
        reader = stock.Reader(started.kafka, registry)
        loaded = load.ours(started)
        _cancel(started, reader, loaded)
        for client in load.FOREIGN_TIERS:
            loaded.sent[client] = load.foreign(client, installed, started)
        reader.watch(EVENTS, lambda found: settled(found, loaded), ENDED_MS)
        records = reader.whole(sorted(reader.topics("laxity.")))
        yield World(stack=started, tools=installed, load=loaded, reader=reader, records=records)


def _cancel(started: stack.Stack, reader: stock.Reader, loaded: load.Load) -> None:
    """Once the scheduler knows the tasks."""
    reader.watch(EVENTS, lambda found: loaded.cancelled <= ends(found, {"DELAYED"}), KNOWN_MS)
    for task_id in loaded.cancelled:
        started.laxity("cancel", task_id, "--reason", "no longer wanted", "--wait", "30s")
