"""The command line. Every module of this folder that has an `app` adds its commands: nothing to register.

Modules keep heavy imports (Kafka client, logging) inside their functions, so that `--help` is quick.
"""

from importlib import import_module
from pkgutil import iter_modules

import typer


def build() -> typer.Typer:
    """The root command with the commands of all modules beside this one."""
    root = typer.Typer(
        name="laxity",
        help="Deadline scheduling for AI-agent work on Kafka.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for module_info in iter_modules(__path__):
        if module_info.name == "__main__":
            continue
        app = getattr(import_module(f"{__name__}.{module_info.name}"), "app", None)
        if isinstance(app, typer.Typer):
            root.add_typer(app)
    return root


def main() -> None:
    """Entry point of the `laxity` script."""
    from laxity.infra.cli.output import errors_on_one_line  # noqa: PLC0415

    with errors_on_one_line():
        build()(prog_name="laxity")
