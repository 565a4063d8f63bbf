"""One data directory: its files, its lock, and the record of what runs in it."""

import base64
import fcntl
import json
import os
import secrets
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from laxity.infra.local.errors import StackError
from laxity.schemas.timing import Clock, SystemClock

RECORD_FORMAT = 1
PASSWORD_BYTES = 24
LOCK_POLL_S = 0.02
LOCK_WAIT_MS = 2_000  # far longer than a killed process takes to go


@dataclass(frozen=True, slots=True, kw_only=True)
class DataDir:
    """Paths below the data directory; `root` is absolute."""

    root: Path

    @classmethod
    def at(cls, path: Path) -> "DataDir":
        """The directory, which need not exist yet."""
        return cls(root=path.expanduser().resolve())

    @property
    def lock_file(self) -> Path:
        """Locked by the supervisor while it lives."""
        return self.root / "lock"

    @property
    def record_file(self) -> Path:
        """What runs: written by the supervisor, read by every command. Holds secrets: mode 0600."""
        return self.root / "stack.json"

    @property
    def ports_file(self) -> Path:
        """Ports chosen at the first start."""
        return self.root / "ports.json"

    @property
    def logs(self) -> Path:
        """One file per process."""
        return self.root / "logs"

    def folder(self, name: str) -> Path:
        """A process's own folder, created if need be."""
        path = self.root / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def create(self) -> None:
        """Make the directory, for its owner only, and its log folder."""
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StackError(f"cannot create {self.root}", str(error), "choose another --data-dir") from error


def write_private(path: Path, text: str) -> None:
    """Replace a file's content in one step, readable by its owner only."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    partial.replace(path)


def _kept(path: Path, make: str) -> str:
    """Content of a one-line file, which is written with `make` if it is absent."""
    if not path.exists():
        write_private(path, make + "\n")
    return path.read_text("utf-8").strip()


def redis_password(data: DataDir) -> str:
    """Made at the first start, then kept."""
    return _kept(data.root / "redis.password", secrets.token_urlsafe(PASSWORD_BYTES))


def cluster_id(data: DataDir) -> str:
    """Kafka's cluster id: 16 bytes in URL-safe base64 without padding, made once."""
    made = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
    return _kept(data.root / "kafka.cluster-id", made)


def read_record(data: DataDir) -> dict[str, Any] | None:
    """The supervisor's last record, None if there is none or it is of another format."""
    try:
        record = json.loads(data.record_file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise StackError(f"{data.record_file} is not JSON", str(error), "laxity down") from error
    return record if isinstance(record, dict) and record.get("format") == RECORD_FORMAT else None


def _try_lock(file: IO[str], clock: Clock, wait_ms: int) -> bool:
    until_ms = clock.monotonic_ms() + wait_ms
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if clock.monotonic_ms() >= until_ms:
                return False
            time.sleep(LOCK_POLL_S)
        else:
            return True


@contextmanager
def held(data: DataDir, *, wait_ms: int = 0) -> Iterator[bool]:
    """Try to hold the directory's lock; yields whether that worked.

    `wait_ms` is for a supervisor that was just killed: its lock goes with its last thread, a moment after its pid.
    """
    data.create()
    with data.lock_file.open("w") as file:
        yield _try_lock(file, SystemClock(), wait_ms)
