"""The command line. Every module of this folder with a line `app = typer.Typer(…)` adds its commands.

Modules keep heavy imports (Kafka client, logging) inside their functions, so that `--help` is quick.
"""

from importlib import import_module
from importlib.resources import files
from pkgutil import iter_modules

import typer

COMMANDS_LINE = "\napp = typer.Typer("


def command_modules() -> list[str]:
    """Names of the modules beside this one that make an `app`; the others are not even imported."""
    folder = files(__name__)
    sources = ((info.name, folder.joinpath(f"{info.name}.py")) for info in iter_modules(__path__))
    return [name for name, source in sources if COMMANDS_LINE in source.read_text("utf-8")]


def build() -> typer.Typer:
    """The root command with the commands of all modules beside this one."""
    root = typer.Typer(
        name="laxity",
        help="Deadline scheduling for AI-agent work on Kafka.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for name in command_modules():
        root.add_typer(import_module(f"{__name__}.{name}").app)
    return root


def main() -> None:
    """Entry point of the `laxity` script."""
    from laxity.infra.cli.output import errors_on_one_line, mask  # noqa: PLC0415
    from laxity.schemas.masking import guard_tracebacks  # noqa: PLC0415

    guard_tracebacks(mask())
    with errors_on_one_line():
        try:
            build()(prog_name="laxity")
        finally:
            guard_tracebacks(mask())  # typer has put a hook of its own in its place
