"""A role's user in Redis: as a line of ACL SETUSER, and made so."""

from __future__ import annotations

import hashlib
from typing import Any, Final

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from laxity.infra.security.roles import Role

SOCKET_S: Final = 5.0
_NO_FILE: Final = "not configured to use an ACL file"


class RedisUserError(Exception):
    """The server refused, or did not answer."""


def command(role: Role) -> str:
    """For redis-cli; empty for a role without a user. The password is yours to add: `>PASSWORD`, or `#` and its SHA-256."""
    if role.redis is None:
        return ""
    return " ".join(("ACL SETUSER", role.user, *(_quoted(word) for word in role.redis.words())))


def apply(client: Redis, role: Role, password: str = "") -> None:
    """Make the user what the role says. A password replaces all earlier ones and travels as its hash. RedisUserError."""
    if role.redis is None:
        return
    words = role.redis.words()
    if password:
        words += ["resetpass", f"#{hashlib.sha256(password.encode()).hexdigest()}"]
    _ask(client, "ACL", "SETUSER", role.user, *words)


def save(client: Redis) -> bool:
    """Keep users over a restart of the server. False if it has no file for them (`aclfile`): apply them again after a restart."""
    try:
        client.execute_command("ACL", "SAVE")  # type: ignore[no-untyped-call,unused-ignore]
    except ResponseError as error:
        if _NO_FILE in str(error):
            return False
        raise RedisUserError(f"ACL SAVE: {error}") from error
    except RedisError as error:
        raise RedisUserError(f"ACL SAVE: {error}") from error
    return True


def connect(url: str) -> Redis:
    """To the server, as who may change users."""
    return Redis.from_url(url, socket_timeout=SOCKET_S, socket_connect_timeout=SOCKET_S)


def _ask(client: Any, *words: str) -> None:
    try:
        client.execute_command(*words)
    except RedisError as error:
        raise RedisUserError(f"{' '.join(words[:3])}: {error}") from error


def _quoted(word: str) -> str:
    """For a shell and for redis-cli alike: quotes around what either would take apart."""
    return f"'{word}'" if set(word) & set("{}*&~|") else word
