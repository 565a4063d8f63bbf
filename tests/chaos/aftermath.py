"""What must still hold after the storm, asked of the running stack with its own commands and Kafka's own tools."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import redis as redis_client
from prometheus_client.parser import text_string_to_metric_families

from laxity.infra.demo.configuration import CONFIG_FILE
from laxity.infra.demo.ground import Ground
from laxity.infra.demo.provider.ledger import read_ledger
from laxity.infra.inspect.reading import Reader
from laxity.infra.local.data_dir import DataDir, read_record
from laxity.schemas.contracts import open_codec
from laxity.schemas.kafka import KafkaClients
from laxity.schemas.records import Dispatch, TaskEvent
from laxity.schemas.timing import SystemClock
from laxity.schemas.topics import TIERS
from laxity.streams.lifecycle import TERMINAL

DRAIN_S = 120.0
RERUN_S = 900.0  # 5,000 tasks under the demonstration's limits
POLL_S = 0.5
LEASE_TTL_S = 15.0
WAITING = 8  # tasks that wait while a state directory is lost
CLOCK = SystemClock()

Say = Callable[[str], None]
Check = dict[str, Any]


class UnderWay:
    """How many calls are under way at the provider's side of the world: what was dispatched and has not ended."""

    def __init__(self, ground: Ground) -> None:
        self._client = redis_client.Redis.from_url(ground.settings.redis_url, socket_timeout=1.0)
        self._prefix = ground.settings.prefix
        self._last = 1

    def __call__(self) -> int:
        """Reservations that stand; while Redis is away, what was seen last."""
        try:
            self._last = reservations(self._client, self._prefix)
        except redis_client.RedisError:
            return self._last
        return self._last


def reservations(client: redis_client.Redis, prefix: str) -> int:
    """Reservations in Redis, those that only await their settlement included."""
    keys = list(client.scan_iter(match=f"{prefix}*:reservations", count=1_000))
    return sum(int(client.hlen(key)) for key in keys)


def run(ground: Ground, root: Path, say: Say, *, deduplicates: bool) -> dict[str, Check]:
    """Each check with its figures and, where it failed, why."""
    place = Aftermath(ground, root, say, deduplicates=deduplicates)
    checks = (place.nothing_reserved, place.replayed, place.reset, place.wiped, place.restored)
    return {check.__name__: _guarded(check) for check in checks}


def _guarded(check: Callable[[], tuple[str, dict[str, Any]]]) -> Check:
    try:
        why, figures = check()
    except (AssertionError, subprocess.CalledProcessError, TimeoutError) as error:
        output = getattr(error, "stderr", "") or ""
        return {"why": f"{error} {output}".strip(), "figures": {}}
    return {"why": why, "figures": figures}


