"""`laxity up`, `down`, `status`, `stop`, `start`: the local stack."""

import sys
from pathlib import Path
from signal import SIGINT
from typing import Annotated, Any

import typer

from laxity.infra.cli.output import CommandError, ExitCode, note, print_json, print_table

app = typer.Typer()

DataDirOption = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Where data, logs and ports are kept. [LAXITY_DATA_DIR, ./.laxity]"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def stack_settings(data_dir: Path | None) -> Any:
    """StackSettings of the environment, with the flag on top."""
    from pydantic import ValidationError  # noqa: PLC0415

    from laxity.infra.local.settings import StackSettings  # noqa: PLC0415

    try:
        settings = StackSettings()
    except ValidationError as error:
        first = error.errors()[0]
        name = f"LAXITY_{'_'.join(map(str, first['loc']))}".upper()
        raise CommandError(f"{name}: {first['msg']}", code=ExitCode.USAGE) from error
    return settings if data_dir is None else settings.model_copy(update={"data_dir": data_dir})


def _data(data_dir: Path | None) -> Any:
    from laxity.infra.local.data_dir import DataDir  # noqa: PLC0415

    return DataDir.at(stack_settings(data_dir).data_dir)


@app.command()
def up(
    *,
    data_dir: DataDirOption = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when everything is ready.")] = False,
    only: Annotated[str, typer.Option(help="Roles to start, for example kafka,registry,redis.")] = "",
    agents: Annotated[str, typer.Option(help="Module of the agents that the runners offer.")] = "",
    port: Annotated[list[str] | None, typer.Option(help="NAME=PORT; kept in the data directory.")] = None,
    provider_arg: Annotated[list[str] | None, typer.Option(hidden=True)] = None,
    json: JsonOption = False,
) -> None:
    """Start Kafka, registry, Redis, provider, schedulers and runners on this machine."""
    from laxity.infra.local.launch import running_roles, start_detached  # noqa: PLC0415
    from laxity.infra.local.plan import make_plan  # noqa: PLC0415
    from laxity.infra.local.ports import parse_choice  # noqa: PLC0415
    from laxity.infra.local.software import prepare  # noqa: PLC0415

    plan = make_plan(stack_settings(data_dir), only=only, agents=agents, provider_args=provider_arg or ())
    chosen = dict(parse_choice(text) for text in port or ())
    if detach:
        start_detached(plan, chosen_ports=chosen, report=note)
        status(data_dir=plan.data.root, json=json)
        return
    if json:
        raise CommandError("--json needs --detach", "", "laxity status --json", ExitCode.USAGE)
    if running_roles(plan.data) is not None:
        raise CommandError(f"a stack already runs in {plan.data.root}", "", "laxity status, or laxity down")
    from laxity.infra.local.supervisor import supervise  # noqa: PLC0415

    report = {"report": note, "on_ready": lambda _: note("ready; Ctrl-C ends it")}
    if supervise(plan, prepare(plan), chosen_ports=chosen, **report) is SIGINT:
        raise SystemExit(int(ExitCode.INTERRUPTED))


@app.command()
def down(data_dir: DataDirOption = None) -> None:
    """End the stack and whatever an earlier one left behind. The data stay."""
    from laxity.infra.local.launch import stop as stop_stack  # noqa: PLC0415

    data = _data(data_dir)
    note("stopped" if stop_stack(data) else f"nothing ran in {data.root}")


@app.command()
def status(
    *,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
    env: Annotated[
        bool,
        typer.Option(
            "--env", help="LAXITY_… lines with passwords for other programs: export $(laxity status --env)"
        ),
    ] = False,
) -> None:
    """Show what runs, where, and since when. Exit code 3 if nothing does."""
    from laxity.infra.local.status import describe  # noqa: PLC0415

    running, found = describe(_data(data_dir))
    if json:
        print_json(found)
    elif running and env:
        _print_environment(data_dir)
    elif running:
        _print_status(found)
    else:
        note(f"nothing runs in {found['data_dir']}. Try: laxity up --detach")
    if not running:
        raise SystemExit(int(ExitCode.NOT_RUNNING))


def _print_status(found: dict[str, Any]) -> None:
    rows = [
        (row["name"], row["state"], row["pid"], row["address"], row["restarts"], row["log"])
        for row in found["processes"]
    ]
    print_table(("name", "state", "pid", "address", "restarts", "log"), rows)


def _print_environment(data_dir: Path | None) -> None:
    """With passwords: this is the one output that is for programs to connect by."""
    from laxity.infra.local.endpoints import Endpoints, endpoints  # noqa: PLC0415

    found = endpoints(_data(data_dir).root) or Endpoints()
    sys.stdout.writelines(f"{name}={value}\n" for name, value in found.environment().items())


@app.command()
def stop(
    role: Annotated[str, typer.Argument(help="A role or the name of one process.")],
    data_dir: DataDirOption = None,
) -> None:
    """Stop one role (or process) of the running stack; it stays stopped until `start`."""
    from laxity.infra.local.control import ask  # noqa: PLC0415

    note(f"stopped {', '.join(ask(_data(data_dir), 'stop', role))}")


@app.command()
def start(
    role: Annotated[str, typer.Argument(help="A role or the name of one process.")],
    data_dir: DataDirOption = None,
) -> None:
    """Start a stopped role (or process) of the running stack; returns when it is ready."""
    from laxity.infra.local.control import ask  # noqa: PLC0415

    note(f"started {', '.join(ask(_data(data_dir), 'start', role))}")


@app.command()
def doctor(*, data_dir: DataDirOption = None, json: JsonOption = False) -> None:
    """Look for what could keep the stack from working. Exit code 1 if there is an error."""
    from dataclasses import asdict  # noqa: PLC0415

    from laxity.infra.local.doctor import examine  # noqa: PLC0415
    from laxity.infra.local.findings import Level  # noqa: PLC0415

    findings = examine(stack_settings(data_dir))
    healthy = all(finding.level is not Level.ERROR for finding in findings)
    if json:
        print_json({"healthy": healthy, "findings": [asdict(finding) for finding in findings]})
    else:
        rows = [(finding.level, finding.name, finding.detail, finding.remedy) for finding in findings]
        print_table(("", "what", "found", "try"), rows)
    if not healthy:
        raise SystemExit(int(ExitCode.FAILED))
