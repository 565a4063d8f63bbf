"""`laxity cancel TASK` and `laxity redrive LETTER`: orders to the shard that has the task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from laxity.infra.cli.inspecting import Session, session
from laxity.infra.cli.output import CommandError, ExitCode, note, print_json
from laxity.infra.cli.stack import DataDirOption, JsonOption
from laxity.infra.cli.times import duration_ms

if TYPE_CHECKING:
    from laxity.infra.inspect.reading import Span
    from laxity.schemas.records import Command, TaskEvent

app = typer.Typer()

WaitOption = Annotated[
    str,
    typer.Option(
        help="Wait up to this long, such as 30s, for what comes of it. Exit code 1 if nothing does."
    ),
]
ReasonOption = Annotated[str, typer.Option(help="Why; it is kept with the order.")]


@app.command(
    epilog="Examples: laxity cancel 3f9a1c · laxity cancel 3f9a1c --reason 'customer withdrew' --wait 30s"
)
def cancel(
    task: Annotated[str, typer.Argument(help="Task id, or its beginning.")],
    *,
    reason: ReasonOption = "",
    wait: WaitOption = "",
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Order a task to stop. A waiting one ends at once, a running one at its next checkpoint or call."""
    from laxity.infra.inspect.tasks import state_of, story  # noqa: PLC0415
    from laxity.streams.lifecycle import TERMINAL  # noqa: PLC0415

    if not task.strip():
        raise CommandError("the task id is empty", code=ExitCode.USAGE)
    wait_ms = duration_ms(wait, "--wait") if wait else 0
    with session(data_dir) as opened:
        from laxity.infra.inspect import orders  # noqa: PLC0415

        task_id, events = opened.look.events_of(task)
        last = story(task_id, events, opened.clock.now_ms()).last
        if last.kind != "transitions" or last.state in TERMINAL:
            raise CommandError(
                f"task {task_id} cannot be cancelled",
                f"it is {state_of(last)}",
                f"laxity tasks show {task_id}",
            )
        command = orders.cancel(task_id, reason=reason, now_ms=opened.clock.now_ms())
        _carry_out(opened, command, last.shard, last.tier, wait_ms, json=json)


@app.command(epilog="Example: laxity redrive normal:0:17 --wait 10s")
def redrive(
    letter: Annotated[str, typer.Argument(help="TIER:PARTITION:OFFSET as `laxity dlq ls` names it.")],
    *,
    reason: ReasonOption = "",
    wait: WaitOption = "",
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Run a dead task again from its original bytes, as its next generation. The scheduler refuses what is not dead."""
    wait_ms = duration_ms(wait, "--wait") if wait else 0
    with session(data_dir) as opened:
        from laxity.infra.inspect import orders  # noqa: PLC0415
        from laxity.infra.inspect.letters import parse_reference  # noqa: PLC0415

        found = opened.look.letter(parse_reference(letter, opened.names.prefix))
        command = orders.redrive(found, reason=reason, now_ms=opened.clock.now_ms())
        tier = found.seen.topic.removeprefix("dlq.")
        _carry_out(opened, command, found.seen.partition, tier, wait_ms, json=json)


def _carry_out(opened: Session, command: Command, shard: int, tier: str, wait_ms: int, *, json: bool) -> None:
    from laxity.infra.inspect import orders  # noqa: PLC0415
    from laxity.infra.inspect.text import plain  # noqa: PLC0415

    ends = _ends(opened, tier)
    orders.send(opened.clients.producer(), opened.names, opened.codec, command, shard)
    reply = _reply(opened, ends, command, wait_ms) if wait_ms else None
    document: dict[str, Any] = {
        "command_id": command.command_id,
        "kind": command.kind,
        "task_id": command.task_id,
        "shard": shard,
        "reply": None
        if reply is None
        else {"kind": reply.kind, "state": reply.state, "detail": reply.detail},
    }
    if json:
        print_json(document)
    else:
        note(f"{command.kind} of task {command.task_id} sent to shard {shard}" + _told(reply))
    if wait_ms and (reply is None or reply.kind == "refused_command"):
        why = f"refused: {plain(reply.detail)}" if reply else f"nothing came of it within {wait_ms} ms"
        raise CommandError(
            f"{command.kind} of task {command.task_id}", why, f"laxity tasks show {command.task_id[:12]}"
        )


def _told(reply: TaskEvent | None) -> str:
    return f": {reply.state or reply.kind}" if reply else ""


def _ends(opened: Session, tier: str) -> list[Span]:
    """Where the events of this tier end now; refusals are told among the critical ones."""
    return opened.look.spans(dict.fromkeys((f"events.{tier}", "events.critical")))


def _reply(opened: Session, ends: list[Span], command: Command, wait_ms: int) -> TaskEvent | None:
    from dataclasses import replace  # noqa: PLC0415

    from laxity.schemas.records import TaskEvent  # noqa: PLC0415

    starts = [replace(span, start=span.end) for span in ends]
    for message in opened.look.reader.follow(starts, for_ms=wait_ms):
        event = opened.look.decoder.seen(message).value
        if isinstance(event, TaskEvent) and answers(event, command):
            return event
    return None


def answers(event: TaskEvent, command: Command) -> bool:
    """A refusal of it, the end of a cancelled task, or the new generation of a redriven one."""
    from laxity.streams.lifecycle import TERMINAL  # noqa: PLC0415

    if event.task_id != command.task_id:
        return False
    if event.kind == "refused_command":
        return event.code == command.kind
    if command.kind == "cancel":
        return event.kind == "transitions" and event.state in TERMINAL
    return event.kind == "transitions" and event.generation == command.generation
