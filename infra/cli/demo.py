"""`laxity demo`: the whole pipeline on this machine, under a recorded or generated load, with a report."""

import asyncio
import json as json_module
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laxity.infra.cli.connection import readable_errors
from laxity.infra.cli.output import CommandError, ExitCode, note
from laxity.infra.cli.stack import DataDirOption, stack_settings
from laxity.infra.demo.generator import FAILURE_RATE

if TYPE_CHECKING:
    from laxity.infra.demo.load import Wish

app = typer.Typer()

SPEED_MIN, SPEED_MAX = 0.1, 1_000.0  # slower takes hours; faster than the clock's milliseconds can tell apart
LOAD_MIN, LOAD_MAX = 0.01, 10.0
TASKS_MAX = 1_000_000


@app.command()
def demo(
    *,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Recorded requests: CSV with TIMESTAMP, ContextTokens, GeneratedTokens. [generated]"
        ),
    ] = None,
    tasks: Annotated[
        int | None, typer.Option(min=1, max=TASKS_MAX, help="The first N rows. [90 s of arrivals]")
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option(
            min=SPEED_MIN,
            max=SPEED_MAX,
            help="Divides gaps, service times, deadlines and backoffs, multiplies limits. [2, or the running provider's]",
        ),
    ] = None,
    load: Annotated[
        float | None,
        typer.Option(min=LOAD_MIN, max=LOAD_MAX, help="Of the busiest resource. [at most 0.8]"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of tenants, tiers, deadlines, generated rows and failures.")] = 0,
    dedupe: Annotated[
        bool, typer.Option("--dedupe/--no-dedupe", help="Whether the provider knows a repeated call.")
    ] = True,
    inject_429: Annotated[
        float, typer.Option("--inject-429", min=0, max=1, help="Share of calls refused on purpose.")
    ] = 0.0,
    inject_500: Annotated[
        float, typer.Option("--inject-500", min=0, max=1, help="Share of calls that fail on purpose.")
    ] = FAILURE_RATE,
    json: Annotated[Path | None, typer.Option(help="File for all figures; - is stdout.")] = None,
    data_dir: DataDirOption = None,
) -> None:
    """Replay a load of LLM requests through the pipeline; report deadlines met and missed per tier.

    Uses the stack of the data directory; starts one sized for the load, and ends it, if none runs.
    Exit code 1 if anything was lost, done twice, or refused for want of room.

    Examples: laxity demo; laxity demo --tasks 50 --speed 20; laxity demo --trace requests.csv --load 1.3 --json report.json
    """
    _check_target(json)
    with _failures():
        from laxity.infra.demo.load import Wish  # noqa: PLC0415

        wish = Wish(
            trace=trace,
            tasks=tasks,
            speed=speed,
            load=load,
            seed=seed,
            dedupe=dedupe,
            inject_429=inject_429,
            inject_500=inject_500,
        )
        document = _run(wish, data_dir)
    _tell(document, json)


@contextmanager
def _failures() -> Iterator[None]:
    """What a run can fail of, as one line."""
    from confluent_kafka import KafkaException  # noqa: PLC0415

    from laxity.infra.demo.provider.ledger import LedgerError  # noqa: PLC0415
    from laxity.infra.demo.trace import TraceError  # noqa: PLC0415
    from laxity.infra.demo.watcher import WatchError  # noqa: PLC0415
    from laxity.producers.publisher import InvalidTrigger, PublishFailed  # noqa: PLC0415

    try:
        with readable_errors():
            yield
    except TraceError as error:
        raise CommandError(str(error), code=ExitCode.USAGE) from error
    except InvalidTrigger as error:
        raise CommandError(f"the configuration refuses the load: {error}", code=ExitCode.USAGE) from error
    except (LedgerError, WatchError, PublishFailed) as error:
        raise CommandError(str(error), "", "laxity status") from error
    except KafkaException as error:
        raise CommandError(f"Kafka: {error.args[0].str()}", "", "laxity status") from error


def _run(wish: "Wish", data_dir: Path | None) -> dict[str, Any]:
    from laxity.infra.demo.display import console_for, display_for  # noqa: PLC0415
    from laxity.infra.demo.ground import ground_for  # noqa: PLC0415
    from laxity.infra.demo.run import demonstrate  # noqa: PLC0415
    from laxity.schemas.timing import SystemClock  # noqa: PLC0415

    clock = SystemClock()
    signal.signal(signal.SIGTERM, _as_interrupt)
    with ground_for(wish, stack_settings(data_dir), note) as ground:
        run = f"{clock.now_ms():x}"  # one run at a time in a data directory
        note(
            f"run {run}: {len(ground.requests)} tasks at speed {ground.speed:g}, {ground.capacity.slots} slots"
        )
        with display_for(console_for(stderr=True), note) as display:
            return asyncio.run(demonstrate(ground, wish, run, display, clock))


def _as_interrupt(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM takes the way of Ctrl-C, which ends the stack, too."""
    signal.raise_signal(signal.SIGINT)


def _tell(document: dict[str, Any], target: Path | None) -> None:
    from laxity.infra.demo.display import console_for, tables_of  # noqa: PLC0415
    from laxity.infra.demo.report import faults  # noqa: PLC0415

    text = json_module.dumps(document, indent=2) + "\n"
    to_stdout = str(target) == "-"
    console = console_for(stderr=to_stdout)
    for table in tables_of(document, console.width):
        console.print(table)
    if to_stdout:
        sys.stdout.write(text)
    elif target is not None:
        target.write_text(text, encoding="utf-8")
    if found := faults(document):
        raise CommandError(f"run {document['run']}: {'; '.join(found)}")


def _check_target(target: Path | None) -> None:
    """Before the run, not after it."""
    if (
        target is not None
        and str(target) != "-"
        and (target.is_dir() or not target.absolute().parent.is_dir())
    ):
        raise CommandError(f"--json {target}", "not a file in an existing folder", code=ExitCode.USAGE)
