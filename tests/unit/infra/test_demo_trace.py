from __future__ import annotations

from pathlib import Path

import pytest

from laxity.infra.demo.trace import TraceError, TraceRow, read_trace

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"


def written(tmp_path: Path, *lines: str, end: str = "\r\n") -> Path:
    path = tmp_path / "trace.csv"
    path.write_bytes(end.join(lines).encode())
    return path


def test_arrivals_count_from_the_first_row_and_the_last_line_needs_no_newline(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        HEADER,
        "2023-11-16 23:59:59.9799600,4808,10",
        "2023-11-17 00:00:00.0319609,3180,8",
        "2023-11-17 00:00:59.9799600,0,0",
    )
    assert list(read_trace(path)) == [
        TraceRow(arrival_ms=0, context_tokens=4808, generated_tokens=10),
        TraceRow(arrival_ms=52, context_tokens=3180, generated_tokens=8),
        TraceRow(arrival_ms=60_000, context_tokens=0, generated_tokens=0),
    ]


def test_columns_are_found_by_name_behind_a_byte_order_mark(tmp_path: Path) -> None:
    path = written(
        tmp_path, "\ufeffGeneratedTokens,x,ContextTokens,TIMESTAMP", "7,-,9,2023-11-16 18:17:03", end="\n"
    )
    assert [(row.context_tokens, row.generated_tokens) for row in read_trace(path)] == [(9, 7)]


def test_a_limit_takes_the_first_rows_and_does_not_read_on(tmp_path: Path) -> None:
    path = written(tmp_path, HEADER, "2023-11-16 18:17:03,1,2", "2023-11-16 18:17:04,3,4", "broken")
    assert len(list(read_trace(path, limit=2))) == 2
    with pytest.raises(TraceError, match="line 4, column TIMESTAMP: 'broken'"):
        list(read_trace(path, limit=3))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2023-11-16 18:17:04,many,4", "line 3, column ContextTokens: 'many' is no count"),
        ("2023-11-16 18:17:04,-1,4", "line 3, column ContextTokens: '-1' is no count"),
        ("2023-11-16 18:17:04,\u0663,4", "line 3, column ContextTokens: '\u0663' is no count"),
        ("2023-11-16 18:17:04,1", "line 3, column GeneratedTokens: None is no count"),
        ("2023-11-16 18:17:04,1,10000001", "line 3, column GeneratedTokens: 10000001 is more than 10000000"),
        ("16.11.2023,1,2", "line 3, column TIMESTAMP: '16.11.2023' is no time"),
        ("2023-11-16 18:17:02,1,2", "line 3, column TIMESTAMP: '2023-11-16 18:17:02' is earlier"),
    ],
)
def test_an_error_names_file_line_and_column(tmp_path: Path, line: str, message: str) -> None:
    path = written(tmp_path, HEADER, "2023-11-16 18:17:03,1,2", line)
    with pytest.raises(TraceError) as raised:
        list(read_trace(path))
    assert str(path) in str(raised.value)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no column TIMESTAMP, ContextTokens, GeneratedTokens"),
        ("TIMESTAMP,ContextTokens\n2023-11-16 18:17:03,1\n", "no column GeneratedTokens"),
        (HEADER + "\n", "no rows"),
    ],
)
def test_a_file_without_columns_or_rows_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(content)
    with pytest.raises(TraceError, match=message):
        list(read_trace(path))


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"absent\.csv: cannot be read"):
        list(read_trace(tmp_path / "absent.csv"))
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00" * 50)
    with pytest.raises(TraceError, match=r"binary\.csv"):
        list(read_trace(binary))


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(tmp_path: Path, limit: int) -> None:
    with pytest.raises(TraceError, match="limit"):
        list(read_trace(written(tmp_path, HEADER, "2023-11-16 18:17:03,1,2"), limit=limit))
