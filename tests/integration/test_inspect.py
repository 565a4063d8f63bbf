"""The commands that look into a deployment, against real servers, in processes of their own; and a real scheduler's decisions replayed."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from signal import SIGTERM
from typing import Any

import pytest

from laxity.infra.inspect.decoding import Decoder, pinned_codec
from laxity.infra.inspect.lookup import Lookup
from laxity.infra.inspect.reading import Reader
from laxity.infra.local import Endpoints
from laxity.schemas.identity import run_id_of, shard_of, task_id_of
from laxity.schemas.kafka import KafkaClients
from laxity.schemas.records import Command, TaskEvent, Transition, Trigger
from laxity.schemas.serde import Codec
from laxity.schemas.settings import Settings
from laxity.schemas.timing import SystemClock
from laxity.streams.effects import Record
from laxity.streams.testing import TopologyTestDriver

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

SHARDS = 2
WAIT_MS = 60_000  # of a busy machine
JUNK = b"\x00\xffjunk\x1b[31m"


@dataclass
class Deployment:
    """One prefix on the servers of the session."""

    settings: Settings
    data_dir: Path
    clients: KafkaClients
    codec: Codec
    clock: SystemClock

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "LAXITY_KAFKA": self.settings.kafka,
            "LAXITY_REGISTRY_URL": self.settings.registry_url,
            "LAXITY_REDIS_URL": self.settings.redis_url,
            "LAXITY_PREFIX": self.settings.prefix,
            "LAXITY_DATA_DIR": str(self.data_dir),
        }

    def laxity(self, *arguments: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "laxity.infra.cli", *arguments]
        answer = subprocess.run(
            command, env=self.environment(), capture_output=True, text=True, check=False, timeout=120
        )
        assert "Traceback" not in answer.stderr, answer.stderr
        assert answer.returncode == code, answer.stderr + answer.stdout
        return answer.stdout if code == 0 else answer.stderr

    def json(self, *arguments: str) -> Any:
        return json.loads(self.laxity(*arguments, "--json"))

    def lines(self, *arguments: str) -> list[Any]:
        return [json.loads(line) for line in self.laxity("tail", *arguments, "--json").splitlines()]

    def write(
        self, topic: str, value: Any, *, partition: int = 0, key: bytes = b"k", headers: Any = ()
    ) -> None:
        raw = value if value is None or isinstance(value, bytes) else self.codec.encode(value)
        producer = self.clients.producer()
        producer.produce(
            self.settings.names.full(topic), key=key, value=raw, partition=partition, headers=list(headers)
        )
        assert producer.flush(30) == 0

    def events(self) -> list[TaskEvent]:
        names = self.settings.names
        with Reader(self.clients, self.clock) as reader:
            look = Lookup(reader=reader, decoder=Decoder(self.codec, names), names=names)
            return list(look.events())

    def until(self, done: Callable[[list[TaskEvent]], bool]) -> list[TaskEvent]:
        end_ms = self.clock.monotonic_ms() + WAIT_MS
        while self.clock.monotonic_ms() < end_ms:
            found = self.events()
            if done(found):
                return found
        raise AssertionError(f"not within {WAIT_MS} ms: {[(e.kind, e.key, e.state) for e in found]}")


def deployed(stack: Endpoints, data_dir: Path) -> Deployment:
    settings = Settings(
        kafka=stack.kafka,
        registry_url=stack.registry,
        redis_url=stack.redis,
        prefix=f"seeing-{secrets.token_hex(4)}.",
    )
    clients, clock = KafkaClients(settings, role="test"), SystemClock()
    made = Deployment(settings=settings, data_dir=data_dir, clients=clients, codec=Codec.local(), clock=clock)
    made.laxity("topics", "apply", "--shards", str(SHARDS))
    made.codec = pinned_codec(settings, clients, clock)
    return made


@pytest.fixture(scope="module")
def place(stack: Endpoints, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """Records that the tests wrote themselves: no scheduler runs here."""
    return deployed(stack, tmp_path_factory.mktemp("seeing"))


def event(task_id: str, state: str, at_ms: int, *, before: str = "", **fields: Any) -> TaskEvent:
    step = Transition(before=before, after=state, reason="test", at_ms=at_ms, happened_ms=at_ms)
    base = {"kind": "transitions", "shard": 1, "batch": 1, "tier": "low", "tenant": "acme", "type": "work"}
    return TaskEvent(
        **{**base, "task_id": task_id, "state": state, "at_ms": at_ms, "transitions": [step], **fields}
    )


def test_nothing_is_there_at_first(place: Deployment) -> None:
    assert place.lines("triggers.high") == []
    assert "no event" in place.laxity("tasks", "show", "nobody", code=1)
    assert place.json("tasks", "ls", "--tier", "background") == {"tasks": [], "found": 0}


def test_tasks_and_their_story(place: Deployment) -> None:
    now_ms = place.clock.now_ms()
    for one in (event("aa11", "READY", now_ms - 500), event("aa11", "DEAD", now_ms - 100, before="READY", code="boom"),
                event("aa22", "READY", now_ms - 200, deadline_ms=now_ms + 60_000)):  # fmt: skip
        place.write("events.low", one, partition=1, key=one.task_id.encode())
    found = place.json("tasks", "ls", "--tier", "low", "--tenant", "acme")
    assert [(row["task_id"], row["state"], row["reason"]) for row in found["tasks"]] == [
        ("aa11", "DEAD", "test"),
        ("aa22", "READY", "test"),
    ]
    assert [
        row["task_id"] for row in place.json("tasks", "ls", "--state", "ready", "--tier", "low")["tasks"]
    ] == ["aa22"]
    told = place.json("tasks", "show", "aa1")
    assert [step["after"] for step in told["timeline"]] == ["READY", "DEAD"]
    assert told["waits_ms"] == {"READY": 400}
    assert told["last_failure"]["code"] == "boom"
    assert "fits 2 tasks" in place.laxity("tasks", "show", "aa", code=1)
    assert "aa11" in place.laxity("tasks", "ls")
    assert "READY → DEAD" in place.laxity("tasks", "show", "aa11")


def test_a_cancel_goes_to_the_shard_of_the_task(place: Deployment) -> None:
    one = event("ca11", "READY", place.clock.now_ms())
    place.write("events.low", one, partition=1, key=b"ca11")
    sent = place.json("cancel", "ca1", "--reason", "why not")
    (record,) = [
        line for line in place.lines("control", "--from-beginning") if line["value"]["task_id"] == "ca11"
    ]
    assert record["partition"] == sent["shard"] == 1
    assert record["value"]["kind"] == "cancel"
    assert record["value"]["reason"] == "why not"
    assert record["value"]["command_id"] == sent["command_id"]
    assert "nothing came of it" in place.laxity("cancel", "ca11", "--wait", "1s", code=1)
    place.write("events.low", replace(one, state="SUCCEEDED", batch=9), partition=1, key=b"ca11")
    assert "it is SUCCEEDED" in place.laxity("cancel", "ca11", code=1)


def dead() -> Record:
    """A letter as the real core writes it."""
    driver = TopologyTestDriver(verdict=lambda _: ("failed", "boom", False))
    driver.pipe("high", Trigger(type="work", key="gone", payload=b"{}"), headers=(("mine", b"1"),))
    driver.work()
    letter: Record = driver.read("dlq.high")[0]
    return letter


def test_letters_keep_their_bytes(place: Deployment, tmp_path: Path) -> None:
    letter = dead()
    raw = place.codec.encode(Trigger(type="work", key="gone", payload=b"{}"))
    headers = [
        (name, value.replace(b"laxity.", place.settings.prefix.encode()) if name.endswith("topic") else value)
        for name, value in letter.headers
        if value is not None
    ]
    place.write("dlq.high", raw, partition=1, key=b"run", headers=headers)
    place.write("dlq.high", JUNK, partition=0, key=b"\xff", headers=[("laxity.error.reason", b"not_framed")])
    groups = place.json("dlq", "ls", "--tier", "high")
    assert groups["letters"] == 2
    assert {(g["reason"], g["newest"]) for g in groups["groups"]} == {
        ("not_retryable", "high:1:0"),
        ("not_framed", "high:0:0"),
    }
    assert [
        one["letter"] for one in place.json("dlq", "ls", "--each", "--reason", "not_framed")["letters"]
    ] == ["high:0:0"]
    found = place.json("dlq", "show", "high:1:0")
    assert found["task_id"] == task_id_of("default", run_id_of("default", "", "gone"), "gone")
    assert found["value"]["key"] == "gone"
    assert found["history"][0]["code"] == "boom"
    assert {"name": "mine", "value": {"text": "1"}} in found["headers"]
    target = tmp_path / "letter.bin"
    place.laxity("dlq", "show", "high:0:0", "--raw", str(target))
    assert target.read_bytes() == JUNK
    assert "\x1b" not in place.laxity("dlq", "show", "0:0")
    assert "there is no letter" in place.laxity("dlq", "show", "high:0:99", code=1)
    place.laxity("dlq", "show", code=2)
    place.json("redrive", "high:1:0")
    (order,) = [
        line for line in place.lines("control", "--from-beginning") if line["value"]["kind"] == "redrive"
    ]
    assert order["partition"] == 1
    assert order["value"]["generation"] == 1
    assert "no task that could run" in place.laxity("redrive", "high:0:0", code=1)


@pytest.fixture(scope="module")
def marked(place: Deployment) -> Deployment:
    """`usage` gets one record per transaction, every fifth aborted."""
    producer = place.clients.transactional_producer("test-of-tail")
    producer.init_transactions(30)
    for n in range(40):
        producer.begin_transaction()
        producer.produce(place.settings.names.full("usage"), key=str(n).encode(), value=JUNK, partition=0)
        producer.flush(30)
        producer.abort_transaction(30) if n % 5 == 4 else producer.commit_transaction(30)
    return place


COMMITTED = [str(n) for n in range(40) if n % 5 != 4]


def keys_of(lines: list[Any]) -> list[str]:
    return [line["key"]["text"] for line in lines]


def test_the_last_records_are_counted_without_markers_and_aborted_ones(marked: Deployment) -> None:
    assert keys_of(marked.lines("usage", "--limit", "7")) == COMMITTED[-7:]
    assert keys_of(marked.lines("usage", "--limit", "1000")) == COMMITTED
    assert keys_of(marked.lines("usage")) == COMMITTED[-10:]


def test_from_the_beginning_from_an_offset_from_a_time(marked: Deployment) -> None:
    assert keys_of(marked.lines("usage", "--from-beginning")) == COMMITTED
    everything = marked.lines("usage", "--from-beginning", "--limit", "5")
    assert keys_of(everything) == COMMITTED[:5]
    third = everything[2]
    assert (
        keys_of(marked.lines("usage", "--offset", f"0:{third['offset']}", "--limit", "2")) == COMMITTED[2:4]
    )
    assert (
        keys_of(marked.lines("usage", "--offset", f"0:{third['offset'] + 1}", "--limit", "1"))
        == COMMITTED[3:4]
    )
    assert keys_of(marked.lines("usage", "--since", "1h", "--partition", "0")) == COMMITTED
    assert marked.lines("usage", "--since", "2999-01-01T00:00:00Z") == []
    assert marked.lines("usage", "--from-beginning", "--partition", "1") == []


def test_what_cannot_be_decoded_is_shown_with_its_reason(marked: Deployment) -> None:
    (line,) = marked.lines("usage", "--limit", "1")
    assert line["record"] == "Usage"
    assert line["problem"].startswith("schema_unknown")
    text = marked.laxity("tail", "usage", "--limit", "1")
    assert "not decodable: schema" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("usag",), 2, "nearest: usage"),
        (("usage", "--partition", "7"), 2, "partitions 0 to 1"),
        (("usage", "--offset", "0:100000"), 2, "the partition holds"),
        (("usage", "--offset", "zero"), 2, "PARTITION:OFFSET"),
        (("usage", "--offset", "0:1", "--from-beginning"), 2, "beginning too many"),
        (("dispatch.nowhere",), 1, "does not exist"),
    ],
)
def test_refusals(marked: Deployment, arguments: tuple[str, ...], code: int, said: str) -> None:
    assert said in marked.laxity("tail", *arguments, code=code)


def test_tail_goes_on_with_what_arrives(marked: Deployment) -> None:
    command = [
        sys.executable,
        "-m",
        "laxity.infra.cli",
        "tail",
        "control",
        "--follow",
        "--limit",
        "1",
        "--json",
    ]
    marked.write("control", Command(kind="cancel", command_id="before", task_id="x"))
    with subprocess.Popen(command, env=marked.environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["value"]["command_id"] == "before"
        marked.write("control", Command(kind="cancel", command_id="after", task_id="x"))
        assert json.loads(process.stdout.readline())["value"]["command_id"] == "after"
        process.terminate()


@pytest.mark.slow
def test_a_broker_that_is_away_is_one_line(place: Deployment) -> None:
    away = replace(place, settings=place.settings.model_copy(update={"kafka": "127.0.0.1:1"}))
    assert "127.0.0.1:1" in away.laxity("tail", "usage", code=1)


# a real scheduler


@pytest.fixture(scope="module")
def history(stack: Endpoints, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """Two lives of a scheduler, with duplicates, poison, timers, expiries, a cancel; then it is stopped."""
    place = deployed(stack, tmp_path_factory.mktemp("replayed"))
    process = scheduler(place)
    try:
        now_ms = place.clock.now_ms()
        for n in range(20):
            publish(
                place,
                f"task-{n}",
                "normal",
                firm=n % 4 == 0,
                deadline_ms=now_ms + 2_000 * (1 + n % 4) + 20_000 * (n % 4),
            )
        publish(place, "task-1", "normal")
        publish(place, "task-2", "high", payload=b"other")
        publish(place, "later", "low", not_before_ms=now_ms + 3_600_000)
        place.write("triggers.critical", JUNK, key=b"junk")
        place.until(
            lambda events: (
                len({e.key for e in events if e.key}) == 21 and any(e.kind == "duplicate" for e in events)
            )
        )
        place.laxity("cancel", task_of("later"), "--wait", "60s")
        assert "is in use" in place.laxity("state", "hash", code=1)
        end(process)
        process = scheduler(place)
        publish(place, "task-3", "normal")
        publish(place, "after", "background")
        place.until(
            lambda events: (
                sum(e.state == "EXPIRED" for e in events) == 5 and any(e.key == "after" for e in events)
            )
        )
    finally:
        end(process)
    return place


def scheduler(place: Deployment) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "laxity.infra.cli", "scheduler"]
    log = (place.data_dir / "scheduler.log").open("ab")
    with log:
        return subprocess.Popen(command, env=place.environment(), stdout=log, stderr=log)


def end(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(SIGTERM)
    process.wait(30)


def publish(place: Deployment, key: str, tier: str, **fields: Any) -> None:
    run_id = run_id_of("default", "", key)
    trigger = Trigger(**{"type": "work", "key": key, "payload": b"{}", **fields})
    place.write(f"triggers.{tier}", trigger, partition=shard_of(run_id, SHARDS), key=run_id.encode())


def task_of(key: str) -> str:
    return task_id_of("default", run_id_of("default", "", key), key)


def test_a_real_schedulers_decisions_replay(history: Deployment) -> None:
    done = [history.json("state", "replay", str(shard)) for shard in range(SHARDS)]
    assert [one["same"] for one in done] == [True] * SHARDS
    assert all(one["takeovers"] >= 2 for one in done)
    assert sum(one["records"] for one in done) == 20 + 3 + 1 + 1 + 2
    journals = [
        len(history.lines("journal", "--from-beginning", "--partition", str(n))) for n in range(SHARDS)
    ]
    assert all(one["batches"] <= count for one, count in zip(done, journals, strict=True))


def test_another_configuration_cannot_be_replayed(history: Deployment, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text("[tiers.low]\ndeadline_ms = 1\n", "utf-8")
    assert "configuration" in history.laxity("state", "replay", "0", "--config", str(other), code=1)
    assert "there is no shard 2" in history.laxity("state", "replay", "2", code=2)


def test_the_story_of_a_real_task(history: Deployment) -> None:
    told = history.json("tasks", "show", task_of("later"))
    assert [step["after"] for step in told["timeline"]] == ["DELAYED", "CANCELLED"]
    told = history.json("tasks", "show", task_of("task-2"))
    assert [remark["kind"] for remark in told["remarks"]] == ["conflict"]
    assert history.json("dlq", "ls")["letters"] == 2
    assert history.json("dlq", "show", "--task", task_of("task-2"))["reason"] == "idempotency_conflict"


def test_a_stopped_store_is_as_far_as_its_changelog(history: Deployment) -> None:
    found = history.json("state", "hash")["shards"]
    assert [copy["shard"] for copy in found] == list(range(SHARDS))
    for copy in found:
        records = history.lines("state", "--from-beginning", "--partition", str(copy["shard"]))
        assert records[-1]["offset"] < copy["state"]["offset"] <= records[-1]["offset"] + 2
        rows = {json.dumps(record["key"]): record["problem"] for record in records}
        assert copy["state"]["rows"] == sum(problem is None for problem in rows.values())
    assert history.json("state", "hash")["shards"] == found
