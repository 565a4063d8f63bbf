"""A role's permissions in Kafka: as commands of the stock tool, and made so by an admin client."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

from confluent_kafka import KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public by its documentation, not by __all__
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from laxity.infra.security.roles import KafkaAcl, Kind, Role

REQUEST_S: Final = 30.0  # a cluster that elects a controller answers within that
SCRAM_ITERATIONS: Final = (
    8_192  # Kafka takes 4,096 to 16,384; our passwords are random, so guessing is no matter of iterations
)
_TYPES: Final[dict[Kind, Any]] = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional-id": ResourceType.TRANSACTIONAL_ID,
}


class AclError(Exception):
    """The cluster refused, or did not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What became of one role's permissions. `surplus`: allowed to its user, and not by roles.toml; left alone."""

    created: int
    present: int
    surplus: Sequence[str]


def commands(role: Role) -> list[str]:
    """One line per resource, for `laxity kafka`."""
    lines = []
    for (kind, name, prefixed), acls in groupby(role.kafka, lambda acl: (acl.kind, acl.name, acl.prefixed)):
        may = " ".join(f"--operation {acl.operation}" for acl in acls)
        pattern = " --resource-pattern-type prefixed" if prefixed else ""
        lines.append(f"acls --add --allow-principal User:{role.user} {may} --{kind} {name}{pattern}")
    return lines


def apply(admin: AdminClient, role: Role) -> Applied:
    """Create what is missing. AclError."""
    wanted = {binding(role.user, acl) for acl in role.kafka}
    there = set(_present(admin, role.user))
    missing = wanted - there
    if missing:
        for made, future in admin.create_acls(list(missing), request_timeout=REQUEST_S).items():
            _result(future, f"{made.name} for {role.user}")
    surplus = sorted(f"{_spelt(b.operation)} {b.restype.name.lower()} {b.name}" for b in there - wanted)
    return Applied(created=len(missing), present=len(wanted & there), surplus=surplus)


def set_password(admin: AdminClient, user: str, password: str) -> None:
    """SCRAM-SHA-512; only a salted hash goes to the cluster. AclError."""
    info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, SCRAM_ITERATIONS)
    change = UserScramCredentialUpsertion(user, info, password.encode())
    for future in admin.alter_user_scram_credentials([change], request_timeout=REQUEST_S).values():
        _result(future, f"password of {user}")


def _present(admin: AdminClient, user: str) -> Iterable[Any]:
    wanted = AclBindingFilter(
        ResourceType.ANY,
        None,  # type: ignore[arg-type]  # any name
        ResourcePatternType.ANY,
        f"User:{user}",
        None,  # type: ignore[arg-type]  # any host
        AclOperation.ANY,
        AclPermissionType.ALLOW,
    )
    return list(_result(admin.describe_acls(wanted, request_timeout=REQUEST_S), f"what {user} may do"))


def binding(user: str, acl: KafkaAcl) -> Any:
    """As the client library has it."""
    return AclBinding(
        _TYPES[acl.kind],
        acl.name,
        ResourcePatternType.PREFIXED if acl.prefixed else ResourcePatternType.LITERAL,
        f"User:{user}",
        "*",
        _operation(acl.operation),
        AclPermissionType.ALLOW,
    )


def _operation(spelt: str) -> Any:
    """AlterConfigs is ALTER_CONFIGS there."""
    return AclOperation["".join(f"_{c}" if c.isupper() else c.upper() for c in spelt).lstrip("_")]


def _spelt(operation: Any) -> str:
    return "".join(word.capitalize() for word in operation.name.split("_"))


def _result(future: Future[Any], what: str) -> Any:
    try:
        return future.result(REQUEST_S)
    except KafkaException as error:
        raise AclError(f"{what}: {error.args[0].str()}") from error
    except TimeoutError as error:
        raise AclError(f"{what}: no answer within {REQUEST_S:.0f} s") from error
