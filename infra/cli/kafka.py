"""`laxity kafka TOOL ARGS…`: a stock Kafka tool, pointed at the running stack."""

from typing import Annotated

import typer

from laxity.infra.cli.output import CommandError, ExitCode
from laxity.infra.cli.stack import DataDirOption, stack_settings

app = typer.Typer()


@app.command(
    context_settings={
        "ignore_unknown_options": True,
        "allow_extra_args": True,
        "allow_interspersed_args": False,
    }
)
def kafka(
    context: typer.Context,
    tool: Annotated[
        str, typer.Argument(help="For example topics, consumer-groups, console-consumer, get-offsets.")
    ],
    *,
    data_dir: DataDirOption = None,
) -> None:
    """Run a stock Kafka tool; the bootstrap server is filled in unless it is given."""
    from laxity.infra.local import endpoints  # noqa: PLC0415
    from laxity.infra.local.kafka_tools import BOOTSTRAP_FLAGS, OFFLINE, main_class, replace_by_tool  # noqa: PLC0415

    settings = stack_settings(data_dir)
    main_class(tool)
    found = endpoints(settings.data_dir)
    bootstrap = settings.kafka or (found.kafka if found else "")
    named = {argument.partition("=")[0] for argument in context.args} & (BOOTSTRAP_FLAGS | {"--help"})
    if not bootstrap and not named and tool not in OFFLINE:
        raise CommandError(
            "no Kafka to talk to",
            f"nothing runs in {settings.data_dir} and LAXITY_KAFKA is not set",
            "laxity up --detach",
            ExitCode.NOT_RUNNING,
        )
    replace_by_tool(settings, tool, context.args, bootstrap)
