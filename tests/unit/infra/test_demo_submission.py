from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from random import Random  # noqa: TID251

import pytest
from rich.console import Console

from laxity.infra.demo import configuration
from laxity.infra.demo.display import COLUMNS, LineDisplay, counts_of, tables_of
from laxity.infra.demo.generator import Request, assign, generate
from laxity.infra.demo.ledger_tail import LedgerTail
from laxity.infra.demo.provider.ledger import LedgerError
from laxity.infra.demo.provider.line import Kind, Line, encode
from laxity.infra.demo.report import document
from laxity.infra.demo.sizing import charge, offered, size
from laxity.infra.demo.stories import Sent, tell
from laxity.infra.demo.submission import RESOURCE, headers, trigger
from laxity.schemas import config
from laxity.schemas.validation import problems

START = 1_700_000_000_000
LINE = Line(
    ts_ms=1, key="k", tenant="t", task="task", model="m", tokens_in=3, tokens_out=4, kind=Kind.EFFECT,
    status=200, reason="", body="b", charged=7, arrived_ms=0,
)  # fmt: skip


def load() -> list[Request]:
    return assign(generate(200, Random(1)), 1)


def test_every_trigger_is_accepted_under_the_configuration_of_the_run() -> None:
    requests = load()
    found = config.parse(configuration.text(size(offered(requests, 1.0), 0.8, 1.0), 1.0))
    assert [problems(trigger(r, "run", START), found, START) for r in requests] == [[]] * len(requests)


def test_every_trigger_is_accepted_under_the_packaged_configuration() -> None:
    found = config.parse(config.packaged_text())
    assert all(not problems(trigger(r, "run", START), found, START) for r in load())


def test_a_trigger_asks_for_what_the_provider_will_charge() -> None:
    for request in load():
        made = trigger(request, "run", START)
        payload = json.loads(made.payload)
        assert made.demands == {RESOURCE: charge(request)}
        assert payload["context_tokens"] + payload["max_tokens"] == charge(request)
        assert payload["generate_tokens"] <= payload["max_tokens"]
        assert made.deadline_ms == START + request.deadline_ms
        assert made.firm == (request.tier == "background")


def test_the_same_row_of_another_run_is_another_task() -> None:
    request = load()[0]
    assert trigger(request, "one", START).key == trigger(request, "one", START + 9).key
    assert trigger(request, "one", START).key != trigger(request, "two", START).key
    assert trigger(request, "one", START).key != trigger(replace(request, index=7), "one", START).key
    assert headers("one") == [("laxity-demo", b"one")]


# The ledger's tail


def test_only_lines_after_the_beginning(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    path.write_bytes(encode(LINE))
    tail = LedgerTail(path)
    assert tail.read() == []
    with path.open("ab") as file:
        file.write(encode(replace(LINE, task="new")))
    assert [line.task for line in tail.read()] == ["new"]
    assert [line.task for line in tail.lines] == ["new"]
    assert tail.read() == []


def test_a_torn_line_is_read_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    tail = LedgerTail(path)  # not there yet
    assert tail.read() == []
    whole = encode(LINE)
    path.write_bytes(whole + whole[:10])
    assert len(tail.read()) == 1
    path.write_bytes(whole + replaced())
    assert [line.task for line in tail.read()] == ["restarted"]


def replaced() -> bytes:
    """What a provider that was restarted writes where the torn line was cut off."""
    return encode(replace(LINE, task="restarted"))


def test_a_damaged_ledger_is_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    tail = LedgerTail(path)
    path.write_bytes(b"{}\n")
    with pytest.raises(LedgerError, match="fields are not"):
        tail.read()


# What people see


def test_counts_of_progress() -> None:
    states = {"a": "RUNNING", "b": "SUCCEEDED", "c": "DEAD", "d": "READY", "foreign": "SUCCEEDED"}
    counts = counts_of(dict.fromkeys("abcde"), states, {"b", "foreign"}, 2, of=9)
    assert counts == {
        "tasks": 9, "submitted": 5, "waiting": 2, "running": 1, "done": 1, "missed": 1, "expired": 0, "dead": 1,
        "429s": 2,
    }  # fmt: skip


def test_lines_come_now_and_then() -> None:
    said: list[str] = []
    with LineDisplay(said.append) as display:
        for elapsed_ms in range(0, 12_000, 250):
            display.show({"done": elapsed_ms}, elapsed_ms)
    assert said == ["   0 s: done 0", "   5 s: done 5000", "  10 s: done 10000"]


def test_a_row_per_tier_and_the_total() -> None:
    tasks = [
        Sent(task_id=str(n), tier=tier, tenant="t", appended_ms=0) for n, tier in enumerate(("high", "low"))
    ]
    about = {"run": "r", "speed": 2.0, "load": 0.8, "load_by": {"slots": 0.8}}
    found = document(tell(tasks, [], [], horizon_ms=1), about)
    for width, count in ((200, 1), (80, 2)):
        tables = tables_of(found, width)
        assert len(tables) == count
        for table in tables:
            assert list(table.columns[0].cells) == ["high", "low", "total"]
        lost = [list(column.cells) for column in tables[0].columns if column.header == "lost"]
        assert lost == [["1", "1", "2"]]


@pytest.mark.parametrize("width", [80, 132])
def test_no_figure_is_cut_off(width: int) -> None:
    figures = dict.fromkeys(COLUMNS.values(), 12345) | {
        "tokens": 12_345_678, "cost": 12_345.0, "dispatch_ms": dict.fromkeys("abc", 12_345), "wait_ms": dict.fromkeys("abc", 12_345),
    }  # fmt: skip
    about = {"run": "r", "speed": 2.0, "load": 0.8, "load_by": {"slots": 0.8}}
    console = Console(width=width, file=StringIO())
    for table in tables_of({**figures, **about, "tiers": {"background": figures}}, width):
        console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    assert text.count("12345/12345/12345") == 4
    assert "doubled" in text


def test_a_provider_that_does_not_know_repeats_gets_none() -> None:
    assert {trigger(r, "one", START, deduplicates=False).on_unknown for r in load()} == {"park"}
    assert {trigger(r, "one", START).on_unknown for r in load()} == {"retry", "reconcile"}
