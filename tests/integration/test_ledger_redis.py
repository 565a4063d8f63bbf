"""The ledger on a server of its own that can be killed, stopped, flushed, filled and replicated; and many processes on it."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from chaos.one_redis import CLOCK, PATIENCE_S, Server, running, until

from laxity.streams.ledger.limits import Limits, RateLimit, SlotLimit
from laxity.streams.ledger.protocol import Answer, Candidate, Exchange, LedgerUnavailable, Live, Settle
from laxity.streams.ledger.redis import RedisLedger
from laxity.streams.ledger.scripts import keys
from laxity.streams.ledger.wakes import ANY, Wakes
from laxity.streams.ledger.wire import Run, ScriptRefused

pytestmark = pytest.mark.integration

LIMITS = Limits(
    resources={
        "llm": RateLimit(
            requests_per_minute=0, tokens_per_minute=60_000, burst_requests=0, burst_tokens=10_000
        ),
        "hot": SlotLimit(capacity=3),
        "account": SlotLimit(capacity=1, keyed=True),
    }
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("redis")) as one:
        yield one


@pytest.fixture
def admin(server: Server) -> Iterator[Any]:
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        client.flushall()
        yield client


@contextmanager
def ledger_at(server: Server, **options: Any) -> Iterator[RedisLedger]:
    ledger = RedisLedger(server.url, limits=LIMITS, shards=1, **{"timeout_s": 5, **options})
    try:
        yield ledger
    finally:
        ledger.close()


@pytest.fixture
def ledger(server: Server, admin: Any) -> Iterator[RedisLedger]:
    with ledger_at(server) as one:
        begin(one)
        yield one


def begin(ledger: RedisLedger, seen_epoch: str = "", live: tuple[Live, ...] = ()) -> str:
    epoch = ledger.reconcile(shard=0, owner_epoch=1, seen_epoch=seen_epoch, live=live).epoch
    ledger.register(runner="r", fleet="f", partition=0, credit=1_000, ttl_ms=600_000)
    return epoch


def ask(reservation_id: str, **demands: int) -> Candidate:
    return Candidate(reservation_id=reservation_id, task_id="t", fleet="f", demands=demands, deadline_ms=0)


def say(ledger: RedisLedger, *candidates: Candidate, **parts: Any) -> Answer:
    return ledger.exchange(Exchange(shard=0, owner_epoch=1, candidates=candidates, **parts))


def live_of(answer: Answer) -> tuple[Live, ...]:
    return tuple(
        Live(
            reservation_id=g.reservation_id,
            runner=g.runner,
            partition=g.partition,
            granted=g.granted,
            active=True,
        )
        for g in answer.grants
    )


# The server's own time, scripts and memory


def test_time_is_the_servers(ledger: RedisLedger, admin: Any) -> None:
    before = admin.time()[0]
    assert before * 1_000 <= say(ledger).now_ms <= (admin.time()[0] + 1) * 1_000


def test_scripts_are_loaded_again_when_the_server_forgot_them(ledger: RedisLedger, admin: Any) -> None:
    first = say(ledger, ask("a:0:1", hot=1))
    admin.script_flush()
    assert say(ledger, ask("a:0:1", hot=1)).grants == first.grants
    admin.script_flush()
    assert ledger.claim(reservation_id="a:0:1", runner="r").verdict == "claimed"


def test_a_transaction_is_carried_out_once_though_the_server_knows_half_of_its_scripts(
    ledger: RedisLedger, server: Server, admin: Any
) -> None:
    """The commands of a transaction are not undone because one of them is not known."""
    admin.script_flush()
    with ledger_at(server) as other:
        settle = [Settle(reservation_id="x:0:1", used={}, unclaimed=False)]
        before = say(other, settles=settle).sequence
        assert say(other, ask("a:0:1", hot=1), settles=settle).sequence == before + 3, "settle, reserve, reap"


def test_a_short_lease_lapses_by_the_servers_clock(server: Server, admin: Any) -> None:
    with ledger_at(server, ttl_ms=50) as ledger:
        begin(ledger)
        until(lambda: say(ledger, ask("a:0:1", hot=3)).grants, "granted")
        assert until(lambda: say(ledger).reaped, "reaped") == ("a:0:1",)
        assert say(ledger, ask("b:0:1", hot=3)).grants


def reserve_with_amount(amount: str, run_id: str) -> list[Run]:
    """One candidate for one slot of `hot`, past all checks of ours."""
    common: tuple[str | int, ...] = (15, *keys("laxity."), "", run_id, "c", 15_000, 1)
    return [("reserve", (*common, 0, 1, 1, "hot", "s", 3, 0, 0, 0, 0, 1, "x:0:1", "f", 1, 1, amount))]


def test_scripts_refuse_numbers_that_are_none_and_change_nothing(ledger: RedisLedger, admin: Any) -> None:
    say(ledger, ask("a:0:1", hot=1))
    before = sorted(admin.keys())
    for bad in (
        "nan",
        "-1",
        "0x10",
        "1e400",
        "1.5",
        "",
        " 1",
        "9007199254740992",
        "99999999999999999999",
        "inf",
    ):
        with pytest.raises(ScriptRefused, match="must be an integer"):
            ledger._wire.evaluate(partial(reserve_with_amount, bad))
    assert sorted(admin.keys()) == before
    assert admin.hget(keys("laxity.")[8], "hot") == "1"


def test_all_keys_share_one_slot_and_carry_no_text_of_users(ledger: RedisLedger, admin: Any) -> None:
    hostile = "account:{x}\r\nFLUSHALL"
    say(ledger, ask("a:0:1", **{hostile: 1}))
    ledger.register(runner="r/{y}", fleet="f", partition=1, credit=1, ttl_ms=1_000)
    assert set(admin.keys()) <= set(keys("laxity."))
    assert {key.split("{")[1].split("}")[0] for key in keys("laxity.")} == {"ledger"}
    assert (
        ledger.exchange(Exchange(shard=0, owner_epoch=1, candidates=[ask("b:0:1", **{hostile: 1})]))
        .refusals[0]
        .reason
        == "key_busy"
    )


def test_a_prefix_is_a_world_of_its_own(ledger: RedisLedger, server: Server) -> None:
    say(ledger, ask("a:0:1", hot=3))
    with ledger_at(server, prefix="other.") as other:
        begin(other)
        assert say(other, ask("a:0:1", hot=3)).status == "ok"
        assert say(other).epoch != say(ledger).epoch


def test_memory_returns_to_nothing_when_all_is_done(ledger: RedisLedger, server: Server, admin: Any) -> None:
    with ledger_at(server, ttl_ms=50) as short:
        until(lambda: not say(short, ask("w:0:1")).refusals, "open")
        for number in range(200):
            say(short, ask(f"{number}:0:1", hot=1, llm=1, **{f"account:{number}": 1}))
            say(short, settles=[Settle(reservation_id=f"{number}:0:1", used={}, unclaimed=True)])
        short.deregister(runner="r", fleet="f")
        tables = dict(zip(("reservations", "leases", "held", "reaped", "tombstones", "used", "buckets", "runners", "alive", "idle"), keys("laxity.")[3:13], strict=True))  # fmt: skip

        def sizes() -> dict[str, int]:
            say(short, acknowledged=["w:0:1"])
            return {name: _size(admin, key) for name, key in tables.items() if _size(admin, key)}

        until(lambda: sizes() == {"buckets": 1}, "nothing but the bucket is kept")


def _size(admin: Any, key: str) -> int:
    kind = admin.type(key)
    if kind == "none":
        return 0
    return int(admin.hlen(key) if kind == "hash" else admin.zcard(key))


# Loss


def test_flushall_is_noticed_and_nothing_is_sold_twice(ledger: RedisLedger, admin: Any) -> None:
    before = say(ledger, ask("a:0:1", hot=2))
    ledger.claim(reservation_id="a:0:1", runner="r")
    admin.flushall()
    assert say(ledger, ask("b:0:1", hot=3)).status == "recovering"
    assert begin(ledger, before.epoch, live_of(before)) != before.epoch
    assert say(ledger, ask("b:0:1", hot=2)).refusals[0].reason == "slots_full"
    assert ledger.renew(runner="r", reservation_ids=["a:0:1"]) == {"a:0:1": "ok"}


def test_kill_and_restart_is_another_epoch_with_the_leases_of_the_file(tmp_path: Path) -> None:
    with running(tmp_path / "redis") as server, ledger_at(server) as ledger:
        begin(ledger)
        before = say(ledger, ask("a:0:1", hot=2))
        server.kill()
        with pytest.raises(LedgerUnavailable):
            say(ledger, ask("b:0:1", hot=1))
        server.start()
        assert say(ledger, ask("b:0:1", hot=1)).status == "recovering"
        assert begin(ledger, before.epoch, live_of(before)) != before.epoch
        answer = say(ledger, ask("b:0:1", hot=2), ask("c:0:1"))
        assert [r.reason for r in answer.refusals] == ["slots_full"]


def test_a_promoted_replica_lacks_the_last_grants_and_knows_it(tmp_path: Path) -> None:
    with (
        running(tmp_path / "primary") as primary,
        running(tmp_path / "replica") as replica,
        redis.Redis.from_url(replica.url, decode_responses=True) as admin,
        ledger_at(primary) as ledger,
        ledger_at(replica) as there,
    ):
        epoch = begin(ledger)
        admin.replicaof("127.0.0.1", str(primary.port))
        until(lambda: admin.hget(keys("laxity.")[0], "key"), "replicated")
        assert say(there, ask("x:0:1")).status == "recovering", "it has the epoch key, but another run_id"
        with pytest.raises(LedgerUnavailable, match=r"(?i)read.?only"):
            begin(there)
        admin.replicaof("NO", "ONE")
        assert say(ledger, ask("a:0:1", hot=3)).grants
        assert say(there, ask("b:0:1", hot=3)).status == "recovering"
        assert there.claim(reservation_id="a:0:1", runner="r").verdict == "recovering"
        assert begin(there) != epoch


def test_a_silent_server_is_given_up_in_time_and_the_late_answer_is_never_mistaken(tmp_path: Path) -> None:
    with running(tmp_path / "redis") as server, ledger_at(server, timeout_s=0.3) as ledger:
        begin(ledger)
        assert server.process is not None
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            started_ms = CLOCK.monotonic_ms()
            with pytest.raises(LedgerUnavailable):
                say(ledger, ask("a:0:1", hot=1))
            assert CLOCK.monotonic_ms() - started_ms < 5_000
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        answer = until(
            lambda: _or_none(lambda: say(ledger, ask("a:0:1", hot=1), ask("b:0:1", hot=3))), "answers again"
        )
        assert [g.reservation_id for g in answer.grants] == ["a:0:1"], "unknown before, the same now"
        assert [r.reason for r in answer.refusals] == ["slots_full"]


def _or_none(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except LedgerUnavailable:
        return None


def test_a_full_server_fails_closed(tmp_path: Path) -> None:
    with running(tmp_path / "redis") as server, ledger_at(server) as ledger:
        begin(ledger)
        with redis.Redis.from_url(server.url) as admin:
            admin.config_set("maxmemory", 1)
            with pytest.raises(LedgerUnavailable, match=r"(?i)memory"):
                say(ledger, ask("a:0:1", hot=1))
            admin.config_set("maxmemory", 0)
        assert say(ledger, ask("b:0:1", hot=3)).grants


def test_a_runner_needs_a_narrow_acl_only(ledger: RedisLedger, server: Server, admin: Any) -> None:
    say(ledger, ask("a:0:1", hot=1))
    admin.acl_setuser(
        "runner", enabled=True, passwords=["+secret"], keys=["laxity.{ledger}:*"], channels=["laxity.woken"],
        commands=["+evalsha", "+script|load", "+info", "+multi", "+exec", "+time", "+publish",
                  "+@hash", "+@sortedset", "+@set", "+client|setinfo"],
    )  # fmt: skip
    url = server.url.replace("redis://", "redis://runner:secret@")
    runner = RedisLedger(url, limits=LIMITS, shards=1)
    assert runner.claim(reservation_id="a:0:1", runner="r").verdict == "claimed"
    assert runner.release(reservation_id="a:0:1", runner="r", used={})
    runner.close()
    with redis.Redis.from_url(url) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.flushall()


# Waking


def test_a_release_wakes_other_processes_once_and_a_reconnect_wakes_all(tmp_path: Path) -> None:
    with running(tmp_path / "redis") as server, ledger_at(server) as ledger:
        heard: list[str] = []
        stop = threading.Event()
        wakes = Wakes(server.url)
        thread = threading.Thread(target=wakes.run, args=(heard.append, stop))
        thread.start()
        try:
            until(lambda: heard == [ANY], "subscribed")
            begin(ledger)
            say(ledger, ask("a:0:1", hot=3))
            ledger.claim(reservation_id="a:0:1", runner="r")
            for number in range(5):
                assert say(ledger, ask(f"b{number}:0:1", hot=1)).refusals
            assert ledger.release(reservation_id="a:0:1", runner="r", used={})
            until(lambda: heard == [ANY, "hot"], "one message for five refusals")
            server.kill()
            server.start()
            until(lambda: heard == [ANY, "hot", ANY], "subscribed again")
        finally:
            stop.set()
            thread.join(PATIENCE_S)
            wakes.close()
        assert not thread.is_alive()
