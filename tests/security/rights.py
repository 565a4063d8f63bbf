"""Permissions in Kafka taken away and given back, one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka.admin import AclBindingFilter, AdminClient  # type: ignore[attr-defined]
from security.deployment import Deployment
from security.waiting import until

from laxity.infra.security.kafka_acls import binding
from laxity.infra.security.roles import KafkaAcl

REQUEST_S = 10.0


def take_away(made: Deployment, user: str, entries: Iterable[KafkaAcl]) -> None:
    """Returns when the broker knows."""
    admin = made.kafka.admin()
    for acl in entries:
        gone = binding(user, acl)
        for future in admin.delete_acls([_filter(gone)], request_timeout=REQUEST_S).values():
            assert len(future.result(REQUEST_S)) == 1
        until(f"{acl} is gone", lambda gone=gone: gone not in _there(admin, gone))  # type: ignore[misc]


def give(made: Deployment, user: str, entries: Iterable[KafkaAcl]) -> None:
    """Returns when the broker knows."""
    admin = made.kafka.admin()
    for acl in entries:
        new = binding(user, acl)
        for future in admin.create_acls([new], request_timeout=REQUEST_S).values():
            future.result(REQUEST_S)
        until(f"{acl} is there", lambda new=new: new in _there(admin, new))  # type: ignore[misc]


@contextmanager
def without(made: Deployment, user: str, acl: KafkaAcl) -> Iterator[None]:
    """While the block runs."""
    take_away(made, user, [acl])
    try:
        yield
    finally:
        give(made, user, [acl])


def _filter(b: Any) -> Any:
    return AclBindingFilter(
        b.restype, b.name, b.resource_pattern_type, b.principal, b.host, b.operation, b.permission_type
    )


def _there(admin: AdminClient, one: Any) -> list[Any]:
    return list(admin.describe_acls(_filter(one), request_timeout=REQUEST_S).result(REQUEST_S))
