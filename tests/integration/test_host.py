"""Scheduler processes on real Kafka, Redis and registry: what others can read must be right whoever dies when."""

from __future__ import annotations

import itertools
import json
import signal
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from integration.deployment import CLOCK, CONFIG, SHARDS, World, deployed, wait_for
from integration.trickle import TIER, Trickle, gap_ms, keys_of, written

from laxity.infra.local import Endpoints
from laxity.infra.local.redis_server import find_redis_server
from laxity.schemas.records import Journal, ShardRow, StateRow
from laxity.schemas.serde import decode_row, encode_row
from laxity.streams.effects import Change
from laxity.streams.runtime.assembly import Assembly
from laxity.streams.runtime.crashpoints import POINTS
from laxity.streams.runtime.entry import INTERRUPTED
from laxity.streams.runtime.settings import HostSettings
from laxity.streams.runtime.shard import START_OVER_MS
from laxity.streams.runtime.sources import INPUTS
from laxity.streams.runtime.transactions import DoubtfulError, Transactions
from laxity.streams.state import keys as state_keys
from laxity.streams.state.changelog import STATE_VERSION, state_row

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]


@pytest.fixture
def world(stack: Endpoints, tmp_path: Path) -> Iterator[World]:
    with deployed(stack, stack.redis, tmp_path) as made:
        yield made


@dataclass
class OwnRedis:
    """A Redis that this test may break."""

    folder: Path
    port: int
    popen: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=1) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def start(self) -> None:
        command = [str(find_redis_server().path), "--port", str(self.port), "--bind", "127.0.0.1"]
        with (self.folder / "redis.log").open("ab") as log:
            self.popen = subprocess.Popen(
                [*command, "--save", "", "--dir", str(self.folder)], stdout=log, stderr=log
            )
        wait_for(self.answers, "Redis answers")

    def kill(self) -> None:
        if self.popen is not None:
            self.popen.kill()
            self.popen.wait(20)


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[OwnRedis]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    made = OwnRedis(tmp_path, port)
    made.start()
    yield made
    made.kill()


def test_one_process_runs_everything_and_stops_cleanly(world: World) -> None:
    process = world.started()
    world.publish(200)
    world.check(200)
    metrics = httpx.get(f"http://127.0.0.1:{process.port()}/metrics").text
    assert 'laxity_tasks_ended_total{state="SUCCEEDED",tier="normal"} 200.0' in metrics
    assert httpx.get(f"http://127.0.0.1:{process.port()}/livez").json() == {"ok": True, "problems": []}
    process.popen.send_signal(signal.SIGTERM)
    assert process.popen.wait(20) == 0
    assert not [*process.said("scheduler.failed"), *process.said("shard.starts_over")]
    assert json.loads((world.root / "p0" / "holding.json").read_text())["shards"] == []


def test_a_warm_restart_reads_nothing_twice_and_restores_only_what_is_new(world: World) -> None:
    first = world.started(name="same")
    world.publish(50)
    world.check(50)
    first.popen.terminate()
    first.popen.wait(20)
    world.publish(50, start=50)
    second = world.started(name="same")
    world.check(100)
    restored = second.said("shard.restored")
    assert {line["rows"] for line in restored} == {0}
    assert not second.said("shard.wiped")


def test_killed_processes_are_replaced_and_nothing_is_lost_or_doubled(world: World) -> None:
    a, b = world.started(), world.started()
    wait_for(lambda: (a.shards(), b.shards()) == (2, 2), "two shards each")
    world.publish(300)
    a.kill()
    world.publish(300, start=300)
    wait_for(lambda: b.shards() == SHARDS, "the survivor has all shards")
    c = world.start()
    world.publish(300, start=600)
    wait_for(lambda: len(world.ended()) > 300, "work goes on")
    b.kill()
    world.check(900)
    assert c.popen.poll() is None


def test_a_ledger_that_is_flushed_killed_and_empty_again_costs_nothing(
    stack: Endpoints, own_redis: OwnRedis, tmp_path: Path
) -> None:
    with deployed(stack, own_redis.url, tmp_path) as world:
        process = world.started()
        world.publish(100)
        wait_for(lambda: len(world.ended()) > 20, "work begins")
        with redis.Redis.from_url(own_redis.url) as client:
            client.flushall()
        world.publish(100, start=100)
        world.check(200)
        own_redis.kill()
        world.publish(50, start=200)
        wait_for(lambda: not process.ready(), "it says that the ledger is away")
        assert "ledger" in httpx.get(f"http://127.0.0.1:{process.port()}/readyz").text
        wait_for(lambda: sum(process.lags("triggers.normal")) == 0, "intake goes on without it")
        assert len(world.ended()) == 200
        own_redis.start()
        world.check(250)
        wait_for(process.ready, "ready again")


