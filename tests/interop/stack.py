"""A full stack of its own, by the commands that a user types."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UP_S = 300.0
COMMAND_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Where everything is."""

    data_dir: Path
    kafka: str
    registry: str
    redis: str
    provider_ledger: Path

    def laxity(self, *words: str) -> str:
        """Output of `laxity WORDS…`; AssertionError with its complaint for another exit code than 0."""
        return _laxity(*words, "--data-dir", str(self.data_dir))

    def kafka_tool(self, tool: str, *words: str) -> str:
        """Output of a stock Kafka tool."""
        return _laxity("kafka", "--data-dir", str(self.data_dir), tool, *words)

    def effects(self) -> Counter[str]:
        """Effects at the provider by task id."""
        lines = [json.loads(line) for line in self.provider_ledger.read_text().splitlines()]
        return Counter(line["task"] for line in lines if line["kind"] == "effect")


@contextmanager
def running(data_dir: Path) -> Iterator[Stack]:
    """Kafka, registry, Redis, provider, schedulers and runners until the block ends."""
    try:
        _laxity("up", "--detach", "--data-dir", str(data_dir), limit_s=UP_S)
        status: dict[str, Any] = json.loads(_laxity("status", "--json", "--data-dir", str(data_dir)))
        lines = _laxity("status", "--env", "--data-dir", str(data_dir)).splitlines()
        env = dict(line.split("=", 1) for line in lines)
        yield Stack(
            data_dir=data_dir,
            kafka=env["LAXITY_KAFKA"],
            registry=env["LAXITY_REGISTRY_URL"],
            redis=env["LAXITY_REDIS_URL"],
            provider_ledger=Path(status["provider_ledger"]),
        )
    finally:
        _laxity("down", "--data-dir", str(data_dir))


def _laxity(*words: str, limit_s: float = COMMAND_S) -> str:
    command = [sys.executable, "-m", "laxity.infra.cli", *words]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LAXITY_")}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=limit_s, check=False
    )
    assert done.returncode == 0, f"laxity {' '.join(words)}: {done.returncode}\n{done.stderr}"
    return done.stdout
