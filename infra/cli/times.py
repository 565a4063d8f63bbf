"""Times as people write them: `30s`, `5m`, `2h`, `1d`, `500ms`, or an ISO 8601 instant with its zone."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from laxity.infra.cli.output import CommandError, ExitCode

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"(\d{1,12})(ms|s|m|h|d)")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def duration_ms(text: str, option: str) -> int:
    """Milliseconds of `90s`. CommandError (usage) for anything else."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise CommandError(
            f"{option} {text!r} is no duration", "write 500ms, 30s, 5m, 2h or 1d", code=ExitCode.USAGE
        )
    return int(found[1]) * _UNITS_MS[found[2]]


def instant_ms(text: str, option: str, now_ms: int) -> int:
    """Absolute UTC milliseconds of a duration from now or of an ISO instant. CommandError (usage) for anything else."""
    if _DURATION.fullmatch(text.strip()):
        return now_ms + duration_ms(text, option)
    try:
        when = datetime.fromisoformat(text.strip())
    except ValueError:
        when = None
    if when is None or when.tzinfo is None:
        raise CommandError(
            f"{option} {text!r} is neither a duration nor an instant with a zone",
            "write 30s or 2026-12-01T09:00:00Z",
            code=ExitCode.USAGE,
        )
    return (when - _EPOCH) // timedelta(milliseconds=1)
