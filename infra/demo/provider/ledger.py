"""The append-only file of calls: no answer before its line, no effect before its line is on the disk."""

from __future__ import annotations

import asyncio
import fcntl
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from laxity.infra.demo.provider.line import Kind, Line, decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class LedgerError(RuntimeError):
    """The ledger cannot be opened, read or written; the message names file, line or system error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    """A line on its way to the file and whoever waits for it."""

    line: Line
    done: asyncio.Future[None]


def read_ledger(path: Path) -> Iterator[Line]:
    """All whole lines; a last one without newline was never acknowledged and is left out.

    Raises `LedgerError` for any other damage.
    """
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, start=1):
                if text.endswith(b"\n"):
                    yield _decode(path, number, text)
    except OSError as error:
        raise LedgerError(f"ledger {path}: {error}") from error


def _decode(path: Path, number: int, text: bytes) -> Line:
    try:
        return decode(text)
    except ValueError as error:
        raise LedgerError(f"ledger {path}, line {number}: {error}") from error


class Ledger:
    """The open file, owned by one process. Lines that come at the same time share a write and an fsync.

    After a failed write nobody knows what the disk holds, so nothing is accepted any more: `on_failure` is
    called once and a new process reads the truth from the file.
    """

    def __init__(self, path: Path, descriptor: int, *, on_failure: Callable[[], None]) -> None:
        self._path = path
        self._descriptor = descriptor
        self._on_failure = on_failure
        self._waiting: list[_Waiting] = []
        self._flusher: asyncio.Task[None] | None = None
        self.error: LedgerError | None = None
        self.syncs = 0

    async def append(self, line: Line) -> None:
        """Returns when the line is in the file, an effect's when it is on the disk. Raises `LedgerError`."""
        if self.error is not None:
            raise self.error
        waiting = _Waiting(line=line, done=asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush())
        await waiting.done

    async def close(self) -> None:
        """Write what waits, then let go of the file; later lines are refused."""
        if self._flusher is not None:
            await self._flusher
        self.error = self.error or LedgerError(f"ledger {self._path}: closed")
        os.close(self._descriptor)

    async def _flush(self) -> None:
        """Write batches until nobody waits: while one is synced the next one gathers."""
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await asyncio.to_thread(self._write, [waiting.line for waiting in batch])
            except OSError as error:
                self._fail(batch, error)
                break
            for waiting in batch:
                if not waiting.done.done():
                    waiting.done.set_result(None)
        self._flusher = None

    def _fail(self, batch: list[_Waiting], cause: OSError) -> None:
        self.error = LedgerError(f"ledger {self._path}: cannot be written: {cause}")
        for waiting in (*batch, *self._waiting):
            if not waiting.done.done():
                waiting.done.set_exception(self.error)
        self._waiting = []
        self._on_failure()

    def _write(self, lines: list[Line]) -> None:
        rest = memoryview(b"".join(encode(line) for line in lines))
        while rest:  # a signal or a full disk can cut a write short
            rest = rest[os.write(self._descriptor, rest) :]
        if any(line.kind is Kind.EFFECT for line in lines):
            os.fsync(self._descriptor)
            self.syncs += 1


def open_ledger(path: Path, *, on_failure: Callable[[], None]) -> tuple[Ledger, list[Line]]:
    """The ledger and the lines it holds already; a torn last line is cut off, so that the next one starts clean.

    Raises `LedgerError` if the file is damaged, cannot be opened, or belongs to another process.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise LedgerError(f"ledger {path}: {error}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lines = list(read_ledger(path))
        _cut_torn_line(path, descriptor)
        _sync_folder(path.parent)
    except BlockingIOError as error:
        os.close(descriptor)
        raise LedgerError(f"ledger {path}: another provider is writing it") from error
    except OSError as error:
        os.close(descriptor)
        raise LedgerError(f"ledger {path}: {error}") from error
    except LedgerError:
        os.close(descriptor)
        raise
    return Ledger(path, descriptor, on_failure=on_failure), lines


def _cut_torn_line(path: Path, descriptor: int) -> None:
    """Also makes durable what an earlier life wrote and could not sync: from now on it counts."""
    os.ftruncate(descriptor, path.read_bytes().rfind(b"\n") + 1)
    os.fsync(descriptor)


def _sync_folder(folder: Path) -> None:
    """A new file's name is durable only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
