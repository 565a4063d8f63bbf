"""`laxity agents MODULE`: one runner with the agents of a module, as one process."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from laxity.infra.cli.output import CommandError, ExitCode

app = typer.Typer()


@app.command()
def agents(
    where: Annotated[
        str, typer.Argument(metavar="MODULE[:ATTR]", help="Module with @agent functions, or one name in it.")
    ],
    *,
    fleet: Annotated[
        str | None, typer.Option(help="Which fleet to serve, if the agents belong to several.")
    ] = None,
    slots: Annotated[int | None, typer.Option(help="Attempts that run at the same time.")] = None,
    prefetch: Annotated[
        int | None,
        typer.Option(help="Dispatches that may wait here; by default as many as start within 50 ms."),
    ] = None,
    grace_ms: Annotated[
        int | None, typer.Option(help="How long running attempts may take to finish after SIGTERM.")
    ] = None,
    http_host: Annotated[str | None, typer.Option(help="Address of /livez, /readyz and /metrics.")] = None,
    http_port: Annotated[int | None, typer.Option(help="Their port; 0 takes a free one.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Configuration; default: LAXITY_CONFIG, ./laxity.toml, the packaged one."),
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Run the agents of a Python module until SIGTERM or Ctrl-C; running attempts may finish."""
    from laxity.consumers.logs import configure  # noqa: PLC0415  keeps --help quick

    if log_level not in {"debug", "info", "warning", "error"}:
        raise CommandError(f"--log-level {log_level!r}: debug, info, warning or error", code=ExitCode.USAGE)
    configure(log_level)
    given = {
        "fleet": fleet, "slots": slots, "prefetch": prefetch, "grace_ms": grace_ms, "http_host": http_host,
        "http_port": http_port,
    }  # fmt: skip
    with _errors():
        _run(where, {name: value for name, value in given.items() if value is not None}, config)


@contextmanager
def _errors() -> Iterator[None]:
    """What the user can put right is a usage error; what the world refuses is a failure; bugs keep their traceback."""
    from pydantic import ValidationError  # noqa: PLC0415

    from laxity.consumers.errors import AgentError, NotWritten  # noqa: PLC0415
    from laxity.consumers.runner import RunnerFailed  # noqa: PLC0415
    from laxity.schemas.config import ConfigError  # noqa: PLC0415
    from laxity.schemas.contracts import ContractError  # noqa: PLC0415
    from laxity.schemas.kafka_properties import PropertyRefused  # noqa: PLC0415
    from laxity.schemas.settings import SettingsError  # noqa: PLC0415

    try:
        yield
    except (ContractError, RunnerFailed, NotWritten) as error:
        raise CommandError(str(error)) from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors())
        raise CommandError(problems, code=ExitCode.USAGE) from error
    except (AgentError, ConfigError, SettingsError, PropertyRefused) as error:
        raise CommandError(str(error), code=ExitCode.USAGE) from error


def _run(where: str, given: dict[str, object], config_path: Path | None) -> None:
    from laxity.consumers.loading import check_against, load_agents, of_fleet  # noqa: PLC0415
    from laxity.consumers.process import run_process  # noqa: PLC0415
    from laxity.consumers.settings import RunnerSettings  # noqa: PLC0415
    from laxity.schemas.config import load  # noqa: PLC0415
    from laxity.schemas.settings import settings  # noqa: PLC0415

    sys.path.insert(0, os.getcwd())  # noqa: PTH109  as `python -m` does: the user's module lies here
    own = RunnerSettings(**given)  # type: ignore[arg-type]
    config = load(config_path)
    fleet, mine = of_fleet(load_agents(where), own.fleet)
    check_against(config, fleet, mine)
    run_process(fleet=fleet, agents=mine, config=config, where=settings(), own=own, announce=_announce)


def _announce(name: str, port: int) -> None:
    typer.echo(f"runner {name}, health on port {port}")
