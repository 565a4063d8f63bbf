"""`laxity tail TOPIC`: records of any topic, decoded, with their headers."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laxity.infra.cli.inspecting import Session, session
from laxity.infra.cli.output import CommandError, ExitCode
from laxity.infra.cli.stack import DataDirOption

if TYPE_CHECKING:
    from laxity.infra.inspect.decoding import Seen
    from laxity.infra.inspect.reading import Message, Span

app = typer.Typer()

LAST = 10  # records shown when nothing says where to begin
_PLACE = re.compile(r"([0-9]{1,9}):([0-9]{1,18})")
_EXAMPLES = """Examples: laxity tail events.normal · laxity tail triggers.high --since 10m · laxity tail state --partition 2 --from-beginning ·
laxity tail journal --offset 0:120 --limit 5 --json · laxity tail outcomes --follow"""


@app.command(epilog=_EXAMPLES)
def tail(
    topic: Annotated[str, typer.Argument(help="Name of the catalogue, with or without prefix.")],
    *,
    from_beginning: Annotated[bool, typer.Option("--from-beginning", help="All that is kept.")] = False,
    offset: Annotated[str, typer.Option(help="PARTITION:OFFSET to begin at.")] = "",
    since: Annotated[str, typer.Option(help="Begin at 10m, 2h … ago or at an ISO instant with zone.")] = "",
    partition: Annotated[int | None, typer.Option(min=0, help="Only this one.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many records; alone: the last so many. [10]")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what arrives; Ctrl-C ends.")
    ] = False,
    data_dir: DataDirOption = None,
    json: Annotated[
        bool, typer.Option("--json", help="JSON lines: one document per record, losslessly.")
    ] = False,
) -> None:
    """Show the last records of a topic, or those from an offset or a time on, up to its present end.

    Only committed records are shown. What cannot be decoded is shown as bytes with the reason; control characters are escaped.
    """
    if sum((from_beginning, bool(offset), bool(since))) > 1:
        raise CommandError(
            "--from-beginning, --offset and --since are one beginning too many", code=ExitCode.USAGE
        )
    with session(data_dir) as opened:
        spans = _spans(opened, topic, partition)
        start = None
        if offset:
            start = _at_offset(spans, offset)
        elif since:
            start = opened.look.reader.since(spans, opened.since_ms(since))
        elif from_beginning:
            start = spans
        for message in _messages(opened, spans, start, limit=limit, follow=follow):
            _show(opened.look.decoder.seen(message), json=json)


def _spans(opened: Session, topic: str, partition: int | None) -> list[Span]:
    from laxity.infra.inspect.catalogue import topic_of  # noqa: PLC0415

    name = topic_of(topic, opened.names).name
    spans = opened.look.spans([name])
    chosen = [span for span in spans if partition in {None, span.partition}]
    if not chosen:
        raise CommandError(
            f"--partition {partition}: {name} has partitions 0 to {len(spans) - 1}", code=ExitCode.USAGE
        )
    return chosen


def _at_offset(spans: list[Span], place: str) -> list[Span]:
    found = _PLACE.fullmatch(place)
    if found is None:
        raise CommandError(f"--offset {place!r}: write PARTITION:OFFSET", code=ExitCode.USAGE)
    number, at = int(found[1]), int(found[2])
    for span in spans:
        if span.partition == number:
            if not span.start <= at <= span.end:
                raise CommandError(
                    f"--offset {place}: the partition holds {span.start} to {span.end - 1}",
                    code=ExitCode.USAGE,
                )
            return [replace(span, start=at)]
    raise CommandError(f"--offset {place}: there is no partition {number} here", code=ExitCode.USAGE)


def _messages(
    opened: Session, spans: list[Span], start: list[Span] | None, *, limit: int | None, follow: bool
) -> Iterator[Message]:
    """Without a beginning the last ones, however many follow; else `limit` counts all."""
    reader = opened.look.reader
    if start is None:
        yield from reader.last(spans, limit or LAST)
        if follow:
            yield from reader.follow([replace(span, start=span.end) for span in spans])
        return
    found: Iterable[Message] = reader.follow(start) if follow else reader.read(start)
    yield from islice(found, limit)


def _show(seen: Seen, *, json: bool) -> None:
    from laxity.infra.inspect.text import json_line  # noqa: PLC0415

    text = json_line(seen.document()) if json else "\n".join(lines(seen))
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def lines(seen: Seen) -> list[str]:
    """A record for people: where and what, its headers, its fields without those that are empty."""
    from laxity.infra.inspect.decoding import json_key  # noqa: PLC0415
    from laxity.infra.inspect.text import instant, plain, plain_bytes  # noqa: PLC0415

    place = f"{seen.topic}:{seen.partition}:{seen.offset}"
    key = json_key(seen)
    shown = f"{key['table']} {key.get('text', '')}" if isinstance(key, dict) and "table" in key else None
    what = seen.kind or seen.problem
    key_text = plain(shown) if shown is not None else plain_bytes(seen.key)
    found = [f"{instant(seen.timestamp_ms)}  {place}  {what}  key {key_text}"]
    found += [f"    {plain(name)}: {plain_bytes(value)}" for name, value in seen.headers]
    if seen.value is not None:
        found += field_lines(seen.value)
    elif seen.raw is not None:
        if seen.kind:
            found.append(f"  not decodable: {plain(seen.problem)}")
        found.append(f"  bytes {plain_bytes(seen.raw)}")
    return found


def field_lines(value: Any, indent: str = "  ") -> list[str]:
    """One line per field that says something; records inside records are indented, lists of them numbered."""
    from laxity.infra.inspect.text import plain  # noqa: PLC0415

    found: list[str] = []
    for field in fields(value):
        content = getattr(value, field.name)
        if _says_nothing(content):
            continue
        if is_dataclass(content):
            found += [f"{indent}{field.name}", *field_lines(content, indent + "  ")]
        elif isinstance(content, (list, tuple)) and is_dataclass(content[0]):
            for number, item in enumerate(content):
                found += [f"{indent}{field.name} {number}", *field_lines(item, indent + "  ")]
        else:
            found.append(f"{indent}{field.name} {plain(_scalar(field.name, content))}")
    return found


def _says_nothing(content: Any) -> bool:
    return not is_dataclass(content) and (content is None or content == -1 or not content)


def _scalar(name: str, content: Any) -> str:
    from laxity.infra.inspect.text import instant  # noqa: PLC0415

    if isinstance(content, bytes):
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            return f"0x{content.hex()}"
    if isinstance(content, dict):
        return ", ".join(f"{key}={item}" for key, item in content.items())
    if isinstance(content, (list, tuple)):
        return ", ".join(map(str, content))
    if name.endswith("_ms") and isinstance(content, int) and content > _INSTANTS_FROM_MS:
        return f"{content} ({instant(content)})"
    return str(content)


_INSTANTS_FROM_MS = 1_000_000_000_000  # 2001; smaller ones are durations
