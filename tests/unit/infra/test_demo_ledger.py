from __future__ import annotations

import asyncio
import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laxity.infra.demo.provider.ledger import Ledger, LedgerError, open_ledger, read_ledger
from laxity.infra.demo.provider.line import Kind, Line, decode, encode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LINE = Line(
    ts_ms=1_700_000_000_000,
    key="k",
    tenant="t",
    task="task",
    model="m",
    tokens_in=3,
    tokens_out=4,
    kind=Kind.EFFECT,
    status=200,
    reason="",
    body="b",
    charged=7,
    arrived_ms=1_699_999_999_000,
)


def lines(count: int, kind: Kind = Kind.EFFECT) -> list[Line]:
    return [replace(LINE, key=f"k{index}", kind=kind) for index in range(count)]


class Opened:
    """A ledger and what became of it."""

    def __init__(self, path: Path) -> None:
        self.failures = 0
        self.ledger, self.found = open_ledger(path, on_failure=self.fail)

    def fail(self) -> None:
        self.failures += 1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "ledger.jsonl"


@pytest.fixture
async def opened(path: Path) -> AsyncIterator[Opened]:
    opened = Opened(path)
    yield opened
    await opened.ledger.close()


async def append_all(ledger: Ledger, batch: list[Line]) -> None:
    await asyncio.gather(*(ledger.append(line) for line in batch))


@given(
    st.builds(replace, st.just(LINE), key=st.text(), tenant=st.text(), task=st.text(), ts_ms=st.integers())
)
def test_any_line_survives_and_stays_one_line(line: Line) -> None:
    assert encode(line).count(b"\n") == 1
    assert len(encode(line).splitlines()) == 1
    assert decode(encode(line)) == line


def test_the_fields_of_the_contract_are_there() -> None:
    fields = json.loads(encode(LINE))
    contract = {"ts_ms", "key", "tenant", "task", "model", "tokens_in", "tokens_out", "kind"}
    assert contract <= fields.keys()
    assert fields["kind"] == "effect"


async def test_lines_are_read_back_by_the_next_owner(path: Path) -> None:
    first = Opened(path)
    assert first.found == []
    await append_all(first.ledger, lines(5))
    await first.ledger.close()
    second = Opened(path)
    assert second.found == lines(5) == list(read_ledger(path))
    await second.ledger.append(replace(LINE, key="later"))
    await second.ledger.close()
    assert [line.key for line in read_ledger(path)] == ["k0", "k1", "k2", "k3", "k4", "later"]


async def append_next(path: Path) -> None:
    opened = Opened(path)
    assert opened.found == [LINE]
    await opened.ledger.append(replace(LINE, key="next"))
    await opened.ledger.close()


@pytest.mark.parametrize("torn", [encode(LINE)[:-1], encode(LINE)[:20], b"{", b"\x00" * 4096])
def test_a_torn_last_line_never_was(path: Path, torn: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(encode(LINE) + torn)
    assert list(read_ledger(path)) == [LINE]
    asyncio.run(append_next(path))
    assert path.read_bytes() == encode(LINE) + encode(replace(LINE, key="next"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (b"nonsense\n", "line 2: "),
        (b"[]\n", "line 2: fields are not"),
        (encode(LINE).replace(b'"status":200', b'"status":"200"'), "line 2: field status is '200'"),
        (encode(LINE).replace(b'"status":200', b'"status":true'), "line 2: field status is True"),
        (encode(LINE).replace(b'"effect"', b'"affect"'), "line 2: 'affect' is not a valid Kind"),
        (b"\xff\n", "line 2: "),
    ],
)
def test_other_damage_is_refused_and_left_alone(path: Path, damage: bytes, message: str) -> None:
    path.parent.mkdir()
    content = encode(LINE) + damage + encode(LINE)
    path.write_bytes(content)
    with pytest.raises(LedgerError) as raised:
        Opened(path)
    assert f"{path}, {message}" in str(raised.value)
    assert path.read_bytes() == content


async def test_a_ledger_has_one_owner_at_a_time(path: Path) -> None:
    first = Opened(path)
    with pytest.raises(LedgerError, match="another provider is writing it"):
        Opened(path)
    await first.ledger.close()
    await Opened(path).ledger.close()


def test_a_folder_in_its_place_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=str(tmp_path)):
        Opened(tmp_path)


class SlowDisk:
    """`os.fsync` that waits to be let through, and knows what was in the file when it was called."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.synced: list[int] = []

    def fsync(self, _descriptor: int) -> None:
        self.synced.append(self._path.read_bytes().count(b"\n"))
        self.entered.set()
        assert self.gate.wait(10), "nobody opened the gate"


async def test_nobody_is_answered_before_the_line_is_synced_and_one_sync_serves_many(
    path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(path)
    monkeypatch.setattr(os, "fsync", disk.fsync)
    first = asyncio.ensure_future(opened.ledger.append(LINE))
    assert await asyncio.to_thread(disk.entered.wait, 10)
    others = [asyncio.ensure_future(opened.ledger.append(line)) for line in lines(100)]
    await asyncio.sleep(0)
    assert not first.done()
    assert list(read_ledger(path)) == [LINE]  # written, not acknowledged
    disk.gate.set()
    await asyncio.gather(first, *others)
    assert disk.synced == [1, 101]


async def test_only_effects_cost_a_sync(path: Path, opened: Opened) -> None:
    await append_all(
        opened.ledger, [*lines(3, Kind.REFUSED), *lines(3, Kind.REPLAY), *lines(3, Kind.INJECTED)]
    )
    assert opened.ledger.syncs == 0
    assert len(list(read_ledger(path))) == 9
    await append_all(opened.ledger, lines(3))
    assert opened.ledger.syncs == 1


async def test_writes_that_are_cut_short_are_continued(
    path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: whole(descriptor, bytes(data[:7])))
    await append_all(opened.ledger, lines(4))
    assert list(read_ledger(path)) == lines(4)


async def test_after_a_failed_sync_nothing_is_accepted(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    results = await asyncio.gather(*map(opened.ledger.append, lines(3)), return_exceptions=True)
    assert all(isinstance(result, LedgerError) for result in results)
    monkeypatch.undo()
    with pytest.raises(LedgerError, match=r"cannot be written.*Input/output error"):
        await opened.ledger.append(LINE)
    assert opened.failures == 1


async def test_a_caller_that_gives_up_does_not_hold_up_the_others(
    path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(path)
    monkeypatch.setattr(os, "fsync", disk.fsync)
    impatient = asyncio.ensure_future(opened.ledger.append(LINE))
    patient = asyncio.ensure_future(opened.ledger.append(replace(LINE, key="patient")))
    assert await asyncio.to_thread(disk.entered.wait, 10)
    impatient.cancel()
    disk.gate.set()
    await patient
    assert impatient.cancelled()
    assert len(list(read_ledger(path))) == 2


async def test_closing_writes_what_waits_and_refuses_the_rest(path: Path) -> None:
    opened = Opened(path)
    waiting = asyncio.ensure_future(opened.ledger.append(LINE))
    await asyncio.sleep(0)
    await opened.ledger.close()
    await waiting
    assert list(read_ledger(path)) == [LINE]
    with pytest.raises(LedgerError, match="closed"):
        await opened.ledger.append(LINE)
    assert opened.failures == 0
