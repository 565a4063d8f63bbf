"""What people see: a line of progress while the run lasts, a table per tier at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Protocol, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table

LINE_EVERY_MS: Final = 5_000  # where there is no terminal to draw on
WIDTH: Final = 132  # that the whole table needs, and that it gets where it goes to a file
UNDER_WAY: Final = frozenset({"DISPATCHED", "RUNNING", "UNKNOWN"})


class Display(Protocol):
    """A context manager that shows counts."""

    def show(self, counts: Mapping[str, int], elapsed_ms: int) -> None:
        """Now."""
        ...

    def __enter__(self) -> Self:
        """Begin."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        ...


def counts_of(
    acknowledged: Mapping[str, object],
    states: Mapping[str, str],
    missed: set[str],
    responses_429: int,
    of: int,
) -> dict[str, int]:
    """Of the acknowledged tasks; one that no event tells of yet is waiting."""
    found = Counter(states.get(task_id, "") for task_id in acknowledged)
    ended = sum(found[state] for state in ("SUCCEEDED", "DEAD", "EXPIRED", "CANCELLED"))
    running = sum(found[state] for state in UNDER_WAY)
    return {
        "tasks": of,
        "submitted": len(acknowledged),
        "waiting": len(acknowledged) - running - ended,
        "running": running,
        "done": found["SUCCEEDED"],
        "missed": sum(task_id in acknowledged for task_id in list(missed)),
        "expired": found["EXPIRED"],
        "dead": found["DEAD"] + found["CANCELLED"],
        "429s": responses_429,
    }


class TerminalDisplay:
    """Drawn over itself."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=4)

    def show(self, counts: Mapping[str, int], elapsed_ms: int) -> None:
        """Now."""
        table = Table("time", *counts)
        table.add_row(f"{elapsed_ms / 1_000:.0f} s", *map(str, counts.values()))
        self._live.update(table)

    def __enter__(self) -> Self:
        """Begin."""
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The last picture stays."""
        self._live.__exit__(kind, error, trace)


class LineDisplay:
    """A line now and then."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._next_ms = 0

    def show(self, counts: Mapping[str, int], elapsed_ms: int) -> None:
        """Every LINE_EVERY_MS."""
        if elapsed_ms >= self._next_ms:
            self._next_ms = elapsed_ms + LINE_EVERY_MS
            told = ", ".join(f"{name} {count}" for name, count in counts.items())
            self._note(f"{elapsed_ms / 1_000:4.0f} s: {told}")

    def __enter__(self) -> Self:
        """Nothing to begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to end."""


def display_for(console: Console, note: Callable[[str], None]) -> Display:
    """By whether somebody watches."""
    return TerminalDisplay(console) if console.is_terminal else LineDisplay(note)


COLUMNS: Final = {
    "tasks": "submitted",
    "done": "completed",
    "met": "met",
    "missed": "missed",
    "expired": "expired",
    "dead": "dead",
    "lost": "lost",
    "doubled": "doubled",
    "429s": "responses_429",
}
COSTS: Final = ("tokens", "cost", "dispatch ms\np50/p95/p99", "wait ms\np50/p95/p99")


def tables_of(document: Mapping[str, Any], width: int) -> list[Table]:
    """A row per tier and the total; in two tables where one would not fit."""
    if width >= WIDTH:
        return [
            _table(document, _title(document), (*COLUMNS, *COSTS), lambda of: [*_counts(of), *_costs(of)])
        ]
    return [
        _table(document, _title(document), COLUMNS, _counts),
        _table(document, "", COSTS, _costs),
    ]


def _table(
    document: Mapping[str, Any],
    title: str,
    columns: Iterable[str],
    cells: Callable[[Mapping[str, Any]], list[str]],
) -> Table:
    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, padding=(0, 0), pad_edge=False)
    table.add_column("tier", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for tier, figures in document["tiers"].items():
        table.add_row(tier, *cells(figures))
    table.add_section()
    table.add_row("total", *cells(document))
    return table


def _title(document: Mapping[str, Any]) -> str:
    by = document["load_by"]
    shares = ", ".join(f"{name} {share:.2f}" for name, share in by.items())
    return f"run {document['run']}: speed {document['speed']:g}, load {document['load']:.2f} ({shares})"


def _counts(figures: Mapping[str, Any]) -> list[str]:
    return [str(figures[name]) for name in COLUMNS.values()]


def _costs(figures: Mapping[str, Any]) -> list[str]:
    times = [_times(figures[name]) for name in ("dispatch_ms", "wait_ms")]
    return [str(figures["tokens"]), f"{figures['cost']:.2f}", *times]


def _times(found: Mapping[str, int | None]) -> str:
    return "/".join("-" if value is None else str(value) for value in found.values())


def console_for(*, stderr: bool) -> Console:
    """As wide as the terminal, else wide enough for the table."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=WIDTH)
