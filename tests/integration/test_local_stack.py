"""The local stack as a whole: it answers, keeps its data through kills, and leaves nothing behind."""

import base64
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from laxity.infra.local import Endpoints, endpoints
from laxity.infra.local.broker import format_storage, write_configuration
from laxity.infra.local.control import ask
from laxity.infra.local.data_dir import DataDir, read_record
from laxity.infra.local.endpoints import supervisor_of
from laxity.infra.local.errors import StackError
from laxity.infra.local.launch import start_detached, stop
from laxity.infra.local.pids import ProcessId, identify, is_alive, send
from laxity.infra.local.plan import StackPlan, make_plan
from laxity.infra.local.settings import StackSettings
from laxity.infra.local.software import prepare
from laxity.schemas.timing import SystemClock

pytestmark = pytest.mark.integration

CLOCK = SystemClock()
SCHEMA = '{{"type": "record", "name": "R{n}", "fields": [{{"name": "x", "type": "int"}}]}}'


def until(condition: Callable[[], object], within_ms: int, what: str) -> int:
    """Wait for a condition; returns how many milliseconds it took."""
    began = CLOCK.monotonic_ms()
    while not condition():
        assert CLOCK.monotonic_ms() - began < within_ms, f"not within {within_ms} ms: {what}"
    return CLOCK.monotonic_ms() - began


@pytest.fixture
def plan(tmp_path: Path) -> Iterator[StackPlan]:
    """A stack of the test's own, whatever servers were given for the others."""
    settings = StackSettings(data_dir=tmp_path, kafka="", registry_url="", redis_url="")
    made = make_plan(settings, only="kafka,registry,redis")
    yield made
    stop(made.data)


def record(data: DataDir) -> dict[str, Any]:
    found = read_record(data)
    assert found is not None
    return found


def row(data: DataDir, name: str) -> dict[str, Any]:
    return next(each for each in record(data)["processes"] if each["name"] == name)


def children(data: DataDir) -> list[ProcessId]:
    return [ProcessId(**each["id"]) for each in record(data)["processes"]]


def leash_of(supervisor: ProcessId) -> ProcessId:
    """The only child of the supervisor that its record does not name."""
    listing = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    )
    rows = [line.split(maxsplit=2) for line in listing.stdout.splitlines()]
    (pid,) = [int(pid) for pid, parent, args in rows if int(parent) == supervisor.pid and "leash" in args]
    found = identify(pid)
    assert found is not None
    return found


def register(found: Endpoints, n: int) -> int:
    answer = httpx.post(f"{found.registry}/subjects/s{n}/versions", json={"schema": SCHEMA.format(n=n)})
    return int(answer.raise_for_status().json()["id"])


def write(found: Endpoints) -> None:
    admin = AdminClient({"bootstrap.servers": found.kafka})
    admin.create_topics([NewTopic("kept", 3, 1)])["kept"].result(10)
    with redis.Redis.from_url(found.redis) as client:
        client.set("kept", "yes")
        client.waitaof(1, 0, 5_000)  # on disk, not only in the file's cache


def assert_kept(found: Endpoints, ids: dict[int, int]) -> None:
    topics = AdminClient({"bootstrap.servers": found.kafka}).list_topics(timeout=10).topics
    assert len(topics["kept"].partitions) == 3
    with redis.Redis.from_url(found.redis) as client:
        assert client.get("kept") == b"yes"
    assert {n: register(found, n) for n in ids} == ids


def test_the_three_servers_answer(stack: Endpoints) -> None:
    metadata = AdminClient({"bootstrap.servers": stack.kafka}).list_topics(timeout=10)
    assert len(metadata.brokers) == 1
    level = httpx.get(f"{stack.registry}/config").json()["compatibilityLevel"]
    assert level == "FULL_TRANSITIVE"
    with redis.Redis.from_url(stack.redis) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