def test_a_shard_of_a_newer_state_version_is_refused_and_its_siblings_run(world: World) -> None:
    """As if a newer release had had it: this one says so, touches nothing of it, and takes nobody along."""
    first = world.started(name="same")
    world.publish(40)
    world.check(40)
    first.popen.terminate()
    assert first.popen.wait(20) == 0
    raised_shard = 1
    raised = _raise_state_version(world, raised_shard)
    second = world.start(name="same")
    wait_for(lambda: len(second.said("shard.running")) == SHARDS - 1, "the others run")
    wait_for(lambda: bool(second.said("shard.refused")), "it is refused")
    said = second.said("shard.refused")
    assert {(line["shard"], f"version {raised.state_version}" in line["why"]) for line in said} == {
        (raised_shard, True)
    }
    assert (
        f"shard {raised_shard}: state version" in httpx.get(f"http://127.0.0.1:{second.port()}/readyz").text
    )
    keys = {key for shard in range(SHARDS) if shard != raised_shard for key in islice(keys_of(shard), 10)}
    world.publish_keys(keys)
    wait_for(lambda: len(world.ended()) == 40 + len(keys), "the others work")
    assert _last_row(world, raised_shard) == raised
    assert second.popen.poll() is None


def _last_row(world: World, shard: int) -> ShardRow:
    key = state_keys.state_key(state_keys.SHARD, state_keys.SHARD_KEY)
    mine = [m for m in world.read("state") if m.partition() == shard and m.key() == key]
    framed = world.codec.decode(StateRow, mine[-1].value())
    return decode_row(ShardRow, framed.row)


def _raise_state_version(world: World, shard: int) -> ShardRow:
    row = replace(_last_row(world, shard), state_version=STATE_VERSION + 1)
    change = Change(table=state_keys.SHARD, key=state_keys.SHARD_KEY, value=encode_row(row))
    key, value = state_row(change, world.codec)
    producer = world.clients.shard_producer(shard)
    producer.init_transactions(10)
    producer.begin_transaction()
    producer.produce(world.found.names.full("state"), value, key, partition=shard)
    producer.commit_transaction(10)
    return row


def test_a_shard_that_is_fenced_from_outside_starts_over_alone(world: World) -> None:
    """Somebody else takes one transactional id, as a second owner would: that shard's task ends, its siblings run on."""
    process = world.started()
    trickle = Trickle(world)
    trickle.start()
    fenced_shard = 2
    wait_for(lambda: len(world.ended(TIER)) > 5 * SHARDS, "work goes on")
    fenced_ms = CLOCK.now_ms()
    intruder = world.clients.shard_producer(fenced_shard)
    intruder.init_transactions(10)
    wait_for(lambda: len(process.said("shard.running")) == SHARDS + 1, "it runs again")
    back = len(world.ended(TIER))
    wait_for(lambda: len(world.ended(TIER)) > back + 5 * SHARDS, "all go on")
    sent = trickle.stop()
    world.check_keys(sent, TIER)
    assert [line["shard"] for line in process.said("shard.fenced")] == [fenced_shard]
    assert Counter(line["shard"] for line in process.said("shard.running"))[fenced_shard] == 2
    times = written(world, "journal")
    gaps = {shard: gap_ms(times[shard], fenced_ms, fenced_ms + START_OVER_MS) for shard in times}
    assert (
        max(gap for shard, gap in gaps.items() if shard != fenced_shard) < START_OVER_MS <= gaps[fenced_shard]
    )


def test_a_second_signal_ends_at_once_and_what_it_left_is_taken_up(world: World) -> None:
    """Both arrive while it cannot act on the first."""
    process = world.started(name="same")
    world.publish(20)
    for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
        process.popen.send_signal(number)
    assert process.popen.wait(20) == INTERRUPTED
    assert not process.said("scheduler.stopped")
    other = world.started(name="same")
    world.check(20)
    other.popen.send_signal(signal.SIGINT)
    assert other.popen.wait(20) == INTERRUPTED
    assert other.said("scheduler.stopped")


def test_bytes_that_are_no_trigger_become_a_dead_letter_and_the_next_record_flows(world: World) -> None:
    world.started()
    producer = world.clients.producer()
    topic = world.found.names.full("triggers.high")
    poison = [b"", b"\x00", b"junk", b"\x00\x00\x00\x00\x01", bytes(range(256))]
    for at, value in enumerate(poison):
        producer.produce(topic, value, b"key\xff", partition=at % SHARDS, headers=[("h", b"\xfe")])
    producer.flush(10)
    world.publish(20, tier="high")
    world.check(20, tier="high")
    letters = world.read("dlq.high")
    assert sorted(m.value() or b"" for m in letters) == sorted(poison)
    assert {m.key() for m in letters} == {b"key\xff"}
    assert all(list(m.headers() or ())[0] == ("h", b"\xfe") for m in letters)  # noqa: RUF015


def test_a_stopped_zombie_that_wakes_up_writes_nothing(world: World) -> None:
    zombie = world.started()
    world.publish(100)
    zombie.popen.send_signal(signal.SIGSTOP)
    other = world.start()
    world.publish(100, start=100)
    wait_for(lambda: bool(len(other.said("shard.running")) >= SHARDS), "taken over")
    world.check(200)
    zombie.popen.send_signal(signal.SIGCONT)
    world.publish(100, start=200)
    world.check(300)


