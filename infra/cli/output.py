"""What all commands share: exit codes, one-line errors, one JSON document, tables."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, NoReturn

from laxity.schemas.masking import Mask, mask_of


class ExitCode(IntEnum):
    """Of every command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3
    INTERRUPTED = 130


class CommandError(Exception):
    """Ends a command with one line on stderr: what, why, what to type next. No traceback."""

    def __init__(
        self, what: str, why: str = "", next_step: str = "", code: ExitCode = ExitCode.FAILED
    ) -> None:
        super().__init__(what, why, next_step)
        self.what = what
        self.why = why
        self.next_step = next_step
        self.code = code

    def line(self) -> str:
        """For example: port 9092 for kafka is taken (another program listens there). Try: laxity up."""
        text = f"{self.what} ({self.why})" if self.why else self.what
        text = f"{text}. Try: {self.next_step}" if self.next_step else text
        return shown(" ".join(text.split()))


def mask() -> Mask:
    """Of this command's own secrets: whatever it prints goes through it."""
    return mask_of(os.environ)


def shown(text: str) -> str:
    """Nothing that drives a terminal, wherever the text is from: what cannot be printed stands as its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_json(document: Any) -> None:
    """The one document of `--json`, on stdout."""
    sys.stdout.write(
        mask()(json.dumps(document, indent=2)) + "\n"
    )  # ASCII: no foreign text may drive a terminal


def note(text: str) -> None:
    """A line for people, on stderr, so that stdout stays what the command is for."""
    sys.stderr.write(shown(mask()(text)) + "\n")


def print_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns as wide as their longest cell, on stdout; plain text, so that it can be piped."""
    cells = [
        tuple(headers),
        *(tuple("-" if cell is None else shown(str(cell)) for cell in row) for row in rows),
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    hide = mask()
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(hide(line.rstrip()) + "\n")


def fail(error: CommandError) -> NoReturn:
    """Print the error's line and leave with its code."""
    note(f"laxity: {error.line()}")
    raise SystemExit(int(error.code))


@contextmanager
def errors_on_one_line() -> Iterator[None]:
    """Around a command: the world's failures become one line and an exit code; bugs keep their traceback."""
    from laxity.infra.local.errors import ConfigurationError, NotRunningError, StackError  # noqa: PLC0415

    codes: list[tuple[type[StackError], ExitCode]] = [
        (NotRunningError, ExitCode.NOT_RUNNING),
        (ConfigurationError, ExitCode.USAGE),
    ]
    try:
        yield
    except CommandError as error:
        fail(error)
    except StackError as error:
        code = next((code for kind, code in codes if isinstance(error, kind)), ExitCode.FAILED)
        fail(CommandError(error.what, error.why, error.next_step, code))
    except KeyboardInterrupt:
        raise SystemExit(int(ExitCode.INTERRUPTED)) from None
