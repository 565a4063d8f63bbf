"""Foreign text and bytes made fit for a terminal and for JSON: nothing that moves a cursor, changes a colour or turns a line around gets through."""

from __future__ import annotations

import base64
import json
import unicodedata
from datetime import UTC, datetime
from typing import Any, Final

from laxity.schemas.timing import Millis

SHOWN_CHARS_MAX: Final = 240  # of one value in a line for people; JSON carries all of it
_YEAR_10000_MS: Final = 253_402_300_800_000
_ESCAPED: Final = frozenset(
    {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
)  # control, format, surrogates, line ends


def plain(text: str, most: int = SHOWN_CHARS_MAX) -> str:
    r"""`text` with control, format and unassigned characters as \xNN or \uNNNN, backslashes doubled, cut after `most` characters."""
    cut = text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"
    return "".join(_escaped(char) for char in cut)


def _escaped(char: str) -> str:
    if char == "\\":
        return "\\\\"
    if unicodedata.category(char) not in _ESCAPED:
        return char
    number = ord(char)
    if number <= 0xFF:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"


def plain_bytes(data: bytes | None, most: int = SHOWN_CHARS_MAX) -> str:
    """UTF-8 text as `plain`, anything else as 0x and hexadecimal digits; `null` for None."""
    if data is None:
        return "null"
    text = _text(data)
    if text is not None:
        return plain(text, most)
    digits = data.hex()
    return f"0x{digits}" if len(digits) <= most else f"0x{digits[:most]}… ({len(data)} bytes)"


def json_bytes(data: bytes | None) -> Any:
    """Lossless: null, {"text": …} for UTF-8, {"base64": …} for anything else."""
    if data is None:
        return None
    text = _text(data)
    return {"base64": base64.b64encode(data).decode()} if text is None else {"text": text}


def _text(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def json_line(document: Any) -> str:
    """One line of ASCII."""
    return json.dumps(document, ensure_ascii=True, separators=(", ", ": "))


def instant(ms: Millis) -> str:
    """UTC with milliseconds, `-` for 0, the bare number for what no calendar has."""
    if ms == 0:
        return "-"
    if not 0 < ms < _YEAR_10000_MS:
        return str(ms)
    seconds, rest = divmod(ms, 1_000)
    return f"{datetime.fromtimestamp(seconds, tz=UTC):%Y-%m-%dT%H:%M:%S}.{rest:03d}Z"


def duration(ms: Millis) -> str:
    """Two units at most: `340ms`, `12.3s`, `4m10s`, `3h05m`, `2d4h`."""
    sign, ms = ("-", -ms) if ms < 0 else ("", ms)
    if ms < 1_000:
        return f"{sign}{ms}ms"
    if ms < 60_000:
        return f"{sign}{ms // 1_000}.{ms % 1_000 // 100}s"
    seconds = ms // 1_000
    if seconds < 3_600:
        return f"{sign}{seconds // 60}m{seconds % 60:02d}s"
    if seconds < 86_400:
        return f"{sign}{seconds // 3_600}h{seconds % 3_600 // 60:02d}m"
    return f"{sign}{seconds // 86_400}d{seconds % 86_400 // 3_600}h"
