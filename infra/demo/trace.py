"""Recorded LLM request traces: a CSV with the columns TIMESTAMP, ContextTokens, GeneratedTokens."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

TIMESTAMP = "TIMESTAMP"
CONTEXT = "ContextTokens"
GENERATED = "GeneratedTokens"
COLUMNS = (TIMESTAMP, CONTEXT, GENERATED)
TOKENS_MAX = 10_000_000  # beyond any model's context: such a cell is damage, not load


class TraceError(ValueError):
    """A trace that cannot be read; the message names file, line and column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRow:
    """One recorded request: when it came, in ms after the first one, and its size in LLM tokens."""

    arrival_ms: int
    context_tokens: int
    generated_tokens: int


def read_trace(path: Path, *, limit: int | None = None) -> Iterator[TraceRow]:
    """Rows in the file's order, at most `limit`; later lines are not read.

    Raises `TraceError` for a missing file or column, a cell that is no time or count, time that runs
    backwards, and a file without any row.
    """
    if limit is not None and limit < 1:
        raise TraceError(f"{path}: limit is {limit}; it must be at least 1")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield from islice(_rows(path, file), limit)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path}: cannot be read: {error}") from error


def _rows(path: Path, file: Iterator[str]) -> Iterator[TraceRow]:
    reader = csv.DictReader(file)
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise TraceError(f"{path}, line 1: no column {', '.join(missing)}; needed are {', '.join(COLUMNS)}")
    first: datetime | None = None
    before_ms = 0
    for cells in reader:
        where = f"{path}, line {reader.line_num}"
        at = _time(where, cells)
        first = first or at
        arrival_ms = (at - first) // timedelta(milliseconds=1)
        if arrival_ms < before_ms:
            raise TraceError(
                f"{where}, column {TIMESTAMP}: {cells[TIMESTAMP]!r} is earlier than the line before"
            )
        before_ms = arrival_ms
        yield TraceRow(
            arrival_ms=arrival_ms,
            context_tokens=_tokens(where, cells, CONTEXT),
            generated_tokens=_tokens(where, cells, GENERATED),
        )
    if first is None:
        raise TraceError(f"{path}: no rows below the header")


def _time(where: str, cells: Mapping[str, str | None]) -> datetime:
    """The recorded zone does not matter, only differences do; digits beyond microseconds are dropped."""
    text = cells[TIMESTAMP]
    try:
        return datetime.fromisoformat(text or "").replace(tzinfo=UTC)
    except ValueError as error:
        raise TraceError(
            f"{where}, column {TIMESTAMP}: {text!r} is no time like '2023-11-16 18:17:03.9799600'"
        ) from error


def _tokens(where: str, cells: Mapping[str, str | None], column: str) -> int:
    text = cells[column]
    if text is None or not (text.isascii() and text.isdecimal()):
        raise TraceError(f"{where}, column {column}: {text!r} is no count of tokens")
    if int(text) > TOKENS_MAX:
        raise TraceError(f"{where}, column {column}: {text} is more than {TOKENS_MAX} tokens")
    return int(text)