def test_commits_that_fail_or_whose_fate_is_unknown_lose_and_double_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process: of nine transactions one is aborted, one is committed and its answer lost, one hangs before its commit."""
    real, numbers = Transactions._end, itertools.count(1)
    fates = Counter[str]()

    def shaky(self: Transactions, producer: Any) -> None:
        fate = {2: "aborted", 5: "answer lost", 8: "never sent"}.get(next(numbers) % 9, "committed")
        fates[fate] += 1
        if fate == "aborted":
            self._abort(producer, KafkaException(KafkaError(KafkaError.REQUEST_TIMED_OUT)))
        if fate != "never sent":
            real(self, producer)
        if fate != "committed":
            self._disturbed = True
            raise DoubtfulError(fate)

    monkeypatch.setattr(Transactions, "_end", shaky)
    assembly = Assembly(world.found, HostSettings(state_dir=world.root / "here"), CONFIG)
    thread = threading.Thread(target=assembly.run)
    thread.start()
    try:
        for start in range(0, 120, 20):
            world.publish(20, start=start)
            wait_for(lambda start=start: len(world.ended()) >= start, "work goes on")  # type: ignore[misc]
        world.check(120)
    finally:
        assembly.host.stop()
        thread.join(20)
    assert min(fates.values()) >= 3, fates


QUICK = {"after_commit"}  # the others by `-m slow`


@pytest.mark.parametrize(
    "point",
    [pytest.param(point, marks=() if point in QUICK else pytest.mark.slow) for point in POINTS],
)
def test_a_crash_at_any_point_costs_nothing(world: World, point: str) -> None:
    """The process dies at the point, a restart in the same directory goes on."""
    early = point in {"mid_restore", "mid_takeover"}
    if point == "mid_restore":
        first = world.started(name="first")
        world.publish(60)
        world.check(60)
        first.kill()
    doomed = world.start(name="same", crash=f"{point}:{2 if early else 12}")
    if not early:
        wait_for(doomed.ready, "ready")
        world.publish(60)
    doomed.popen.wait(60)
    assert doomed.popen.returncode == -signal.SIGKILL
    world.started(name="same")
    world.publish(40, start=60)
    if point == "mid_takeover":
        world.publish(60)
    world.check(100)


def test_offsets_moved_beyond_the_marks_are_refused_until_an_operator_accepts(world: World) -> None:
    first = world.started(name="same")
    world.publish(40)
    world.check(40)
    first.popen.terminate()
    first.popen.wait(20)
    world.publish(40, start=40)
    topic = world.found.names.full("triggers.normal")
    ends = [_move_to_end(world, topic, shard) for shard in range(SHARDS)]
    second = world.start(name="same")
    wait_for(lambda: len(second.said("shard.refused")) >= SHARDS, "refused")
    text = httpx.get(f"http://127.0.0.1:{second.port()}/readyz").text
    words = [f"{topic}:{shard}:{end}" for shard, end in enumerate(ends)]
    assert all(f"--accept-skip {word}" in text for word in words)
    second.popen.terminate()
    assert second.popen.wait(20) == 0
    world.started(name="same", skip=",".join(words))
    world.publish(10, start=80)
    wait_for(lambda: len(world.ended()) == 50, "the rest runs")
    skipped = [s for m in world.read("journal") for s in world.codec.decode(Journal, m.value()).skipped]
    assert sorted(skipped) == sorted(words)


def _move_to_end(world: World, topic: str, shard: int) -> int:
    consumer = world.clients.bulk_consumer()
    _, end = consumer.get_watermark_offsets(TopicPartition(topic, shard), timeout=10)
    consumer.commit(offsets=[TopicPartition(topic, shard, end)], asynchronous=False)
    consumer.close()
    return int(end)


def test_offsets_reset_to_the_start_count_duplicates_and_do_nothing_twice(world: World) -> None:
    first = world.started(name="same")
    world.publish(60)
    world.check(60)
    first.popen.terminate()
    first.popen.wait(20)
    before = world.dispatched()
    consumer = world.clients.bulk_consumer()
    names = [world.found.names.full(name) for name in INPUTS]
    consumer.commit(
        offsets=[TopicPartition(name, shard, 0) for name in names for shard in range(SHARDS)],
        asynchronous=False,
    )
    consumer.close()
    world.started(name="same")
    world.publish(1, start=60)
    wait_for(lambda: world.ended()["k60"] == 1, "the new one runs")
    wait_for(lambda: sum(e.kind == "duplicate" for e in world.events()) >= 60, "duplicates are told")
    assert sum(e.kind == "duplicate" for e in world.events()) == 60
    assert world.ended() == {f"k{n}": 1 for n in range(61)}
    assert before - world.dispatched() == Counter()
    assert sum((world.dispatched() - before).values()) == 1
