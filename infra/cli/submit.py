"""`laxity submit TYPE`: publish one trigger from the command line, and wait for its end if asked."""

from __future__ import annotations

import json as json_module
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from laxity.infra.cli.connection import ConfigOption, connect
from laxity.infra.cli.inspecting import readable_failures
from laxity.infra.cli.output import CommandError, ExitCode, print_json
from laxity.infra.cli.stack import DataDirOption, JsonOption
from laxity.infra.cli.times import duration_ms, instant_ms

app = typer.Typer()

JSON_TYPE = "application/json"


@app.command()
def submit(
    type_: Annotated[str, typer.Argument(metavar="TYPE", help="Task type, as agents declare it.")],
    *,
    tier: Annotated[str, typer.Option(help="critical, high, normal, low or background.")] = "normal",
    deadline: Annotated[
        str, typer.Option(help="30s, 5m … from now, or an ISO instant. [the tier's, soft]")
    ] = "",
    firm: Annotated[
        bool, typer.Option("--firm", help="Late is worthless: expire rather than start too late.")
    ] = False,
    tenant: Annotated[str, typer.Option(help="Who pays.")] = "default",
    key: Annotated[str, typer.Option(help="Idempotency key; the same key runs once.")] = "",
    run: Annotated[str, typer.Option(help="Workflow run. [derived from tenant and key]")] = "",
    demand: Annotated[
        list[str] | None, typer.Option(help="RESOURCE=N, repeatable; keyed slots: RESOURCE:KEY=1.")
    ] = None,
    payload: Annotated[str, typer.Option(help="JSON text, @FILE, or - for stdin.")] = "",
    content_type: Annotated[str, typer.Option(help="Anything but JSON passes as it is.")] = JSON_TYPE,
    estimate: Annotated[str, typer.Option(help="Expected execution time, such as 20s. [unknown]")] = "",
    not_before: Annotated[str, typer.Option(help="Release time: 5m from now, or an ISO instant.")] = "",
    header: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for the agent, repeatable.")] = None,
    depends_on: Annotated[
        list[str] | None, typer.Option(help="Key of the same run, or run:RUN_ID:KEY; repeatable.")
    ] = None,
    on_unknown: Annotated[str, typer.Option(help="retry, reconcile or park. [the type's]")] = "",
    max_attempts: Annotated[int, typer.Option(help="0: the type's.")] = 0,
    workflow: Annotated[str, typer.Option(help="Name for grouping.")] = "",
    wait: Annotated[
        str, typer.Option(help="Wait up to this long for the task's end. Exit code 1 unless it succeeds.")
    ] = "",
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Publish one trigger; print its task id once Kafka has it."""
    with readable_failures():
        from laxity.schemas.timing import SystemClock  # noqa: PLC0415

        now_ms = SystemClock().now_ms()
        fields: dict[str, Any] = {
            "tenant": tenant,
            "run_id": run,
            "key": key,
            "content_type": content_type,
            "deadline_ms": instant_ms(deadline, "--deadline", now_ms) if deadline else 0,
            "firm": firm,
            "not_before_ms": instant_ms(not_before, "--not-before", now_ms) if not_before else 0,
            "estimate_ms": duration_ms(estimate, "--estimate") if estimate else 0,
            "demands": {name: _amount(name, text) for name, text in _pairs(demand, "--demand").items()},
            "headers": _pairs(header, "--header"),
            "depends_on": tuple(depends_on or ()),
            "on_unknown": on_unknown,
            "max_attempts": max_attempts,
            "workflow": workflow,
        }
        body = _payload(payload, content_type)
        wait_ms = duration_ms(wait, "--wait") if wait else 0
        document = _publish(
            connect(data_dir), config, type_=type_, body=body, fields=fields, tier=tier, wait_ms=wait_ms
        )
    _show(document, json=json)


def _publish(
    settings: Any,
    config: Path | None,
    *,
    type_: str,
    body: object,
    fields: dict[str, Any],
    tier: str,
    wait_ms: int,
) -> dict[str, Any]:
    from laxity.infra.cli.task_end import TaskEnds  # noqa: PLC0415
    from laxity.producers.publisher import InvalidTrigger, Publisher, PublishFailed, trigger_of  # noqa: PLC0415
    from laxity.schemas.config import load  # noqa: PLC0415

    try:
        with Publisher.connect(settings, load(config)) as publisher:
            trigger = trigger_of(type_, body, **fields)
            publisher.prepare(trigger, tier)
            ends = TaskEnds(settings) if wait_ms else None
            published = publisher.publish(trigger, tier)
    except InvalidTrigger as error:
        raise CommandError(f"not published: {error}", code=ExitCode.USAGE) from error
    except PublishFailed as error:
        raise CommandError(f"not published: {error}") from error
    document = asdict(published)
    return document | ends.wait(published.task_id, wait_ms) if ends else document


def _show(document: dict[str, Any], *, json: bool) -> None:
    if json:
        print_json(document)
    else:
        sys.stdout.write(
            document["task_id"] + (f" {document['state']}" if "state" in document else "") + "\n"
        )
    if document.get("state", "SUCCEEDED") != "SUCCEEDED":
        detail = document.get("message") or document.get("detail") or ""
        raise CommandError(f"task {document['task_id']} ended {document['state']}", detail)


def _payload(text: str, content_type: str) -> object:
    """Bytes, or for JSON the parsed value, which is then published in canonical form."""
    if not text:
        return b""
    try:
        raw = (
            sys.stdin.buffer.read()
            if text == "-"
            else Path(text[1:]).read_bytes()
            if text[0] == "@"
            else text.encode()
        )
    except OSError as error:
        raise CommandError(f"--payload {text}: {error.strerror}", code=ExitCode.USAGE) from error
    if content_type != JSON_TYPE:
        return raw
    try:
        return json_module.loads(raw)
    except ValueError as error:
        hint = "quote it for the shell, or give --content-type"
        raise CommandError("--payload is not JSON", f"{error}; {hint}", code=ExitCode.USAGE) from error


def _pairs(items: list[str] | None, option: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in items or ():
        name, equals, value = item.rpartition("=") if option == "--demand" else item.partition("=")
        if not equals or not name:
            raise CommandError(f"{option} {item!r}: write NAME=VALUE", code=ExitCode.USAGE)
        if name in found:
            raise CommandError(f"{option} {name} is given twice", code=ExitCode.USAGE)
        found[name] = value
    return found


def _amount(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise CommandError(f"--demand {name}={text}: not a whole number", code=ExitCode.USAGE) from None
