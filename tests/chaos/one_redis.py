"""One Redis process of a test's own, to be killed, stopped, flushed, filled and replicated."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from laxity.infra.local.redis_server import find_redis_server
from laxity.schemas.timing import SystemClock

PATIENCE_S = 20
CLOCK = SystemClock()


def until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Wait for a condition, with a deadline."""
    pause, ends_ms = threading.Event(), CLOCK.monotonic_ms() + patience_s * 1_000
    while not (found := condition()):
        assert CLOCK.monotonic_ms() < ends_ms, f"not within {patience_s} s: {what}"
        pause.wait(0.02)
    return found


@dataclass
class Server:
    """`start` and `kill` as often as one likes, on the same port and file."""

    folder: Path
    port: int
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Without a password: it listens on loopback only."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Until it answers."""
        command = [
            str(find_redis_server().path), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.folder),
            "--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction", *self.options,
        ]  # fmt: skip
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        until(self.answers, "Redis answers")

    def answers(self) -> bool:
        """Whether it serves."""
        try:
            with redis.Redis.from_url(self.url, socket_timeout=1) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def tell(self, *command: str | int) -> Any:
        """One command, answered within 30 s."""
        with redis.Redis.from_url(self.url, socket_timeout=30, decode_responses=True) as client:
            return client.execute_command(*command)

    def kill(self) -> None:
        """-9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(PATIENCE_S)
            self.process = None

    def forget(self) -> None:
        """The file is gone; while it is down."""
        for path in self.folder.rglob("*.[ar][od][fb]*"):
            path.unlink()

    def freeze(self) -> None:
        """It takes what is sent and answers nothing."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on where it stood."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(folder: Path, *options: str) -> Iterator[Server]:
    """Up, and killed at the end."""
    folder.mkdir(exist_ok=True)
    server = Server(folder, free_port(), options)
    server.start()
    try:
        yield server
    finally:
        server.kill()