@pytest.mark.timeout(300)
def test_data_survive_every_kind_of_kill(plan: StackPlan) -> None:
    data = plan.data
    found = start_detached(plan)
    assert endpoints(data.root) == found
    write(found)

    # A child is killed: it comes back, counted, with what it had acknowledged.
    ids = {n: register(found, n) for n in range(10)}
    killed = row(data, "registry")
    send(ProcessId(**killed["id"]), signal.SIGKILL)
    until(lambda: row(data, "registry")["restarts"] == 1, 5_000, "the death is noticed")
    until(lambda: row(data, "registry")["state"] == "ready", 30_000, "the registry is back")
    assert row(data, "registry")["pid"] != killed["pid"]
    assert_kept(found, ids)

    # One role is stopped and started by hand.
    assert ask(data, "stop", "redis") == ["redis"]
    assert row(data, "redis")["state"] == "stopped"
    assert record(data)["ready"] is False
    assert ask(data, "start", "redis") == ["redis"]
    assert record(data)["ready"] is True
    with pytest.raises(StackError, match="kafka, redis, registry"):
        ask(data, "stop", "scheduler")

    # The supervisor is killed: the leash ends all of its children.
    supervisor = supervisor_of(record(data))
    assert supervisor is not None
    before = children(data)
    send(supervisor, signal.SIGKILL)
    until(lambda: not any(map(is_alive, before)), 10_000, "the leash ends the children")
    assert endpoints(data.root) is None

    # It starts again with the same addresses and the same data.
    assert start_detached(plan) == found
    assert_kept(found, ids)
    assert start_detached(plan) == found, "a second start finds the first one's stack"

    # Supervisor and leash are killed at once: the next command ends the survivors.
    supervisor = supervisor_of(record(data))
    assert supervisor is not None
    leash = leash_of(supervisor)
    before = children(data)
    send(leash, signal.SIGKILL)
    send(supervisor, signal.SIGKILL)
    until(lambda: not is_alive(supervisor), 5_000, "the supervisor is dead")
    assert all(map(is_alive, before))
    assert stop(data) is True
    assert not any(map(is_alive, before))
    assert stop(data) is False


def test_a_foreground_stack_ends_at_ctrl_c(tmp_path: Path) -> None:
    data = DataDir.at(tmp_path)
    command = [sys.executable, "-m", "laxity.infra.cli", "up", "--only", "redis", "--data-dir", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as popen:
        assert popen.stderr is not None
        said = [popen.stderr.readline(), popen.stderr.readline()]
        assert said[0].startswith("redis ready at 127.0.0.1:")
        assert said[1].startswith("ready")
        before = children(data)
        popen.send_signal(signal.SIGINT)
        assert popen.wait(timeout=20) == 130
    assert not any(map(is_alive, before))
    assert read_record(data) is None


def test_a_start_that_fails_leaves_nothing_running(tmp_path: Path) -> None:
    settings = StackSettings(data_dir=tmp_path, kafka="127.0.0.1:1", registry_url="", redis_url="")
    plan = make_plan(settings, only="kafka,redis")
    with pytest.raises(StackError, match=r"LAXITY_KAFKA does not answer.*127\.0\.0\.1:1"):
        start_detached(plan)
    assert endpoints(tmp_path) is None
    assert stop(plan.data) is False


def test_kafka_tools_reach_the_stack(stack: Endpoints, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "laxity.infra.cli", "kafka", "broker-api-versions"]
    environment = {
        **stack.environment(),
        "LAXITY_DATA_DIR": str(tmp_path),
        "PATH": "/usr/bin:/bin",
        "HOME": str(Path.home()),
    }
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert answer.returncode == 0, answer.stderr
    assert stack.kafka in answer.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_start_times(tmp_path: Path) -> None:
    """With an empty cache under 120 s, later under 20 s, on a machine that does nothing else."""
    settings = StackSettings(
        data_dir=tmp_path / "data", cache_dir=tmp_path / "cache", kafka="", registry_url="", redis_url=""
    )
    plan = make_plan(settings, only="kafka,registry,redis")
    taken_ms = []
    for _ in range(2):
        began_ms = CLOCK.monotonic_ms()
        try:
            start_detached(plan)
            taken_ms.append(CLOCK.monotonic_ms() - began_ms)
        finally:
            stop(plan.data)
    assert taken_ms[0] < 120_000
    assert taken_ms[1] < 20_000


def test_a_cluster_id_may_begin_with_a_hyphen(plan: StackPlan) -> None:
    """One in 64 does; it must not read as an option of the formatting tool."""
    software = prepare(replace(plan, roles=frozenset({"kafka"})))
    assert software.java is not None
    folder = plan.data.folder("kafka")
    hyphened = base64.urlsafe_b64encode(b"\xf8" + bytes(15)).rstrip(b"=").decode()
    assert hyphened.startswith("-")
    write_configuration(folder, port=1, controller_port=2)
    format_storage(software.java, software.kafka_jars, folder, hyphened)
    assert hyphened in (folder / "data" / "meta.properties").read_text("utf-8")
