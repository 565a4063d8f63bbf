"""`laxity tasks ls|show`: where tasks are and how they got there, from the events."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laxity.infra.cli.inspecting import Session, SinceOption, one_of, session
from laxity.infra.cli.output import CommandError, ExitCode, note, print_json, print_table, shown
from laxity.infra.cli.stack import DataDirOption, JsonOption

if TYPE_CHECKING:
    from laxity.infra.inspect.letters import Letter
    from laxity.infra.inspect.tasks import Story
    from laxity.schemas.records import TaskEvent

app = typer.Typer()
tasks = typer.Typer(help="Tasks: where they are, why, and their story.", no_args_is_help=True)
app.add_typer(tasks, name="tasks")

ID_CHARS = 12  # of 32 hexadecimal digits: no two among millions
_LS_EXAMPLES = "Examples: laxity tasks ls · laxity tasks ls --state dead --since 2h · laxity tasks ls --tenant acme --tier high --json"
_SHOW_EXAMPLES = (
    "Example: laxity tasks show 3f9a1c (the beginning of an id is enough if only one task has it)"
)


@tasks.command("ls", epilog=_LS_EXAMPLES)
def list_tasks(
    *,
    state: Annotated[
        list[str] | None, typer.Option(help="Repeatable: ready, running, dead, rejected, conflict …")
    ] = None,
    tier: Annotated[str, typer.Option(help="critical, high, normal, low or background.")] = "",
    tenant: Annotated[str, typer.Option(help="Only of this tenant.")] = "",
    type_: Annotated[str, typer.Option("--type", help="Only of this type.")] = "",
    since: SinceOption = "1d",
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 50,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """List the tasks that something happened to, newest first, each with its last state and the reason for it."""
    from laxity.schemas.topics import TIERS  # noqa: PLC0415

    states = {one_of(text, _states(), "--state") for text in state or ()}
    tiers = [one_of(tier, TIERS, "--tier")] if tier else TIERS
    with session(data_dir) as opened:
        from laxity.infra.inspect.tasks import Latest, state_of  # noqa: PLC0415

        latest = Latest()
        for event in opened.look.events([f"events.{name}" for name in tiers], opened.since_ms(since)):
            latest.add(event)
        found = [
            event
            for event in latest.newest_first()
            if (not states or state_of(event) in states)
            and tenant in {"", event.tenant}
            and type_ in {"", event.type}
        ]
        now_ms = opened.clock.now_ms()
    rows = [_row(event, latest.repeats[event.task_id]) for event in found[:limit]]
    if json:
        print_json({"tasks": rows, "found": len(found)})
        return
    headers = ("task", "state", "for", "reason", "tier", "type", "tenant", "attempts", "deadline")
    print_table(headers, [_cells(event, now_ms) for event in found[:limit]])
    note(f"{min(limit, len(found))} of {len(found)} tasks with an event in --since {since}")


def _states() -> tuple[str, ...]:
    from laxity.streams.lifecycle import State  # noqa: PLC0415

    return (*(state.value for state in State if state), "REJECTED", "CONFLICT")


def _row(event: TaskEvent, repeats: int) -> dict[str, Any]:
    from laxity.infra.inspect.tasks import reason_of, state_of  # noqa: PLC0415

    names = ("task_id", "tenant", "type", "tier", "run_id", "key", "shard", "at_ms", "accepted_ms")
    more = ("deadline_ms", "firm", "missed_by_ms", "generation", "attempt", "runner", "code", "message")
    return {
        "state": state_of(event),
        "reason": reason_of(event),
        "duplicates": repeats,
        **{name: getattr(event, name) for name in (*names, *more)},
    }


def _cells(event: TaskEvent, now_ms: int) -> list[str]:
    from laxity.infra.inspect.tasks import reason_of, state_of  # noqa: PLC0415
    from laxity.infra.inspect.text import duration, plain  # noqa: PLC0415

    return [
        plain(event.task_id[:ID_CHARS]),
        state_of(event),
        duration(now_ms - event.at_ms),
        plain(reason_of(event)),
        plain(event.tier),
        plain(event.type, 40),
        plain(event.tenant, 40),
        str(event.attempt),
        deadline_text(event, now_ms),
    ]


def deadline_text(event: TaskEvent, now_ms: int) -> str:
    """Met or missed for an ended task, what is left or overdue for a living one."""
    from laxity.infra.inspect.text import duration  # noqa: PLC0415
    from laxity.streams.lifecycle import TERMINAL  # noqa: PLC0415

    if not event.deadline_ms or event.kind != "transitions":
        return "-"
    firm = " (firm)" if event.firm else ""
    if event.state in TERMINAL:
        if event.missed_by_ms:
            return f"missed by {duration(event.missed_by_ms)}{firm}"
        return f"{'met' if event.state == 'SUCCEEDED' else 'not reached'}{firm}"
    left_ms = event.deadline_ms - now_ms
    return f"in {duration(left_ms)}{firm}" if left_ms >= 0 else f"overdue {duration(-left_ms)}{firm}"


@tasks.command("show", epilog=_SHOW_EXAMPLES)
def show_task(
    task: Annotated[str, typer.Argument(help="Task id, or its beginning.")],
    *,
    since: SinceOption = "all",
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Tell a task's story: every transition with its reason and how long it lasted, attempts, failure, cost, and its dead letter."""
    with session(data_dir) as opened:
        story = _story(opened, task, opened.since_ms(since))
        letters = _letters(opened, story)
        now_ms = opened.clock.now_ms()
    if json:
        places = [{"letter": letter.reference, "reason": letter.reason} for letter in letters]
        print_json({**story.document(), "dead_letters": places})
    else:
        sys.stdout.write("\n".join(story_lines(story, letters, now_ms)) + "\n")


