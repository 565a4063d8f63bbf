"""The liveness board in Redis: one hash, a field per process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from redis import Redis
from redis.exceptions import RedisError

from laxity.streams.runtime.liveness import BoardUnavailable

SOCKET_S_MAX = 0.5  # a stalled server must not stall the watch


class RedisBoard:
    """Raises BoardUnavailable for whatever the server or the network does."""

    def __init__(self, url: str, prefix: str) -> None:
        self._redis = Redis.from_url(
            url, socket_timeout=SOCKET_S_MAX, socket_connect_timeout=SOCKET_S_MAX, decode_responses=True
        )
        self._key = f"{prefix}scheduler.live"

    def put(self, process: str, text: str) -> None:
        """Set one field."""
        try:
            self._redis.hset(self._key, process, text)
        except RedisError as error:
            raise BoardUnavailable(str(error)) from error

    def read(self) -> dict[str, str]:
        """All fields."""
        try:
            return dict(cast("Mapping[str, str]", self._redis.hgetall(self._key)))
        except RedisError as error:
            raise BoardUnavailable(str(error)) from error

    def remove(self, process: str) -> None:
        """Drop one field."""
        try:
            self._redis.hdel(self._key, process)
        except RedisError as error:
            raise BoardUnavailable(str(error)) from error

    def close(self) -> None:
        """Let go of the connections."""
        self._redis.close()
