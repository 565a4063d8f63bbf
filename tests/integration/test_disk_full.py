"""The disk is full: the process says so and ends, others take its shards, nothing is torn, and with room again it goes on."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from chaos.brokers import Brokers
from integration.deployment import Process, World, deployed, wait_for
from tmpfs import fill, make_room, mounted_tmpfs

from laxity.infra.local import Endpoints
from laxity.schemas.limits import MIB
from laxity.streams.runtime.stores import FREE_BYTES_MIN

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]


@pytest.fixture
def world(stack: Endpoints, tmp_path: Path) -> Iterator[World]:
    with deployed(stack, stack.redis, tmp_path) as made:
        yield made


def check_end(process: Process, folder: Path) -> None:
    """Exit code 1, and one line that names the store and what is free."""
    assert process.popen.wait(60) == 1
    (line,) = process.said("scheduler.failed")
    assert line["kind"] == "StoreFullError"
    assert f"store {folder}" in line["why"]
    assert "bytes are free" in line["why"]
    assert "exception" not in line
    assert process.said("scheduler.stopped"), "it ended in order"


def test_a_full_disk_ends_the_process_and_costs_nothing(world: World) -> None:
    """As for a quota: no file of the process may grow beyond some size, from one moment to the next."""
    doomed, other = world.started(name="doomed"), world.started(name="other")
    wait_for(lambda: (doomed.shards(), other.shards()) == (2, 2), "two shards each")
    world.publish(50)
    wait_for(lambda: len(world.ended()) == 50, "work goes on")
    resource.prlimit(doomed.popen.pid, resource.RLIMIT_FSIZE, (128 * 1024,) * 2)
    published = 50
    while doomed.popen.poll() is None:
        assert published < 10_000, "it never noticed"
        world.publish(200, start=published)
        published += 200
        _go_on(world, doomed, published)
    check_end(doomed, world.root / "doomed")
    wait_for(lambda: other.shards() == 4, "the other one has all shards")
    world.check(published)
    again = world.started(name="doomed")
    assert not again.said("shard.wiped"), "what was written before is whole"
    world.publish(50, start=published)
    world.check(published + 50)


def _go_on(world: World, doomed: Process, published: int) -> None:
    wait_for(lambda: doomed.popen.poll() is not None or len(world.ended()) == published, "work goes on")


@pytest.mark.slow
def test_a_full_file_system_is_refused_until_there_is_room(world: World) -> None:
    with mounted_tmpfs(64 * MIB) as small:
        state = small / "state"
        doomed = world.started(state=state)
        world.publish(50)
        world.check(50)
        fill(small)
        world.publish(500, start=50)
        check_end(doomed, state)
        refused = world.start(state=state)
        assert refused.popen.wait(60) == 1
        wanted = f"state directory {state}: "
        assert wanted in refused.log.read_text()
        assert f"at least {FREE_BYTES_MIN} are needed" in refused.log.read_text()
        assert not refused.said("shard.granted"), "refused before it joined"
        make_room(small)
        again = world.started(state=state)
        world.check(550)
        again.popen.send_signal(signal.SIGTERM)
        assert again.popen.wait(30) == 0


def test_a_log_on_a_full_disk_ends_nothing(world: World) -> None:
    """Whoever starts the process may have its lines written to a file beside the state."""
    process = world.start(log=Path("/dev/full"))
    world.publish(50)
    world.check(50)
    process.popen.terminate()
    assert process.popen.wait(30) == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_broker_whose_disk_is_full_stops_the_work_and_loses_none(stack: Endpoints, tmp_path: Path) -> None:
    """Kafka ends with its only log directory; until it is back schedulers wait, and nothing is half-applied."""
    with mounted_tmpfs(128 * MIB) as small, ExitStack() as closing:
        disk = {"log.dirs": str(small / "data")}
        cluster = closing.enter_context(Brokers(tmp_path / "broker", count=1, settings=disk))
        own = replace(stack, kafka=cluster.bootstrap())
        world = closing.enter_context(deployed(own, stack.redis, tmp_path))
        first, second = world.started(), world.started()
        world.publish(50)
        world.check(50)
        world.publish(400, start=50)
        fill(small)
        broker = cluster.nodes[1].popen
        assert broker is not None
        wait_for(lambda: broker.poll() is not None, "the broker ends")
        assert (first.popen.poll(), second.popen.poll()) == (None, None), "schedulers wait"
        make_room(small)
        cluster.start(1)
        cluster.until_ready()
        wait_for(lambda: first.ready() and second.ready(), "ready again", ms=120_000)
        world.publish(50, start=450)
        wait_for(lambda: len(world.ended()) >= 500, "all tasks end", ms=120_000)
        world.check(500)
