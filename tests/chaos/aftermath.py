"""What must still hold after the storm, asked of the running world with our own commands and Kafka's own tools.

Each check returns why it failed (empty: it held) and its figures. They change the world, so they run after the history was read.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import redis
from chaos.load import MODEL
from chaos.nemesis import reservations
from chaos.world import World

from laxity.infra.demo.provider.ledger import read_ledger
from laxity.infra.demo.provider.line import Kind
from laxity.infra.inspect.errors import InspectError
from laxity.infra.inspect.reading import Reader
from laxity.producers.publisher import Publisher, trigger_of
from laxity.schemas.contracts import open_codec
from laxity.schemas.records import TaskEvent
from laxity.schemas.topics import TIERS
from laxity.streams.lifecycle import TERMINAL

DRAIN_S = 180.0
RERUN_S = 600.0
TOPIC_S = 60.0
POLL_S = 0.5
LEASE_TTL_S = 15.0
SETTLE_S = 2 * LEASE_TTL_S + 5  # leases lapse, then their shards acknowledge
WORK = {"model": MODEL, "text": "afterwards", "context_tokens": 10, "generate_tokens": 5, "max_tokens": 10}
WAITING = 8  # tasks that wait while state directories are lost

Say = Callable[[str], None]
Found = tuple[str, dict[str, Any]]


class Aftermath:
    """The checks, each for itself."""

    def __init__(self, world: World, say: Say, *, deduplicates: bool) -> None:
        self._world, self._say = world, say
        self._deduplicates = deduplicates
        self._clients = world.clients("aftermath")
        self._codec = open_codec(world.settings, clients=self._clients)
        self._names = world.settings.names
        self._pause = threading.Event()

    def run(self, *checks: Callable[[], Found]) -> dict[str, dict[str, Any]]:
        """Each check with its figures and, where it failed, why."""
        found = {}
        for check in checks:
            self._say(f"{check.__name__} ...")
            why, figures = _guarded(check)
            found[check.__name__] = {"why": why, "figures": figures}
            self._say(f"{check.__name__}: {'FAILED: ' + why if why else 'held'} {figures}")
        return found

    # the checks

    def i8_nothing_reserved(self) -> Found:
        """Once leases have lapsed, nothing is held in the ledger."""
        with closing(redis.Redis.from_url(self._world.settings.redis_url)) as client:
            left = self._until(lambda: reservations(client, self._names.prefix), lambda n: n == 0, SETTLE_S)
        return ("" if left == 0 else f"{left} reservations stand"), {"left": left}

    def journals_replay(self) -> Found:
        """Every shard's journal, decided again, has the same effects."""
        figures = {}
        for shard in range(self._world.plan.shards):
            done = json.loads(self._world.laxity("state", "replay", str(shard), "--json"))
            figures[str(shard)] = {"batches": done["batches"], "takeovers": done["takeovers"]}
        return "", figures

    def i15_offsets_reset(self) -> Found:
        """The start again, with Kafka's own tool: all is read once more, counted as duplicates, and nothing is done; what is new runs."""
        effects, told, orders = self._effects(), self._events(), self._count(["dispatch.default"])
        triggers = self._count([f"triggers.{tier}" for tier in TIERS])
        self._stop("scheduler")
        self._reset_offsets()
        lag_high = self._lag()
        fresh = self._submit("published-meanwhile")
        self._start("scheduler")
        lag = self._until(self._lag, lambda n: n == 0, DRAIN_S)
        ended = self._until(lambda: self._ended().get(fresh, ""), lambda state: state == "SUCCEEDED", DRAIN_S)
        figures = {
            "lag_high": lag_high,
            "lag": lag,
            "read_again": triggers,
            "duplicates": self._events()["duplicate"] - told["duplicate"],
            "new_effects": self._effects() - effects,
            "new_dispatches": self._count(["dispatch.default"]) - orders,
            "published_meanwhile": ended,
        }
        wrong = [
            name
            for name, holds in {
                "lag_high": lag_high >= triggers,
                "lag": lag == 0,
                "duplicates": figures["duplicates"] == triggers,
                "new_effects": figures["new_effects"] == 1,
                "new_dispatches": figures["new_dispatches"] >= 1,
                "published_meanwhile": ended == "SUCCEEDED",
            }.items()
            if not holds
        ]
        return (f"{', '.join(wrong)} wrong" if wrong else ""), figures

    def i16_state_restored(self) -> Found:
        """State directories that are lost come back, table by table; tasks that wait are among the rows."""
        later_ms = self._world.clock.now_ms() + 6 * 3_600_000
        for number in range(WAITING):
            self._submit(f"waits-{number}", not_before_ms=later_ms)
        self._until(self._lag, lambda n: n == 0, DRAIN_S)
        self._stop("scheduler")
        before = self._tables()
        self._lose_state()
        self._start("scheduler")
        running = self._until(self._running, lambda n: n == len(before), DRAIN_S)
        self._stop("scheduler")
        after = self._tables()
        self._start("scheduler")
        waiting = sum(shard.get("task", {"rows": 0})["rows"] for shard in before.values())
        wrong = [
            *([f"{running} of {len(before)} shards run"] if running != self._world.plan.shards else []),
            *(f"shard {shard} differs" for shard in before if before[shard] != after.get(shard)),
            *(["tasks are missing"] if waiting < WAITING else []),
        ]
        rows = sum(table["rows"] for shard in before.values() for table in shard.values())
        return ", ".join(wrong), {"shards": len(before), "rows": rows, "tasks": waiting}

    def i15_all_wiped(self) -> Found:
        """State, Redis and every topic but the triggers and what is kept beside them are gone: the triggers alone make it all run again."""
        wanted, effects = set(self._ended()), self._effects()
        self._stop("scheduler")
        self._stop("runner")
        self._lose_state()
        with closing(redis.Redis.from_url(self._world.settings.redis_url)) as client:
            client.flushall()
        gone = self._drop_topics()
        self._until(self._applied, bool, DRAIN_S)
        self._reset_offsets()
        self._start("runner")
        self._start("scheduler")
        ended = self._until(lambda: set(self._ended()), lambda found: found >= wanted, RERUN_S)
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

    # how it is asked

    def lag(self) -> int:
        """What the schedulers have yet to read, by Kafka's own tool."""
        return self._lag()

    def _stop(self, role: str) -> None:
        """Planned ends, each with exit code 0; of ready ones, for a process that only just begins dies of the signal."""
        self._world.await_ready(*(member.name for member in self._world.of(role) if member.life is not None))
        codes = {member.name: member.stop() for member in self._world.of(role)}
        assert set(codes.values()) <= {0, None}, f"planned ends: {codes}"

    def _lose_state(self) -> None:
        lost = {m.name: self._world.lose_state(m.name) for m in self._world.of("scheduler")}
        assert any(lost.values()), f"no state to lose: {lost}"

    def _start(self, role: str) -> None:
        for member in self._world.of(role):
            member.start()

    def _submit(self, key: str, **fields: Any) -> str:
        """One more task; its id."""
        trigger = trigger_of("chaos.call", WORK, key=key, on_unknown="retry", **fields)
        with Publisher.connect(self._world.settings, self._world.config) as publisher:
            return publisher.publish(trigger).task_id

    def _reset_offsets(self) -> None:
        """With the schedulers stopped; the group may take a session's time to be empty."""
        topic = self._names.full("triggers.normal")
        words = ("--group", self._names.full("scheduler"), "--reset-offsets", "--to-earliest", "--all-topics")
        done = self._until(
            lambda: self._kafka("consumer-groups", *words, "--execute"), lambda text: topic in text, TOPIC_S
        )
        assert topic in done, done

    def _kafka(self, *words: str) -> str:
        return self._world.laxity("kafka", *words)

    def _lag(self) -> int:
        group = self._names.full("scheduler")
        text = self._kafka("consumer-groups", "--group", group, "--describe")
        cells = [line.split() for line in text.splitlines() if line.startswith(group)]
        return sum(int(cell[5]) for cell in cells if cell[5].isdigit())

    def _drop_topics(self) -> int:
        admin, prefix = self._clients.admin(), self._names.prefix
        kept = ("triggers.", "schedules", "contracts", "dlq.")
        names = [name for name in admin.list_topics(timeout=10).topics if name.startswith(prefix)]
        dropped = [name for name in names if not name.removeprefix(prefix).startswith(kept)]
        for done in admin.delete_topics(dropped, operation_timeout=30).values():
            done.result()
        return len(dropped)

    def _applied(self) -> bool:
        """Whether all topics are there again: a topic that is still being deleted cannot be made."""
        try:
            self._world.laxity("topics", "apply")
        except subprocess.CalledProcessError:
            return False
        return True

    def _running(self) -> int:
        """Shards that run, by what the schedulers say of themselves."""
        found = (self._world.metrics(m.name) for m in self._world.of("scheduler"))
        return round(sum(metrics.get("laxity_shards_running", 0) for metrics in found))

    def _tables(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Hashes of the tables of each shard's newest copy, but for the shard's own row: a takeover raises its epoch."""
        document = json.loads(self._world.laxity("state", "hash", "--json"))
        copies = sorted(document["shards"], key=lambda copy: copy["state"]["offset"] or -1)
        return {
            str(copy["shard"]): {
                name: table
                for name, table in (copy["state"]["tables"] | copy["keys"]["tables"]).items()
                if name != "shard"
            }
            for copy in copies
        }

    def _effects_by_task(self) -> Counter[str]:
        return Counter(line.task for line in read_ledger(self._world.ledger) if line.kind == Kind.EFFECT)

    def _effects(self) -> int:
        return self._effects_by_task().total()

    def _messages(self, names: Sequence[str]) -> list[Any]:
        with Reader(self._clients, self._world.clock) as reader:
            return list(reader.read(reader.whole([self._names.full(name) for name in names])))

    def _count(self, names: Sequence[str]) -> int:
        return len(self._messages(names))

    def _told(self) -> list[TaskEvent]:
        names = [f"events.{tier}" for tier in TIERS]
        return [self._codec.decode(TaskEvent, m.value()) for m in self._messages(names)]

    def _events(self) -> Counter[str]:
        return Counter(event.kind for event in self._told())

    def _ended(self) -> dict[str, str]:
        """Terminal states by task."""
        told = (event for event in self._told() if event.kind == "transitions")
        return {event.task_id: event.state for event in told if event.state in TERMINAL}

    def _until(self, ask: Callable[[], Any], holds: Callable[[Any], bool], limit_s: float) -> Any:
        clock = self._world.clock
        deadline_ms = clock.monotonic_ms() + round(limit_s * 1_000)
        while True:
            found = ask()
            if holds(found) or clock.monotonic_ms() > deadline_ms:
                return found
            self._pause.wait(POLL_S)


def _guarded(check: Callable[[], Found]) -> Found:
    """A command that fails fails its check, not the others."""
    try:
        return check()
    except (AssertionError, subprocess.SubprocessError, TimeoutError, InspectError) as error:
        output = getattr(error, "stderr", "") or ""
        return f"{type(error).__name__}: {error} {output}".strip(), {}
