"""A runner and a shard's owner, each really stopped until another has its place: when they go on, nothing of the newer one is touched."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from chaos import sleeper
from chaos.one_redis import Server, running, until
from chaos.sleeper import ITS, MINE, candidate, ledger_at

from laxity.streams.ledger.protocol import Answer, Exchange
from laxity.streams.ledger.redis import RedisLedger
from laxity.streams.ledger.scripts import keys

pytestmark = pytest.mark.integration


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running(tmp_path / "redis") as one:
        yield one


@pytest.fixture
def ledger(server: Server) -> Iterator[RedisLedger]:
    """Of the parent: shard 0 has reported, runner r has one place."""
    made = ledger_at(server.url)
    made.reconcile(shard=0, owner_epoch=1, seen_epoch="", live=[])
    made.register(runner="r", fleet="f", partition=0, credit=1, ttl_ms=600_000)
    yield made
    made.close()


@contextmanager
def asleep(role: str, server: Server) -> Iterator["subprocess.Popen[str]"]:
    """At work, and stopped in the middle of it; what it said first has been read."""
    path = os.pathsep.join([str(Path(sleeper.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, sleeper.__file__, role, server.url],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        assert said in ({"claimed": "claimed"}, {"granted": 1})
        os.kill(process.pid, signal.SIGSTOP)
        yield process
    finally:
        process.kill()
        process.wait(20)


def wakes(process: "subprocess.Popen[str]") -> Any:
    """It goes on; what it tried."""
    os.kill(process.pid, signal.SIGCONT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return json.loads(out)


def say(ledger: RedisLedger, owner_epoch: int, *ids: str, **parts: Any) -> Answer:
    return ledger.exchange(
        Exchange(shard=0, owner_epoch=owner_epoch, candidates=[candidate(i) for i in ids], **parts)
    )


def test_a_runner_that_slept_through_its_lease_touches_nothing_of_the_next(
    server: Server, ledger: RedisLedger
) -> None:
    assert say(ledger, 1, MINE).grants
    with asleep("runner", server) as process:
        until(lambda: MINE in say(ledger, 1).reaped, "its lease lapsed")
        ledger.register(runner="r2", fleet="f", partition=1, credit=1, ttl_ms=600_000)
        ledger.deregister(runner="r", fleet="f")
        (grant,) = say(ledger, 1, ITS, acknowledged=[MINE]).grants
        assert grant.runner == "r2"
        assert ledger.claim(reservation_id=ITS, runner="r2").verdict == "claimed"
        before = server.tell("ZSCORE", keys("laxity.")[4], ITS)
        tried = wakes(process)
    assert tried == {
        "renew": "revoked",
        f"renew {MINE}": "revoked",
        f"claim {MINE}": "gone",
        f"call {MINE}": "gone",
        f"release {MINE}": "False",
        f"renew {ITS}": "revoked",
        f"claim {ITS}": "fenced",
        f"call {ITS}": "gone",
        f"release {ITS}": "False",
    }
    assert server.tell("ZSCORE", keys("laxity.")[4], ITS) == before, "not extended"
    assert server.tell("HGET", keys("laxity.")[8], "hot") == "1", "not freed"


def test_an_owner_that_slept_through_a_takeover_touches_nothing_of_the_next(
    server: Server, ledger: RedisLedger
) -> None:
    with asleep("shard", server) as process:
        assert ledger.reconcile(shard=0, owner_epoch=2, seen_epoch="", live=[]).dropped == 1
        assert say(ledger, 2, ITS).grants, "the place is free again"
        assert ledger.claim(reservation_id=ITS, runner="r").verdict == "claimed"
        tried = wakes(process)
        assert set(tried.values()) == {"fenced"}, tried
        assert server.tell("HGET", keys("laxity.")[8], "hot") == "1", "not freed"
        assert set(server.tell("HKEYS", keys("laxity.")[3])) == {ITS}, "nothing entered"
        assert ledger.renew(runner="r", reservation_ids=[ITS]) == {ITS: "ok"}, "no order, not revoked"
        assert say(ledger, 2).status == "ok"
