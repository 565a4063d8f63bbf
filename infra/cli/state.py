"""`laxity state hash|replay`: whether copies of a shard are equal, and whether its decisions come out the same again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laxity.infra.cli.inspecting import Session, readable_failures, session
from laxity.infra.cli.output import CommandError, ExitCode, note, print_json, print_table
from laxity.infra.cli.stack import DataDirOption, JsonOption, stack_settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from laxity.infra.inspect.replay import Replayed
    from laxity.schemas.config import Config
    from laxity.schemas.records import Journal

app = typer.Typer()
state = typer.Typer(help="The scheduler's state: compare copies, replay decisions.", no_args_is_help=True)
app.add_typer(state, name="state")


@state.command("hash", epilog="Example: laxity stop scheduler && laxity state hash --json")
def show_hashes(
    *,
    state_dir: Annotated[
        Path | None, typer.Option(help="One process's directory, or one with several. [DATA_DIR/state]")
    ] = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Show, for every copy of every shard, its changelog offset, rows and SHA-256 over the rows in key order. Stopped stores only."""
    with readable_failures():
        from laxity.infra.inspect.hashes import hashes_under  # noqa: PLC0415

        root = state_dir or stack_settings(data_dir).data_dir / "state"
        found = hashes_under(root.expanduser().resolve())
    if json:
        print_json({"state_dir": str(root), "shards": [copy.document() for copy in found]})
        return
    rows = [
        (copy.shard, name, store.offset, store.rows, store.sha256, copy.folder)
        for copy in found
        for name, store in (("state", copy.state), ("keys", copy.keys))
    ]
    print_table(("shard", "store", "offset", "rows", "sha256", "folder"), rows)


@state.command(
    "replay",
    epilog="Examples: laxity state replay 0 · laxity state replay 3 --config old.toml --config new.toml --json",
)
def replay_shard(
    shard: Annotated[int, typer.Argument(min=0, help="Number of the shard.")],
    *,
    config: Annotated[
        list[Path] | None,
        typer.Option(
            help="Configuration files that the shard had, repeatable. [today's, the packaged one, demonstrations']"
        ),
    ] = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Decide every batch of the shard's journal again, from its inputs, and compare the effects. Exit code 1 at a difference.

    Reads only; needs the journal from batch 1 on, all inputs, and every configuration that the shard had.
    """
    with session(data_dir) as opened:
        done = _replay(opened, shard, _configs(config or (), stack_settings(data_dir).data_dir))
    if json:
        print_json(done.document())
    else:
        note(
            f"shard {done.shard}: {done.batches} batches ({done.takeovers} takeovers, {done.records} records) with the same effects"
        )
    if done.difference is not None:
        other = done.difference
        wrote = ", ".join(f"{name} {count}" for name, count in other.wrote.items())
        raise CommandError(
            f"batch {other.batch} of shard {shard}: {other.problem}", f"it wrote {wrote}" if wrote else ""
        )


def _configs(named: Sequence[Path], data_dir: Path) -> list[Config]:
    """Those that were named; else the one that counts now, the packaged one, and those of demonstrations in the data directory."""
    from laxity.infra.demo.configuration import files_in  # noqa: PLC0415
    from laxity.schemas.config import load, packaged_text, parse  # noqa: PLC0415

    if named:
        return [load(path) for path in named]
    made = [load(path) for path in files_in(data_dir)]
    return [load(), parse(packaged_text(), "packaged laxity.toml"), *made]


def _replay(opened: Session, shard: int, configs: Sequence[Config]) -> Replayed:
    from laxity.infra.inspect.inputs import ShardInputs  # noqa: PLC0415
    from laxity.infra.inspect.reading import Reader  # noqa: PLC0415
    from laxity.infra.inspect.replay import Deployment, replay  # noqa: PLC0415

    names, counts = opened.names, opened.look.reader.partitions([opened.names.full("journal")])
    shards = counts.get(names.full("journal"), 0)
    if shard >= shards:
        raise CommandError(f"there is no shard {shard}", f"the deployment has {shards}", code=ExitCode.USAGE)
    place = Deployment(
        shards=shards,
        configs=configs,
        codec=opened.codec,
        prefix=names.prefix,
        topic_ids=_topic_ids(opened),
    )
    inputs = ShardInputs(lambda: Reader(opened.clients, opened.clock), names)
    try:
        return replay(shard, _journal(opened, shard), inputs.read, place)
    finally:
        inputs.close()


def _journal(opened: Session, shard: int) -> Iterator[Journal]:
    from laxity.schemas.records import Journal  # noqa: PLC0415

    for seen in opened.look.seen(opened.look.spans(["journal"], partition=shard)):
        if not isinstance(seen.value, Journal):
            place = f"journal:{seen.partition}:{seen.offset}"
            raise CommandError(
                f"{place} is no batch", seen.problem, f"laxity tail journal --offset {shard}:{seen.offset}"
            )
        yield seen.value


def _topic_ids(opened: Session) -> dict[str, str]:
    """Of the shard's inputs: they stand in its marks, so in its effects."""
    from confluent_kafka import KafkaException, TopicCollection  # noqa: PLC0415

    from laxity.schemas.topics import TIERS  # noqa: PLC0415

    inputs = ("control", "links", "outcomes", *(f"triggers.{tier}" for tier in TIERS))
    full = {opened.names.full(name): name for name in inputs}
    admin = opened.clients.admin()  # named, so that it lives until the answers are there
    try:
        asked: dict[str, Any] = admin.describe_topics(TopicCollection(list(full)), request_timeout=10.0)
        return {full[topic]: str(answer.result().topic_id) for topic, answer in asked.items()}
    except KafkaException as error:
        raise CommandError("the input topics cannot be described", error.args[0].str()) from error
