"""`laxity dlq ls|show`: dead letters by reason, and one of them in full; `laxity redrive`: its task once more."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laxity.infra.cli.inspecting import Session, SinceOption, one_of, session
from laxity.infra.cli.output import CommandError, ExitCode, note, print_json, print_table
from laxity.infra.cli.stack import DataDirOption, JsonOption

if TYPE_CHECKING:
    from laxity.infra.inspect.letters import Group, Letter

app = typer.Typer()
dlq = typer.Typer(help="Dead letters: what could not be done, with the original bytes.", no_args_is_help=True)
app.add_typer(dlq, name="dlq")

_LS_EXAMPLES = "Examples: laxity dlq ls · laxity dlq ls --each --reason poison --since 1d · laxity dlq ls --tier critical --json"
_SHOW_EXAMPLES = "Examples: laxity dlq show normal:0:17 · laxity dlq show --task 3f9a1c · laxity dlq show internal:1:4 --raw letter.bin"


@dlq.command("ls", epilog=_LS_EXAMPLES)
def list_letters(
    *,
    tier: Annotated[str, typer.Option(help="A tier, or internal.")] = "",
    reason: Annotated[str, typer.Option(help="Only of this reason.")] = "",
    since: SinceOption = "all",
    each: Annotated[bool, typer.Option("--each", help="One line per letter instead of per reason.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="With --each: the newest so many.")] = 50,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Count dead letters by topic and reason, with the newest of each; --each lists them."""
    from laxity.infra.inspect.letters import grouped  # noqa: PLC0415
    from laxity.schemas.topics import TIERS  # noqa: PLC0415

    known = (*TIERS, "internal")
    topics = [f"dlq.{one_of(tier, known, '--tier')}"] if tier else [f"dlq.{name}" for name in known]
    with session(data_dir) as opened:
        letters = (
            letter
            for letter in opened.look.letters(topics, opened.since_ms(since))
            if reason in {"", letter.reason}
        )
        if each:
            _print_each(sorted(letters, key=lambda letter: -letter.seen.timestamp_ms), limit, json=json)
        else:
            _print_groups(grouped(letters), json=json)


def _print_groups(groups: list[Group], *, json: bool) -> None:
    from laxity.infra.inspect.text import instant, plain  # noqa: PLC0415

    total = sum(group.count for group in groups)
    if json:
        print_json({"letters": total, "groups": [group.document() for group in groups]})
        return
    headers = ("topic", "reason", "count", "newest", "letter", "message")
    rows = [
        (g.topic, plain(g.reason), g.count, instant(g.newest_ms), g.newest, plain(g.message, 60))
        for g in groups
    ]
    print_table(headers, rows)
    note(f"{total} dead letters; laxity dlq show LETTER")


def _print_each(letters: list[Letter], limit: int, *, json: bool) -> None:
    from laxity.infra.inspect.letters import task_of  # noqa: PLC0415
    from laxity.infra.inspect.text import instant, plain  # noqa: PLC0415

    chosen = letters[:limit]
    if json:
        print_json({"letters": [letter.document() for letter in chosen], "found": len(letters)})
        return
    rows = [
        (
            letter.reference,
            instant(letter.seen.timestamp_ms),
            plain(letter.reason),
            (task_of(letter) or ("-",))[0][:12],
            letter.attempts,
            plain(letter.message, 60),
        )
        for letter in chosen
    ]
    print_table(("letter", "when", "reason", "task", "attempts", "message"), rows)
    note(f"{len(chosen)} of {len(letters)} dead letters; laxity dlq show LETTER")


@dlq.command("show", epilog=_SHOW_EXAMPLES)
def show_letter(
    letter: Annotated[
        str, typer.Argument(help="TIER:PARTITION:OFFSET as `dlq ls` names it; the tier may be left out.")
    ] = "",
    *,
    task: Annotated[str, typer.Option(help="The newest letter of this task (the beginning of its id).")] = "",
    raw: Annotated[str, typer.Option(help="Write the original bytes to this file; - is stdout.")] = "",
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Show one dead letter: why, where it came from, its attempts, its own headers, its value decoded or as bytes."""
    with session(data_dir) as opened:
        found = _one_letter(opened, letter, task)
    if raw:
        _export(found, raw)
    elif json:
        print_json(found.document())
    else:
        sys.stdout.write("\n".join(letter_lines(found)) + "\n")


def _one_letter(opened: Session, letter: str, task: str) -> Letter:
    from laxity.infra.inspect.letters import parse_reference  # noqa: PLC0415

    if bool(letter) == bool(task):
        raise CommandError("one of LETTER and --task is needed", code=ExitCode.USAGE)
    if letter:
        return opened.look.letter(parse_reference(letter, opened.names.prefix))
    task_id, _ = opened.look.events_of(task)
    found = opened.look.letters_of(task_id)
    if not found:
        raise CommandError(f"task {task_id} has no dead letter", "", f"laxity tasks show {task_id[:12]}")
    return max(found, key=lambda one: one.seen.timestamp_ms)


def _export(letter: Letter, target: str) -> None:
    data = letter.seen.raw
    if data is None:
        raise CommandError(f"letter {letter.reference} has no value: it was a tombstone")
    if target == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    try:
        Path(target).write_bytes(data)
    except OSError as error:
        raise CommandError(f"cannot write {target}", str(error)) from error
    note(f"{len(data)} bytes of letter {letter.reference} in {target}")


def letter_lines(letter: Letter) -> list[str]:
    """For people."""
    from laxity.infra.cli.tail import field_lines  # noqa: PLC0415
    from laxity.infra.inspect.letters import task_of  # noqa: PLC0415
    from laxity.infra.inspect.text import instant, plain, plain_bytes  # noqa: PLC0415

    whose = task_of(letter)
    origin = f"{plain(letter.origin)}:{letter.origin_partition}:{letter.origin_offset}"
    found = [
        f"letter    {letter.reference}  of {instant(letter.seen.timestamp_ms)}",
        f"reason    {plain(letter.reason)}: {plain(letter.message, 1_024)}",
        f"origin    {origin}  of {instant(letter.origin_timestamp_ms)}",
        f"task      {plain(whose[0]) if whose else '-'}",
        f"attempts  {letter.attempts}  generation {letter.generation}",
        f"key       {plain_bytes(letter.seen.key)}",
        *(f"header    {plain(name)}: {plain_bytes(value)}" for name, value in letter.headers),
        *(f"attempt   {_note(entry)}" for entry in letter.history),
    ]
    if letter.seen.value is not None:
        return [*found, f"value     {letter.seen.kind}", *field_lines(letter.seen.value, "          ")]
    if letter.seen.kind:
        found.append(f"value     not decodable as {letter.seen.kind}: {plain(letter.seen.problem)}")
    size = len(letter.seen.raw or b"")
    return [*found, f"bytes     {size}: {plain_bytes(letter.seen.raw, 1_024)}"]


def _note(entry: Any) -> str:
    from laxity.infra.inspect.text import instant, plain  # noqa: PLC0415

    if not isinstance(entry, dict) or not isinstance(entry.get("ended_ms"), int):
        return plain(str(entry))
    words = [str(entry.get(name, "")) for name in ("attempt", "runner", "code", "message")]
    return (
        f"{plain(words[0])}  ended {instant(entry['ended_ms'])}  {'  '.join(map(plain, words[1:]))}".rstrip()
    )