class Aftermath:
    """The checks. Each returns why it failed (empty: it held) and its figures."""

    def __init__(self, ground: Ground, root: Path, say: Say, *, deduplicates: bool) -> None:
        self._ground, self._root, self._say = ground, root, say
        self._deduplicates = deduplicates
        self._clients = KafkaClients(ground.settings, role="chaos")
        self._codec = open_codec(ground.settings)
        self._group = f"{ground.settings.prefix}scheduler"

    def nothing_reserved(self) -> tuple[str, dict[str, Any]]:
        """I8: once leases have lapsed, nothing is held."""
        with closing(redis_client.Redis.from_url(self._ground.settings.redis_url)) as client:
            left = self._until(
                lambda: reservations(client, self._ground.settings.prefix),
                lambda n: n == 0,
                LEASE_TTL_S * 2 + 5,
            )
        return ("" if left == 0 else f"{left} reservations stand"), {"left": left}

    def wiped(self) -> tuple[str, dict[str, Any]]:
        """I15: state, Redis and every topic but the triggers and what is kept beside them are gone; the triggers alone make it all run again."""
        wanted, effects = self._ended(), self._effects()
        self._laxity("stop", "scheduler")
        self._laxity("stop", "runner")
        shutil.rmtree(self._root / "state")
        with closing(redis_client.Redis.from_url(self._ground.settings.redis_url)) as client:
            client.flushall()
        gone = self._drop_topics()
        self._until(self._applied, lambda done: done, DRAIN_S)
        self._reset_offsets(self._topic("triggers.normal"))
        self._laxity("start", "runner")
        self._laxity("start", "scheduler")
        ended = self._until(self._ended, lambda found: found >= wanted, RERUN_S)
        doubled = [task for task, n in self._effects_by_task().items() if n > 1] if self._deduplicates else []
        figures = {
            "topics_dropped": gone,
            "tasks": len(wanted),
            "ended_again": len(wanted & ended),
            "new_effects": self._effects() - effects,
            "doubled": len(doubled),
        }
        wrong = [
            *(["tasks are missing"] if wanted - ended else []),
            *(["effects are doubled"] if doubled else []),
        ]
        return ", ".join(wrong), figures

    def _drop_topics(self) -> int:
        admin = self._clients.admin()
        kept = ("triggers.", "schedules", "contracts", "dlq.")
        names = [
            n for n in admin.list_topics(timeout=10).topics if n.startswith(self._ground.settings.prefix)
        ]
        dropped = [n for n in names if not n.removeprefix(self._ground.settings.prefix).startswith(kept)]
        for done in admin.delete_topics(dropped, operation_timeout=30).values():
            done.result()
        return len(dropped)

    def _applied(self) -> bool:
        """Whether all topics are there again: a topic that is still being deleted cannot be made."""
        try:
            self._laxity("topics", "apply", "--config", str(self._root / CONFIG_FILE))
        except subprocess.CalledProcessError:
            return False
        return True

    def _ended(self) -> set[str]:
        """Tasks with a terminal event."""
        events = (
            self._codec.decode(TaskEvent, m.value())
            for tier in TIERS
            for m in self._messages(f"events.{tier}")
        )
        return {event.task_id for event in events if event.kind == "transitions" and event.state in TERMINAL}

    def _effects_by_task(self) -> Counter[str]:
        return Counter(line.task for line in read_ledger(self._ground.ledger) if line.kind == "effect")

    def restored(self) -> tuple[str, dict[str, Any]]:
        """I16: a state directory that is lost comes back, table by table; tasks that wait are among the rows."""
        for number in range(WAITING):
            later = (
                "--not-before",
                "6h",
                "--deadline",
                "24h",
                "--key",
                f"waits-{number}",
                "--payload",
                self._payload(),
            )
            self._laxity("submit", "demo.chat", *later)
        self._until(self._lag, lambda n: n == 0, DRAIN_S)
        self._laxity("stop", "scheduler")
        before = self._tables()
        shutil.rmtree(self._root / "state")
        self._laxity("start", "scheduler")
        running = self._until(self._running, lambda n: n == len(before), DRAIN_S)
        assert running == len(before), f"{running} of {len(before)} shards run"
        self._laxity("stop", "scheduler")
        after = self._tables()
        self._laxity("start", "scheduler")
        differing = [shard for shard in before if before[shard] != after.get(shard)]
        rows = sum(table["rows"] for shard in before.values() for table in shard.values())
        waiting = sum(shard.get("task", {"rows": 0})["rows"] for shard in before.values())
        wrong = [
            *(f"shard {shard} differs" for shard in differing),
            *(["tasks are missing"] if waiting < WAITING else []),
        ]
        return ", ".join(wrong), {"shards": len(before), "rows": rows, "tasks": waiting}

    def _running(self) -> int:
        """Shards that run, by what the schedulers say of themselves."""
        record = read_record(DataDir.at(self._root)) or {}
        pages = (
            httpx.get(f"{row['http']}/metrics").text
            for row in record["processes"]
            if row["role"] == "scheduler"
        )
        samples = (s for page in pages for f in text_string_to_metric_families(page) for s in f.samples)
        return round(sum(s.value for s in samples if s.name == "laxity_shards_running"))

    def _tables(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Hashes of the tables of each shard's newest copy, but for the shard's own row: a takeover raises its epoch."""
        document = json.loads(self._laxity("state", "hash", "--json"))
        copies = sorted(document["shards"], key=lambda copy: copy["state"]["offset"] or -1)
        return {
            str(copy["shard"]): {
                name: table
                for name, table in (copy["state"]["tables"] | copy["keys"]["tables"]).items()
                if name != "shard"
            }
            for copy in copies
        }

    def replayed(self) -> tuple[str, dict[str, Any]]:
        """Every shard's journal, decided again, has the same effects."""
        config = str(self._root / CONFIG_FILE)
        figures = {}
        with Reader(self._clients, CLOCK) as reader:
            shards = reader.partitions([self._topic("journal")])[self._topic("journal")]
        for shard in range(shards):
            done = json.loads(self._laxity("state", "replay", str(shard), "--config", config, "--json"))
            figures[str(shard)] = {"batches": done["batches"], "records": done["records"]}
        return "", figures

    def reset(self) -> tuple[str, dict[str, Any]]:
        """I15: the start again, with Kafka's own tool."""
        effects, told, orders = self._effects(), self._events(), self._count("dispatch.default")
        self._laxity("stop", "scheduler")
        self._reset_offsets(self._topic("control"))
        lag_high = self._lag()
        fresh = json.loads(
            self._laxity(
                "submit", "demo.chat", "--key", "published-meanwhile", "--payload", self._payload(), "--json"
            )
        )
        self._laxity("start", "scheduler")
        lag = self._until(self._lag, lambda n: n == 0, DRAIN_S)
        ended = self._until(lambda: self._state_of(fresh["task_id"]), lambda s: s == "SUCCEEDED", DRAIN_S)
        now = self._events()
        read_again = sum(self._count(f"triggers.{tier}") for tier in TIERS) - 1
        figures = {
            "lag_high": lag_high,
            "lag": lag,
            "read_again": read_again,
            "duplicates": now["duplicate"] - told["duplicate"],
            "new_effects": self._effects() - effects,
            "new_dispatches": self._count("dispatch.default") - orders,
            "published_meanwhile": ended,
        }
        wrong = [
            name
            for name, holds in {
                "lag_high": lag_high >= read_again,
                "lag": lag == 0,
                "duplicates": figures["duplicates"] == read_again,
                "new_effects": figures["new_effects"] == 1,
                "new_dispatches": figures["new_dispatches"] >= 1,
                "published_meanwhile": ended == "SUCCEEDED",
            }.items()
            if not holds
        ]
        return (f"{', '.join(wrong)} wrong" if wrong else ""), figures

    # how it is asked

    def _laxity(self, *words: str) -> str:
        command = [sys.executable, "-m", "laxity.infra.cli", *words, "--data-dir", str(self._root)]
        self._say("laxity " + " ".join(words))
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        return done.stdout

    def _kafka(self, *words: str) -> str:
        command = [sys.executable, "-m", "laxity.infra.cli", "kafka", "--data-dir", str(self._root), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout

    def _reset_offsets(self, topic: str) -> None:
        words = ("--group", self._group, "--reset-offsets", "--to-earliest", "--all-topics", "--execute")
        self._until(lambda: self._kafka("consumer-groups", *words), lambda text: topic in text, 60)

    def _lag(self) -> int:
        text = self._kafka("consumer-groups", "--group", self._group, "--describe")
        cells = [line.split() for line in text.splitlines() if line.startswith(self._group)]
        return sum(int(cell[5]) for cell in cells if cell[5].isdigit())

    def _until(self, ask: Callable[[], Any], holds: Callable[[Any], bool], limit_s: float) -> Any:
        deadline = CLOCK.monotonic_ms() / 1_000 + limit_s
        while True:
            found = ask()
            if holds(found) or CLOCK.monotonic_ms() / 1_000 > deadline:
                return found
            time.sleep(POLL_S)

    def _topic(self, name: str) -> str:
        return self._ground.settings.prefix + name

    def _messages(self, name: str) -> list[Any]:
        with Reader(self._clients, CLOCK) as reader:
            return list(reader.read(reader.whole([self._topic(name)])))

    def _count(self, name: str) -> int:
        return len(self._messages(name))

    def _events(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for tier in TIERS:
            found.update(
                self._codec.decode(TaskEvent, m.value()).kind for m in self._messages(f"events.{tier}")
            )
        return found

    def _state_of(self, task_id: str) -> str:
        state = ""
        for message in self._messages("events.normal"):
            event = self._codec.decode(TaskEvent, message.value())
            if event.task_id == task_id and event.kind == "transitions":
                state = event.state
        return state

    def _effects(self) -> int:
        return sum(line.kind == "effect" for line in read_ledger(self._ground.ledger))

    def _payload(self) -> str:
        message = self._messages("dispatch.default")[0]
        return self._codec.decode(Dispatch, message.value()).payload.decode()
