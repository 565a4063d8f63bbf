"""The roles of roles.toml, with the names of one deployment filled in. Pure but for reading the packaged file."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final, Literal, get_args

Kind = Literal["topic", "group", "transactional-id"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class KafkaAcl:
    """One thing that is allowed. `prefixed`: on everything whose name begins with `name`. `operation` as Kafka spells it: Read, AlterConfigs."""

    kind: Kind
    name: str
    prefixed: bool
    operation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisRules:
    """Glob patterns of keys, channels by name, commands in lower case (`script|load` is a subcommand)."""

    keys: Sequence[str]
    channels: Sequence[str]
    commands: Sequence[str]

    def words(self) -> list[str]:
        """As ACL SETUSER takes them, on top of nothing: whatever the user could do before is taken away. Passwords stay."""
        return [
            *("on", "resetkeys", "resetchannels", "-@all"),
            *(f"~{key}" for key in self.keys),
            *(f"&{channel}" for channel in self.channels),
            *(f"+{command}" for command in self.commands),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """One role of one deployment. `user`: its name in Kafka and Redis. `redis` None: it has no business there."""

    name: str
    user: str
    about: str
    kafka: Sequence[KafkaAcl]
    redis: RedisRules | None


def role_names() -> tuple[str, ...]:
    """In the order of the file."""
    return tuple(_file())


def role(name: str, *, prefix: str, fleets: Sequence[str], user: str = "") -> Role:
    """One of `role_names()`. `user`: default the prefix and the role's name, so that deployments do not share users."""
    found = _file()[name]
    fill = {"prefix": (prefix,), "fleet": tuple(fleets)}
    redis = found.get("redis")
    return Role(
        name=name,
        user=user or f"{prefix}{name}",
        about=found["about"],
        kafka=tuple(acl for entry in found["kafka"] for acl in _acls(entry, fill)),
        redis=RedisRules(**{key: _filled(redis[key], fill) for key in redis}) if redis else None,
    )


def _acls(entry: Mapping[str, Any], fill: Mapping[str, Sequence[str]]) -> Iterator[KafkaAcl]:
    (kind,) = (kind for kind in KINDS if kind in entry)
    for name in _filled([entry[kind]], fill):
        prefixed = name.endswith("*") and name != "*"  # that alone is Kafka's own word for all
        for operation in entry["may"]:
            yield KafkaAcl(
                kind=kind,
                name=name.removesuffix("*") if prefixed else name,
                prefixed=prefixed,
                operation=operation,
            )


def _filled(texts: Sequence[str], fill: Mapping[str, Sequence[str]]) -> list[str]:
    """One text for each value of its placeholder. Other braces stay: the ledger's keys have some."""
    for name, values in fill.items():
        texts = [
            text.replace(f"{{{name}}}", value)
            for text in texts
            for value in (values if f"{{{name}}}" in text else ("",))
        ]
    return list(texts)


@cache
def _file() -> dict[str, dict[str, Any]]:
    return tomllib.loads(files("laxity.infra.security").joinpath("roles.toml").read_text("utf-8"))