def _story(opened: Session, task: str, since_ms: int) -> Story:
    from laxity.infra.inspect.tasks import story  # noqa: PLC0415

    if not task.strip():
        raise CommandError("the task id is empty", code=ExitCode.USAGE)
    task_id, events = opened.look.events_of(task, since_ms)
    return story(task_id, events, opened.clock.now_ms())


def _letters(opened: Session, story: Story) -> list[Letter]:
    """Looked for only where one must be."""
    died = [step.at_ms for step in story.steps if step.after == "DEAD"]
    died += [remark.at_ms for remark in story.remarks if remark.kind in {"rejected", "conflict"}]
    if not died:
        return []
    return opened.look.letters_of(story.task_id, [f"dlq.{story.last.tier}"], min(died))


def story_lines(story: Story, letters: list[Letter], now_ms: int) -> list[str]:
    """For people."""
    from laxity.infra.inspect.tasks import reason_of, state_of  # noqa: PLC0415
    from laxity.infra.inspect.text import duration, instant, plain, plain_bytes  # noqa: PLC0415

    last = story.last
    found = [
        f"task      {plain(story.task_id)}",
        f"state     {state_of(last)} ({plain(reason_of(last))})",
        f"type      {plain(last.type)}  tier {plain(last.tier)}  tenant {plain(last.tenant)}  shard {last.shard}",
        f"run       {plain(last.run_id)}  key {plain(last.key)}",
        f"accepted  {instant(last.accepted_ms)}",
        f"deadline  {instant(last.deadline_ms)}  {deadline_text(last, now_ms)}",
        f"attempts  {last.attempt}  generation {last.generation}  runner {plain(last.runner) or '-'}",
    ]
    if any(story.failure):
        found.append(f"failure   {plain(story.failure[0])}: {plain(story.failure[1])}")
    if story.usage or story.cost_micros:
        used = ", ".join(f"{plain(unit)}={n}" for unit, n in sorted(story.usage.items()))
        found.append(f"cost      {story.cost_micros} millionths  {used}")
    if last.result is not None:
        found.append(f"result    {plain_bytes(last.result)}")
    found += [
        f"letter    {letter.reference}  {plain(letter.reason)}: {plain(letter.message)}" for letter in letters
    ]
    waits = ", ".join(f"{state} {duration(ms)}" for state, ms in story.waits_ms.items())
    found += [f"time in   {waits}" if waits else "time in   -", ""]
    for step in story.steps:
        stay = "" if step.for_ms is None else f"  for {duration(step.for_ms)}"
        runner = (
            f"  at {plain(step.runner)}" if step.runner and step.after in {"DISPATCHED", "RUNNING"} else ""
        )
        found.append(
            f"{instant(step.happened_ms)}  {step.before or 'NEW'} → {step.after}  {plain(step.reason)}{runner}{stay}"
        )
    found += [
        f"{instant(remark.at_ms)}  ({remark.kind}) {plain(remark.code)} {plain(remark.detail)}".rstrip()
        for remark in story.remarks
    ]
    return [shown(line) for line in found]
