"""One connection to Redis that knows which server process it speaks to, and runs scripts on it in one round trip.

The run_id is read on every connect, before anything else is sent: a command composed under one server's id never reaches another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any, Final

import redis as client
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.retry import Retry

from laxity.streams.ledger.protocol import LedgerUnavailable
from laxity.streams.ledger.scripts import script

TIMEOUT_S: Final = (
    0.5  # beyond it the answer is unknown and the connection is closed: it would come to the wrong question
)
Run = tuple[str, Sequence[str | int]]  # a decision; the count of its keys, the keys, the arguments
Compose = Callable[[str], Sequence[Run]]  # what to run on the server with this run_id


class ScriptRefused(ValueError):  # noqa: N818 - the caller's bug, named by the script
    """A script found an argument out of range and changed nothing."""


class Wire:
    """Threads take turns. Everything that goes wrong between here and the server is LedgerUnavailable; nothing is retried."""

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S) -> None:
        pool = client.ConnectionPool.from_url(
            url,
            protocol=2,
            decode_responses=True,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
        self._connection: Any = pool.make_connection()
        self._lock = Lock()
        self._timeout_s = timeout_s
        self._loaded: set[str] = set()  # decisions that this server knows since we connected
        self._run_id = ""

    def close(self) -> None:
        """Idempotent; the next use connects again. A call that is under way elsewhere is left to its timeouts."""
        if self._lock.acquire(timeout=self._timeout_s):
            try:
                self._disconnect()
            finally:
                self._lock.release()

    def evaluate(self, compose: Compose) -> list[Any]:
        """Run what `compose(run_id)` says, all in one transaction if there is more than one. Raises LedgerUnavailable, ScriptRefused."""
        with self._lock:
            try:
                runs = compose(self._connected())
                self._load(runs)
                try:
                    return self._run(runs)
                except (
                    NoScriptError
                ):  # they were flushed; of a transaction some may have run: all decisions can be repeated
                    self._loaded.clear()
                    self._load(runs)
                    return self._run(runs)
            except (RedisError, OSError) as error:
                self._disconnect()
                raise LedgerUnavailable(f"{type(error).__name__}: {error}") from error
            except KeyboardInterrupt:
                self._disconnect()  # replies may be left unread
                raise

    def _connected(self) -> str:
        if not self._run_id:
            self._connection.connect()
            (info,) = self._send([("INFO", "server")])
            fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
            if not fields.get("run_id"):
                raise client.ConnectionError("INFO server has no run_id")
            self._run_id = fields["run_id"]
        return self._run_id

    def _disconnect(self) -> None:
        self._run_id = ""
        self._loaded.clear()
        self._connection.disconnect()

    def _run(self, runs: Sequence[Run]) -> list[Any]:
        commands = [("EVALSHA", script(decision).sha, *arguments) for decision, arguments in runs]
        if len(commands) == 1:
            return self._send(commands)
        replies = self._send([("MULTI",), *commands, ("EXEC",)])[-1]
        for reply in replies:
            _raise_if_error(reply)
        return list(replies)

    def _load(self, runs: Sequence[Run]) -> None:
        """Before the first use: the commands of a transaction are not undone because one of them is not known."""
        fresh = [decision for decision in dict(runs) if decision not in self._loaded]
        if fresh:
            self._send([("SCRIPT", "LOAD", script(decision).text) for decision in fresh])
            self._loaded.update(fresh)

    def _send(self, commands: Sequence[Sequence[str | int]]) -> list[Any]:
        """All replies, in order; the first error is raised after all have been read, so that the connection stays in step."""
        self._connection.send_packed_command(self._connection.pack_commands(commands), check_health=False)
        replies = [self._read() for _ in commands]
        for reply in replies:
            _raise_if_error(reply)
        return replies

    def _read(self) -> Any:
        try:
            return self._connection.read_response()
        except ResponseError as error:
            return error


def _raise_if_error(reply: Any) -> None:
    if isinstance(reply, ResponseError) and "LAXITY" in str(reply):
        raise ScriptRefused(str(reply))
    if isinstance(reply, Exception):
        raise reply
