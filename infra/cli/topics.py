"""`laxity topics ls|plan|apply`: what the deployment's topics and subjects are, should be, and become."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from laxity.infra.cli.connection import ConfigOption, connect, readable_errors
from laxity.infra.cli.output import note, print_json, print_table
from laxity.infra.cli.stack import DataDirOption, JsonOption

app = typer.Typer()
topics = typer.Typer(help="Topics, schemas and their ids.", no_args_is_help=True)
app.add_typer(topics, name="topics")

ShardsOption = Annotated[
    int | None, typer.Option("--shards", help="Number of shards of a new deployment; fixed for life. [4]")
]


@topics.command("ls")
def list_topics(
    *, data_dir: DataDirOption = None, config: ConfigOption = None, json: JsonOption = False
) -> None:
    """Show the catalogue: every topic with its key, record, partitions and retention."""
    with readable_errors():
        from laxity.schemas.config import load  # noqa: PLC0415
        from laxity.schemas.topics import SHARDS_DEFAULT, Names, catalogue  # noqa: PLC0415

        fleets = {name: fleet.partitions for name, fleet in load(config).fleets.items()}
        shards, names = _shards(data_dir) or SHARDS_DEFAULT, _prefix(data_dir)
        rows = [_row(Names(names).full(topic.name), topic) for topic in catalogue(fleets, shards)]
    if json:
        print_json({"topics": rows})
    else:
        print_table([*rows[0]], [[*row.values()] for row in rows])


@topics.command("plan")
def show_plan(
    *,
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    shards: ShardsOption = None,
    json: JsonOption = False,
) -> None:
    """Show what `apply` would do. Changes nothing. Exit code 1 if something would be refused."""
    with readable_errors():
        from laxity.infra.provision import plan  # noqa: PLC0415
        from laxity.schemas.config import load  # noqa: PLC0415

        found = plan(connect(data_dir), load(config), shards)
    _show(found, json=json, verb="would change")
    if any(topic.action == "refuse" for topic in found.topics):
        raise typer.Exit(1)


@topics.command("apply")
def apply(
    *,
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    shards: ShardsOption = None,
    json: JsonOption = False,
) -> None:
    """Create and correct topics, register schemas, pin their ids. Does nothing the second time."""
    with readable_errors():
        from laxity.infra.provision import provision  # noqa: PLC0415
        from laxity.schemas.config import load  # noqa: PLC0415

        done = provision(connect(data_dir), load(config), shards)
    _show(done, json=json, verb="changed")


def _show(plan: Any, *, json: bool, verb: str) -> None:
    if json:
        print_json(plan.document())
        return
    rows = [[t.action, t.name, f"{t.partitions} partitions", "; ".join(t.detail)] for t in plan.topics]
    rows += [[s.action, s.subject, f"id {s.registry_id or '-'}", s.compatibility] for s in plan.subjects]
    changed = [row for row in rows if row[0] != "ok"]
    if changed:
        print_table(["action", "name", "is", "detail"], changed)
    note(f"{plan.shards} shards, {plan.replicas} replicas: {len(changed)} of {len(rows)} {verb}")


def _row(full: str, topic: Any) -> dict[str, Any]:
    days = None if topic.cleanup == "compact" else topic.retention_ms // 86_400_000
    return {
        "topic": full,
        "key": topic.key,
        "record": topic.record.__name__ if topic.record else None,
        "partitions": topic.partitions,
        "cleanup": topic.cleanup,
        "days": days,
        "compatibility": topic.compatibility if topic.record else None,
    }


def _shards(data_dir: Any) -> int | None:
    """Of the deployment, if its Kafka can be reached; the catalogue alone needs none."""
    from laxity.infra.cli.output import CommandError  # noqa: PLC0415
    from laxity.infra.provision import ProvisionError, shards_of  # noqa: PLC0415

    try:
        return shards_of(connect(data_dir))
    except (CommandError, ProvisionError):
        return None


def _prefix(data_dir: Any) -> str:
    from laxity.infra.cli.stack import stack_settings  # noqa: PLC0415

    prefix: str = stack_settings(data_dir).prefix
    return prefix
