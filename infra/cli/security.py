"""`laxity security acls`: what each role may do in Kafka and Redis, shown or made so."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laxity.infra.cli.connection import ConfigOption, connect, readable_errors
from laxity.infra.cli.output import CommandError, ExitCode, note, print_json, print_table
from laxity.infra.cli.stack import DataDirOption, JsonOption, stack_settings

if TYPE_CHECKING:
    from laxity.infra.security.roles import Role

app = typer.Typer()
security = typer.Typer(help="Least privilege: users and what they may do.", no_args_is_help=True)
app.add_typer(security, name="security")


@security.command("acls")
def acls(
    *,
    role: Annotated[str, typer.Option(help="Only this one. [all]")] = "",
    user: Annotated[str, typer.Option(help="With --role: its user. [PREFIX and the role's name]")] = "",
    fleet: Annotated[
        list[str] | None, typer.Option(help="Which agents serve it; repeatable. [those of the configuration]")
    ] = None,
    apply: Annotated[
        bool,
        typer.Option("--apply", help="Make it so, with the rights of LAXITY_KAFKA… and LAXITY_REDIS_URL."),
    ] = False,
    passwords: Annotated[
        Path | None,
        typer.Option(
            help="With --apply: folder with a file per user; makes absent files, and the users from all."
        ),
    ] = None,
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Show every role's permissions as commands of `laxity kafka` and redis-cli, or apply them. Applying again changes nothing."""
    if passwords and not apply:
        raise CommandError("--passwords needs --apply", code=ExitCode.USAGE)
    roles = _roles(role, user, fleet, config, data_dir)
    if apply:
        _apply(roles, passwords, data_dir, json=json)
    elif json:
        print_json({"roles": [asdict(one) for one in roles]})
    else:
        sys.stdout.writelines(f"{line}\n" for one in roles for line in _lines(one))


def _roles(
    name: str, user: str, fleets: list[str] | None, config: Path | None, data_dir: Path | None
) -> Sequence[Role]:
    from laxity.infra.security.roles import role, role_names  # noqa: PLC0415
    from laxity.schemas.config import load  # noqa: PLC0415

    if name and name not in role_names():
        raise CommandError(f"--role {name!r}: {', '.join(role_names())}", code=ExitCode.USAGE)
    if user and not name:
        raise CommandError("--user needs --role", code=ExitCode.USAGE)
    with readable_errors():
        fleets = fleets or sorted(load(config).fleets)
    prefix = stack_settings(data_dir).prefix
    wanted = (name,) if name else role_names()
    return [role(one, prefix=prefix, fleets=fleets, user=user) for one in wanted]


def _lines(role: Role) -> Iterator[str]:
    from laxity.infra.security.kafka_acls import commands  # noqa: PLC0415
    from laxity.infra.security.redis_users import command  # noqa: PLC0415

    yield f"# {role.name}: {role.about}"
    yield from (f"laxity kafka {line}" for line in commands(role))
    if redis := command(role):
        yield f"redis-cli {redis}"
    yield ""


def _apply(roles: Sequence[Role], passwords: Path | None, data_dir: Path | None, *, json: bool) -> None:
    with _readable():
        done = _make_so(roles, passwords, connect(data_dir))
    for row in done:
        if row["surplus"]:
            note(f"{row['user']} may also: {', '.join(row['surplus'])}. Nobody took it away.")
    if json:
        print_json({"roles": done})
    else:
        print_table(["role", "user", "kafka", "redis"], [_row(row) for row in done])


def _make_so(roles: Sequence[Role], passwords: Path | None, settings: Any) -> list[dict[str, Any]]:
    from laxity.infra.security import kafka_acls, redis_users  # noqa: PLC0415
    from laxity.infra.security.passwords import password_of  # noqa: PLC0415
    from laxity.schemas.kafka import KafkaClients  # noqa: PLC0415

    admin = KafkaClients(settings, role="security").admin()
    client = redis_users.connect(settings.redis_url) if settings.redis_url else None
    done = []
    for role in roles:
        password = password_of(passwords, role.user) if passwords else ""
        if password:
            kafka_acls.set_password(admin, role.user, password)
        applied = kafka_acls.apply(admin, role)
        if client is not None:
            redis_users.apply(client, role, password)
        in_redis = client is not None and role.redis is not None
        done.append({"role": role.name, "user": role.user, "redis": in_redis, **asdict(applied)})
    if client is not None and not redis_users.save(client):
        note(
            "Redis has no aclfile: after a restart of it these users are gone, and nobody gets in until they are applied again"
        )
    return done


def _row(done: dict[str, Any]) -> list[object]:
    kafka = f"{done['created']} created, {done['present']} there"
    return [done["role"], done["user"], kafka, "made" if done["redis"] else None]


@contextmanager
def _readable() -> Iterator[None]:
    from laxity.infra.security.kafka_acls import AclError  # noqa: PLC0415
    from laxity.infra.security.passwords import PasswordError  # noqa: PLC0415
    from laxity.infra.security.redis_users import RedisUserError  # noqa: PLC0415

    try:
        with readable_errors():
            yield
    except (AclError, PasswordError, RedisUserError) as error:
        raise CommandError(str(error)) from error
