"""One result of `laxity doctor`."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """`error` makes doctor fail; `warn` is advice."""

    OK = "ok"
    WARN = "warn"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was looked at, what was seen, and what to do about it (empty if nothing)."""

    name: str
    level: Level
    detail: str
    remedy: str = ""
