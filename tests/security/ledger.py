"""What schedulers and runners do in Redis, without Kafka: every kind of decision once. Returns why it did not work, empty if it did."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any, Final

from security.deployment import PREFIX
from security.waiting import CLOCK, until

from laxity.schemas.timing import SystemClock
from laxity.streams.ledger.limits import REPORT_MAX, Limits, RateLimit, SlotLimit
from laxity.streams.ledger.protocol import Candidate, Exchange, LedgerUnavailable, Live, Settle
from laxity.streams.ledger.redis import RedisLedger
from laxity.streams.ledger.wakes import Wakes
from laxity.streams.runtime.board import RedisBoard
from laxity.streams.runtime.liveness import BoardUnavailable

RATE: Final = RateLimit(
    requests_per_minute=600_000, tokens_per_minute=60_000_000, burst_requests=100, burst_tokens=10_000
)
LIMITS: Final = Limits(resources={"llm": RATE, "hot": SlotLimit(capacity=2)})
HEARD_S: Final = 3.0
_PAGES: Final = [  # more than one page of a report
    Live(reservation_id=f"{n:032}:0:1", runner="r", partition=0, granted={}, active=False)
    for n in range(REPORT_MAX + 1)
]


def _ledger(url: str) -> RedisLedger:
    return RedisLedger(url, limits=LIMITS, shards=1, prefix=PREFIX, timeout_s=5)


def _candidate(task: str) -> Candidate:
    return Candidate(
        reservation_id=f"{task}:0:1",
        task_id=task,
        fleet="f",
        demands={"hot": 1, "llm": 10},
        deadline_ms=SystemClock().now_ms(),
    )


def _prepare(ledger: RedisLedger) -> None:
    """A shard with an owner, a runner, two reservations, and a third that waits for room."""
    ledger.reconcile(shard=0, owner_epoch=1, seen_epoch="", live=[])
    ledger.register(runner="r", fleet="f", partition=0, credit=10, ttl_ms=60_000)
    answer = ledger.exchange(Exchange(shard=0, owner_epoch=1, candidates=[_candidate(t) for t in "abc"]))
    assert len(answer.grants) == 2, answer
    assert answer.refusals, answer


def _run(ledger: RedisLedger) -> None:
    """The runner's part: one reservation from claim to release, one released at once."""
    claims = ledger.claim_all(runner="r", reservation_ids=["a:0:1", "b:0:1"])
    assert {claim.verdict for claim in claims.values()} == {"claimed"}
    assert ledger.renew(runner="r", reservation_ids=["a:0:1"]) == {"a:0:1": "ok"}
    assert ledger.call(reservation_id="a:0:1", runner="r", resource="llm", amount=5).granted
    assert ledger.release_all(runner="r", releases=[("a:0:1", {"llm": 10}), ("b:0:1", {})]) == [True, True]


def as_runner(url: str, administrator: Any) -> str:
    """The shard's part is done by one who may do all."""
    admin = administrator.connection_pool.connection_kwargs
    with closing(_ledger(admin_url(admin))) as shard, closing(_ledger(url)) as mine:
        try:
            mine.register(runner="first", fleet="f", partition=0, credit=1, ttl_ms=60_000)
            mine.deregister(runner="first", fleet="f")
            _prepare(shard)
            _run(mine)
            mine.register(runner="another", fleet="g", partition=0, credit=1, ttl_ms=60_000)
            mine.deregister(runner="another", fleet="g")
        except LedgerUnavailable as error:
            return str(error)
    return ""


def as_scheduler(url: str, administrator: Any) -> str:
    """Also hears of room and tells that it is alive."""
    heard, stop = list[str](), threading.Event()
    wakes = Wakes(url, prefix=PREFIX, clock=Hasty())
    listening = threading.Thread(target=wakes.run, args=(heard.append, stop))
    listening.start()
    board = RedisBoard(url, PREFIX)
    try:
        return _decide(url) or _tell(board) or _hear(heard, administrator)
    finally:
        stop.set()
        listening.join()
        wakes.close()
        board.close()


def _decide(url: str) -> str:
    with closing(_ledger(url)) as ledger:
        try:
            _prepare(ledger)
            _run(ledger)
            settles = [Settle(reservation_id=f"{t}:0:1", used={"llm": 9}, unclaimed=False) for t in "ab"]
            answer = ledger.exchange(
                Exchange(
                    shard=0, owner_epoch=1, settles=settles, candidates=[_candidate("d"), _candidate("e")]
                )
            )
            assert len(answer.grants) == 2, answer
            ledger.exchange(Exchange(shard=0, owner_epoch=1, revokes=["d:0:1"], cancels=["e:0:1"]))
            ledger.exchange(Exchange(shard=0, owner_epoch=1, candidates=[_candidate("g")]))
            ledger.reconcile(shard=0, owner_epoch=2, seen_epoch="", live=_PAGES)
            ledger.deregister(runner="r", fleet="f")
        except LedgerUnavailable as error:
            return str(error)
    return ""


def _tell(board: RedisBoard) -> str:
    try:
        board.put("me", "1")
        found = board.read()
        board.remove("me")
    except BoardUnavailable as error:
        return str(error)
    return "" if found == {"me": "1"} else f"the board has {found}"


def _hear(heard: list[str], administrator: Any) -> str:
    """`*` comes with the subscription, a name with a message; in silence the server is asked whether it is there."""
    end_ms = CLOCK.monotonic_ms() + round(HEARD_S * 1_000)
    pause = threading.Event()
    while CLOCK.monotonic_ms() < end_ms:
        if heard and administrator.publish(f"{PREFIX}woken", "room"):
            until("the message is heard", lambda: "room" in heard, HEARD_S)
            return _is_asked(administrator)
        if any(entry["object"] in {"subscribe", f"{PREFIX}woken"} for entry in administrator.acl_log()):
            return "no subscription"
        pause.wait(0.05)
    return "nothing was heard"


def _is_asked(administrator: Any) -> str:
    before = _pings(administrator)
    until("the server is asked", lambda: _pings(administrator) != before, HEARD_S)
    return "ping was refused" if _pings(administrator)[1] != before[1] else ""


def _pings(administrator: Any) -> tuple[int, int]:
    """All, and those refused."""
    found = administrator.info("commandstats").get("cmdstat_ping", {})
    return found.get("calls", 0), found.get("rejected_calls", 0)


class Hasty:
    """A clock that is twenty times too fast: nobody wants to wait for silence."""

    def __init__(self) -> None:
        self._clock = SystemClock()

    def now_ms(self) -> int:
        return self._clock.now_ms()

    def monotonic_ms(self) -> int:
        return 20 * self._clock.monotonic_ms()


def admin_url(kwargs: Mapping[str, Any]) -> str:
    """Of a client, for another one."""
    tls = f"?ssl_ca_certs={kwargs['ssl_ca_certs']}&ssl_certfile={kwargs['ssl_certfile']}&ssl_keyfile={kwargs['ssl_keyfile']}"
    return f"rediss://{kwargs['username']}:{kwargs['password']}@{kwargs['host']}:{kwargs['port']}/0{tls}"


ACTS: Final[Mapping[str, Callable[[str, Any], str]]] = {"processor": as_scheduler, "agents": as_runner}
