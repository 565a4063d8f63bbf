"""`laxity scheduler`: one scheduler process."""

from pathlib import Path
from typing import Annotated

import typer

from laxity.infra.cli.connection import ConfigOption, connect, readable_errors
from laxity.infra.cli.output import CommandError
from laxity.infra.cli.stack import DataDirOption, stack_settings

app = typer.Typer()


@app.command()
def scheduler(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    state_dir: Annotated[
        Path | None, typer.Option("--state-dir", help="This process's own. [a free one under DATA_DIR/state]")
    ] = None,
    http_port: Annotated[
        int, typer.Option("--http-port", help="/livez, /readyz and /metrics; 0 takes a free port.")
    ] = 0,
    accept_skip: Annotated[
        list[str] | None,
        typer.Option("--accept-skip", help="TOPIC:PARTITION:OFFSET, as a refusal names it; may be repeated."),
    ] = None,
) -> None:
    """Run one scheduler process: it shares the shards with all others of the same Kafka."""
    from laxity.schemas.config import load  # noqa: PLC0415
    from laxity.streams.runtime.cluster import ClusterError  # noqa: PLC0415
    from laxity.streams.runtime.entry import scheduler as run  # noqa: PLC0415
    from laxity.streams.runtime.health import HealthError  # noqa: PLC0415
    from laxity.streams.runtime.settings import HostSettings  # noqa: PLC0415
    from laxity.streams.runtime.stores import StateDirectoryError  # noqa: PLC0415

    given = {"state_dir": state_dir, "accept_skip": tuple(accept_skip or ()) or None}
    with readable_errors():
        knobs = HostSettings(
            data_dir=stack_settings(data_dir).data_dir,
            http_port=http_port,
            **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
        )
        try:
            code = run(connect(data_dir), knobs, load(config))
        except (ClusterError, HealthError, StateDirectoryError) as error:
            raise CommandError(str(error)) from error
    raise SystemExit(code)
