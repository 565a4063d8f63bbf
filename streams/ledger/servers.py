"""Which servers the ledger may be entrusted to: holes by which a client takes over a server, and the releases that close them.

Any client that may run scripts can use them, and the ledger is scripts: whoever has a runner's password would own every limit.
Distributions mend older releases without changing the number; an operator who knows that says so with LAXITY_REDIS_TRUSTED_VERSION.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import redis as client
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from laxity.schemas.safety import is_loopback
from laxity.schemas.settings import SettingsError

Version = tuple[int, int, int]
VERSION_MIN: Final = (6, 2)  # EVALSHA with the commands that the scripts use
TIMEOUT_S: Final = 2.0  # at start-up, for one question


@dataclass(frozen=True, slots=True, kw_only=True)
class Hole:
    """`fixed`: by flavour, the first safe release of each line that got one; lines after the last were born safe."""

    name: str
    fixed: Mapping[str, tuple[Version, ...]]
    since: Mapping[str, Version] = field(default_factory=dict)
    by_tls: bool = False  # only a server that speaks TLS has it


HOLES: Final = (
    Hole(  # a script uses freed memory and leaves the sandbox
        name="CVE-2025-49844",
        fixed={
            "redis": ((6, 2, 20), (7, 2, 11), (7, 4, 6), (8, 0, 4), (8, 2, 2)),
            "valkey": ((7, 2, 11), (8, 0, 6), (8, 1, 4)),
        },
    ),
    Hole(  # a blocked client that is evicted while it is unblocked; with it came two more, of RESTORE and of Lua on replicas
        name="CVE-2026-23479",
        fixed={
            "redis": ((7, 2, 14), (7, 4, 9), (8, 2, 6), (8, 4, 3), (8, 6, 3)),
            "valkey": ((7, 2, 13), (8, 0, 9), (8, 1, 7), (9, 0, 4)),
        },
        since={"redis": (7, 2, 0)},
    ),
    Hole(  # an answer to one client that another one, or the text of an error, wrote
        name="CVE-2025-67733",
        fixed={"valkey": ((7, 2, 12), (8, 0, 7), (8, 1, 6), (9, 0, 2))},
    ),
    Hole(  # pending data of a TLS connection that is gone: no password needed
        name="CVE-2026-81934",
        fixed={"redis": ((8, 2, 9), (8, 4, 6), (8, 6, 6), (8, 8, 2), (8, 10, 1))},
        since={"redis": (8, 2, 0)},
        by_tls=True,
    ),
    Hole(
        name="CVE-2026-56684",
        fixed={"valkey": ((7, 2, 14), (8, 0, 10), (8, 1, 9), (9, 0, 5), (9, 1, 1))},
        by_tls=True,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Of one server. `problem` empty: none is known. `fatal`: nothing may run on it."""

    shown: str
    problem: str = ""
    fatal: bool = False


def version_of(info: Mapping[str, Any]) -> tuple[str, Version]:
    """Flavour and version from INFO server; Valkey also reports the Redis version that it is like."""
    flavour = "valkey" if "valkey_version" in info else "redis"
    numbers = [int(part) for part in str(info[f"{flavour}_version"]).split(".")[:3]]
    return flavour, (numbers[0], numbers[1], numbers[2] if len(numbers) > 2 else 0)


def unpatched(flavour: str, version: Version, *, tls: bool = False) -> str:
    """Why this version is unsafe and from which one on it is safe; empty if no hole is known."""
    found = _missing(flavour, version, tls=tls)
    if not found:
        return ""
    safe = max(found.values())
    while better := _missing(flavour, safe, tls=tls):
        safe = max(better.values())
    return f"{flavour} {_dotted(version)} has {', '.join(found)}; take {_dotted(safe)} or newer"


def _missing(flavour: str, version: Version, *, tls: bool) -> dict[str, Version]:
    """The holes that it has, with the release that closes each."""
    return {hole.name: first for hole in HOLES if (first := _lacks(hole, flavour, version, tls=tls))}


def _lacks(hole: Hole, flavour: str, version: Version, *, tls: bool) -> Version | None:
    """The release that would close the hole."""
    fixed = hole.fixed.get(flavour, ())
    if not fixed or version < hole.since.get(flavour, version) or (hole.by_tls and not tls):
        return None
    of_line = next((first for first in fixed if first[:2] == version[:2]), None)
    if of_line is None and version > fixed[-1]:
        return None
    first = of_line or fixed[-1]
    return first if version < first else None


def judge(url: str, info: Mapping[str, Any], *, trusted: str = "") -> Judgement:
    """Too old is fatal; a known hole is where others reach the server, and on this machine a warning."""
    flavour, version = version_of(info)
    shown = f"{flavour} {_dotted(version)}"
    if version[:2] < VERSION_MIN:
        return Judgement(
            shown=shown, problem=f"{shown} is too old: {_dotted(VERSION_MIN)} or newer", fatal=True
        )
    problem = unpatched(flavour, version, tls=url.startswith("rediss:"))
    if not problem or trusted == _dotted(version):
        return Judgement(shown=shown)
    return Judgement(shown=shown, problem=problem, fatal=not is_loopback(url))


def admit(url: str, *, trusted: str = "") -> Judgement | None:
    """Ask the server and judge it, before anything is started. SettingsError if it is fatal; None: it did not say what it is."""
    asked: Any = client.Redis.from_url(
        url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=Retry(NoBackoff(), 0)
    )
    try:
        found = judge(url, asked.info("server"), trusted=trusted)
    except (RedisError, OSError):
        return None  # the ledger is away, or the user may not ask; it is not for us to keep the process from starting
    finally:
        asked.close()
    if found.fatal:
        raise SettingsError(
            f"Redis refused: {found.problem}, or set LAXITY_REDIS_TRUSTED_VERSION if your distribution has mended it"
        )
    return found


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
