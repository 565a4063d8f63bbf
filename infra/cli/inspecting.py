"""What the commands that look into topics share: a lookup over the deployment's Kafka, times of the past, failures on one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laxity.infra.cli.connection import connect, readable_errors
from laxity.infra.cli.output import CommandError, ExitCode
from laxity.infra.cli.times import duration_ms, instant_ms

if TYPE_CHECKING:
    from laxity.infra.inspect.lookup import Lookup
    from laxity.schemas.kafka import KafkaClients
    from laxity.schemas.serde import Codec
    from laxity.schemas.settings import Settings

SinceOption = Annotated[
    str, typer.Option("--since", help="Only what is younger: 10m, 2h, 3d, an ISO instant with zone, or all.")
]

ERROR_CHARS_MAX = 1_000  # of an error's part: it may name what others wrote


class Session:
    """Settings, clients, codec and lookup of one command."""

    def __init__(self, data_dir: Path | None) -> None:
        from laxity.infra.inspect.decoding import Decoder, pinned_codec  # noqa: PLC0415
        from laxity.infra.inspect.lookup import Lookup  # noqa: PLC0415
        from laxity.infra.inspect.reading import Reader  # noqa: PLC0415
        from laxity.schemas.kafka import KafkaClients  # noqa: PLC0415
        from laxity.schemas.timing import SystemClock  # noqa: PLC0415

        self.clock = SystemClock()
        self.settings: Settings = connect(data_dir)
        self.clients: KafkaClients = KafkaClients(self.settings, role="cli")
        self.codec: Codec = pinned_codec(self.settings, self.clients, self.clock)
        self.names = self.settings.names
        reader = Reader(self.clients, self.clock)
        self.look: Lookup = Lookup(reader=reader, decoder=Decoder(self.codec, self.names), names=self.names)

    def since_ms(self, text: str) -> int:
        """The instant that `--since` means; 0: the beginning."""
        return since_ms(text, self.clock.now_ms())


def since_ms(text: str, now_ms: int) -> int:
    """`10m` is ten minutes ago, `all` is 0, an instant is itself. CommandError (usage) for anything else."""
    if text == "all":
        return 0
    ahead_ms = instant_ms(text, "--since", now_ms)
    is_duration = text.strip()[-1:] in "smhd"
    return max(0, now_ms - duration_ms(text, "--since")) if is_duration else ahead_ms


@contextmanager
def session(data_dir: Path | None) -> Iterator[Session]:
    """Opened and closed; what goes wrong with the world becomes a CommandError."""
    with readable_failures():
        opened = Session(data_dir)
        try:
            yield opened
        finally:
            opened.look.reader.close()


@contextmanager
def readable_failures() -> Iterator[None]:
    """As `readable_errors`, for the reading side too."""
    from laxity.infra.inspect.catalogue import UnknownTopicError  # noqa: PLC0415
    from laxity.infra.inspect.errors import InspectError  # noqa: PLC0415
    from laxity.infra.inspect.text import plain  # noqa: PLC0415

    try:
        with readable_errors():
            yield
    except InspectError as error:
        code = ExitCode.USAGE if isinstance(error, UnknownTopicError) else ExitCode.FAILED
        what, why = plain(error.what, ERROR_CHARS_MAX), plain(error.why, ERROR_CHARS_MAX)
        raise CommandError(what, why, error.next_step, code) from error


def one_of(text: str, known: Any, option: str) -> str:
    """`text` if it is known, whatever its case. CommandError (usage) names the choices."""
    for name in known:
        if text.lower() == str(name).lower():
            return str(name)
    raise CommandError(f"{option} {text!r} is none of {', '.join(map(str, known))}", code=ExitCode.USAGE)
