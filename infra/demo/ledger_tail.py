"""Follows the provider's ledger from where it ended when the run began."""

from __future__ import annotations

from pathlib import Path

from laxity.infra.demo.provider.ledger import LedgerError
from laxity.infra.demo.provider.line import Line, decode


class LedgerTail:
    """Whole lines since it was made. A torn last line is read once it is whole; a restarted provider cuts only such a one."""

    def __init__(self, path: Path) -> None:
        """LedgerError if the file cannot be read; one that does not exist yet begins at 0."""
        self._path = path
        self.lines: list[Line] = []
        try:
            text = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise LedgerError(f"ledger {path}: {error}") from error
        self._offset = text.rfind(b"\n") + 1

    def read(self) -> list[Line]:
        """What is new; also added to `lines`. LedgerError for damage."""
        text = self._new_bytes()
        whole = text.rfind(b"\n") + 1
        found = [self._decode(part) for part in text[:whole].splitlines()]
        self._offset += whole
        self.lines += found
        return found

    def _new_bytes(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                return file.read()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise LedgerError(f"ledger {self._path}: {error}") from error

    def _decode(self, text: bytes) -> Line:
        try:
            return decode(text)
        except ValueError as error:
            raise LedgerError(f"ledger {self._path}, after byte {self._offset}: {error}") from error
