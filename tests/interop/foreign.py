"""The clients that are not ours, as processes: what goes in is JSON, what comes out is JSON lines."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interop.stack import Stack
from interop.tools import Tools

RUN_S = 240.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A trigger that a foreign client is to publish: the record's fields but the payload, the document, and whether the record gets a key."""

    fields: Mapping[str, str]
    document: Mapping[str, Any]
    keyed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What the client says of it; `run_id` is the client's own computation."""

    order: Order
    topic: str
    run_id: str
    partition: int
    offset: int
    schema_id: int

    @property
    def place(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


def publish(client: str, tools: Tools, stack: Stack, topic: str, orders: Sequence[Order]) -> list[Sent]:
    """By `node` or `java`."""
    command = list(tools.java) if client == "java" else ["node", "publish.js"]
    triggers = [{"fields": o.fields, "document": o.document, "keyed": o.keyed} for o in orders]
    lines = _run(command, tools.node, stack, {"topic": topic, "triggers": triggers})
    return [
        Sent(
            order=order,
            topic=topic,
            run_id=line["run_id"],
            partition=line["partition"],
            offset=line["offset"],
            schema_id=line["schema_id"],
        )
        for order, line in zip(orders, lines, strict=True)
    ]


def node_reads(tools: Tools, stack: Stack, ends: Mapping[str, Mapping[int, int]]) -> list[dict[str, Any]]:
    """Every record up to `ends` (topic → partition → last offset), each as `read.js` describes it."""
    return list(_run(["node", "read.js"], tools.node, stack, ends))


def kaskade_shows(tools: Tools, stack: Stack, topic: str, texts: Sequence[str]) -> tuple[bool, str]:
    """Whether one of the texts appears in kaskade's table, and the screen."""
    done = subprocess.run(
        [*tools.kaskade, stack.kafka, stack.registry, topic],
        input=json.dumps(texts),
        env=_environment({"TERM": "xterm-256color"}),
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    return done.returncode == 0, done.stdout + done.stderr


def _run(command: Sequence[str], folder: Path, stack: Stack, document: Any) -> Iterable[dict[str, Any]]:
    done = subprocess.run(
        command,
        cwd=folder,
        input=json.dumps(document),
        env=_environment({"KAFKA": stack.kafka, "REGISTRY_URL": stack.registry}),
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}\n{done.stderr}"
    return [json.loads(line) for line in done.stdout.split("\n") if line]


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    """Nothing of ours: no LAXITY_ variable reaches a foreign client."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("LAXITY_", "PYTHON"))}
    return {**mine, **more}
