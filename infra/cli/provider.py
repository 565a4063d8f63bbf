"""`laxity provider`: the demonstration's stand-in for an LLM provider, as one process."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from laxity.infra.cli.output import CommandError, ExitCode
from laxity.infra.demo.generator import FAILURE_RATE
from laxity.infra.demo.provider.settings import (
    DRAIN_MS,
    ProviderSettings,
    ProviderSettingsError,
    parse_model,
)

if TYPE_CHECKING:
    from laxity.infra.demo.provider.server import RunningProvider
    from laxity.infra.demo.provider.settings import ModelLimit

app = typer.Typer()


@app.command()
def provider(
    *,
    ledger: Annotated[Path, typer.Option(help="File of calls, one JSON line each; kept across restarts.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 0,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME:RPM:TPM, a model and its limits per minute; may be repeated. [the rates of laxity.toml]"
        ),
    ] = None,
    speed: Annotated[float, typer.Option(help="Divides service times and multiplies limits.")] = 1.0,
    dedupe: Annotated[
        bool,
        typer.Option("--dedupe/--no-dedupe", help="Answer a known Idempotency-Key without a new effect."),
    ] = True,
    inject_429: Annotated[
        float, typer.Option("--inject-429", help="Share of calls refused on purpose, 0 to 1.")
    ] = 0.0,
    inject_500: Annotated[
        float, typer.Option("--inject-500", help="Share of calls that fail on purpose, 0 to 1.")
    ] = FAILURE_RATE,
    inject_lost: Annotated[
        float, typer.Option("--inject-lost", help="Share of calls answered 500 after their effect, 0 to 1.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Decides which calls fail on purpose.")] = 0,
    drain_ms: Annotated[
        int, typer.Option(help="How long calls may take to finish after SIGTERM.")
    ] = DRAIN_MS,
) -> None:
    """Serve OpenAI chat completions with limits, failures and a ledger of effects, until SIGTERM or Ctrl-C."""
    try:
        settings = ProviderSettings(
            ledger=ledger,
            models=tuple(parse_model(text) for text in model or ()) or _configured(),
            host=host,
            port=port,
            speed=speed,
            dedupe=dedupe,
            inject_429=inject_429,
            inject_500=inject_500,
            inject_lost=inject_lost,
            seed=seed,
            drain_ms=drain_ms,
        )
    except ProviderSettingsError as error:
        raise CommandError(str(error), code=ExitCode.USAGE) from error
    _serve(settings)


def _configured() -> "tuple[ModelLimit, ...]":
    """One model per rate of the configuration, so that the provider's limits are those of our resources."""
    from laxity.infra.demo.provider.settings import model_of  # noqa: PLC0415
    from laxity.schemas.config import ConfigError, Rate, load  # noqa: PLC0415  keeps --help quick

    try:
        config = load()
    except ConfigError as error:
        raise CommandError(str(error), code=ExitCode.USAGE) from error
    return tuple(model_of(rate) for rate in config.resources.values() if isinstance(rate, Rate))


def _serve(settings: ProviderSettings) -> None:
    from laxity.infra.demo.provider.ledger import LedgerError  # noqa: PLC0415  keeps --help quick
    from laxity.infra.demo.provider.server import serve_until_stopped  # noqa: PLC0415

    try:
        asyncio.run(serve_until_stopped(settings, on_ready=_announce))
    except LedgerError as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"cannot listen on {settings.host}:{settings.port}", str(error)) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(ExitCode.INTERRUPTED) from error


def _announce(running: "RunningProvider") -> None:
    typer.echo(f"provider listens on {running.url}, ledger {running.settings.ledger}")
