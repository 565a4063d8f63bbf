"""Answers in time, answers too late, no answers."""

import threading
from collections.abc import Iterator, Sequence

import pytest

from laxity.schemas.timing import ManualClock, SystemClock
from laxity.streams.ledger.limits import REPORT_MAX
from laxity.streams.ledger.protocol import Answer, Exchange, LedgerUnavailable, Live, Reconciled, Report
from laxity.streams.runtime import ledger_line
from laxity.streams.runtime.ledger_line import ANSWER_MS, ANSWER_MS_MAX, SILENT_MS, LedgerLine

ASK = Exchange(shard=1, owner_epoch=1)


class Ledger:
    """Answers at once, or when it is let."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.pages: list[Report] = []
        self.gate = threading.Event()
        self.gate.set()
        self.away = False

    def exchange(self, request: Exchange) -> Answer:
        self.asked.append(request.shard)
        self.gate.wait(30)
        if self.away:
            raise LedgerUnavailable("down")
        return Answer(status="ok", epoch="e", sequence=len(self.asked))

    def report(self, page: Report) -> Reconciled:
        self.pages.append(page)
        self.asked.append(page.shard)
        if self.away:
            raise LedgerUnavailable("down")
        return Reconciled(status="ok", epoch="e", lapsed=[one.reservation_id for one in page.live[:1]])

    def reconcile(self, *, shard: int, owner_epoch: int, seen_epoch: str, live: Sequence[Live]) -> Reconciled:
        raise NotImplementedError("the line goes by pages")


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def line(ledger: Ledger) -> Iterator[LedgerLine]:
    made = LedgerLine(ledger, SystemClock())
    yield made
    ledger.gate.set()
    made.close()


def test_an_answer_comes_back(line: LedgerLine) -> None:
    answer = line.ask(ASK)
    assert answer is not None
    assert answer.status == "ok"
    assert not line.is_silent


def test_a_late_answer_is_none_and_nobody_waits_behind_it(line: LedgerLine, ledger: Ledger) -> None:
    ledger.gate.clear()
    clock = SystemClock()
    begun = clock.monotonic_ms()
    assert line.ask(ASK) is None
    assert clock.monotonic_ms() - begun >= ANSWER_MS
    assert not line.is_silent
    assert line.ask(ASK) is None
    assert ledger.asked == [1]
    other = Exchange(shard=2, owner_epoch=1)
    assert line.ask(other) is None
    ledger.gate.set()
    assert reconciled(line, 2) is not None
    assert ledger.asked == [
        1,
        2,
    ]  # and the reconciliation; the second shard's call was taken back before it began
    assert line.ask(other) is not None


def test_patience_grows_with_late_answers_and_comes_down_again(line: LedgerLine, ledger: Ledger) -> None:
    clock = SystemClock()

    def late() -> int:
        begun = clock.monotonic_ms()
        ledger.gate.clear()
        assert line.ask(ASK) is None
        waited = clock.monotonic_ms() - begun
        ledger.gate.set()
        while not line._late[ASK.shard].done():
            assert clock.monotonic_ms() - begun < 10_000
        return waited

    waits = [late() for _ in range(6)]
    assert all(
        wait >= least for wait, least in zip(waits, (20, 40, 80, 160, 320, ANSWER_MS_MAX), strict=True)
    )
    for _ in range(5):
        assert line.ask(ASK) is not None
    assert late() < ANSWER_MS_MAX


def reconciled(line: LedgerLine, shard: int) -> Reconciled | None:
    begun = line.begin_reconcile(shard=shard, owner_epoch=1, seen_epoch="", live=())
    return line.finish(begun, wait_ms=10_000)


def silent(line: LedgerLine) -> bool:
    return line.is_silent


def test_an_absent_ledger_is_none_until_it_is_back(ledger: Ledger) -> None:
    clock = ManualClock()
    line = LedgerLine(ledger, clock)
    ledger.away = True
    assert line.ask(ASK) is None
    assert not silent(line)
    clock.advance(SILENT_MS)
    assert reconciled(line, 1) is None
    assert silent(line)
    ledger.away = False
    assert line.ask(ASK) is not None
    assert not silent(line)
    line.close()


def test_a_bug_in_the_ledger_is_not_swallowed(line: LedgerLine, ledger: Ledger) -> None:
    ledger.exchange = None  # type: ignore[method-assign, assignment]
    with pytest.raises(TypeError):
        line.ask(ASK)


def test_nor_is_one_that_comes_to_light_too_late(line: LedgerLine, ledger: Ledger) -> None:
    def broken(_: Exchange) -> Answer:
        ledger.gate.wait(30)
        raise ZeroDivisionError("a bug")

    ledger.exchange = broken  # type: ignore[assignment, method-assign]
    ledger.gate.clear()
    assert line.ask(ASK) is None
    ledger.gate.set()
    assert reconciled(line, 2) is not None, "the thread has gone on"
    with pytest.raises(ZeroDivisionError):
        line.ask(ASK)


def live(count: int) -> list[Live]:
    return [
        Live(reservation_id=f"{i:06}", runner="r", partition=0, granted={}, active=True) for i in range(count)
    ]


def test_a_reconciliation_goes_by_pages_and_others_go_between(line: LedgerLine, ledger: Ledger) -> None:
    ledger.gate.clear()
    assert line.ask(ASK) is None, "the thread is busy"
    count = 5 * REPORT_MAX + 1
    begun = line.begin_reconcile(shard=2, owner_epoch=1, seen_epoch="", live=live(count))
    between = line._thread.submit(lambda: ledger.asked.append(9))
    ledger.gate.set()
    found = line.finish(begun, wait_ms=10_000)
    between.result(10)
    assert found is not None
    assert (found.status, len(found.lapsed)) == ("ok", 6)
    assert [(len(p.live), p.within) for p in ledger.pages] == [(REPORT_MAX, "")] + 4 * [(REPORT_MAX, "e")] + [
        (1, "e")
    ]
    assert [p.after for p in ledger.pages[1:]] == [p.upto for p in ledger.pages[:-1]], "no gap, no overlap"
    assert ledger.pages[-1].upto == ""
    assert ledger.asked == [1, 2, 9, 2, 2, 2, 2, 2]


def test_a_call_that_hangs_does_not_keep_the_process(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_line, "CLOSE_S_MAX", 0.05)
    line = LedgerLine(ledger, SystemClock())
    ledger.gate.clear()
    assert line.ask(ASK) is None
    line.close()
    assert line._thread._thread.daemon
    ledger.gate.set()


def test_what_is_asked_after_the_end_is_not_answered(line: LedgerLine, ledger: Ledger) -> None:
    line.close()
    assert line.ask(ASK) is None
    assert reconciled_at_once(line) is None
    assert ledger.asked == []


def reconciled_at_once(line: LedgerLine) -> Reconciled | None:
    return line.finish(line.begin_reconcile(shard=2, owner_epoch=1, seen_epoch="", live=()))
