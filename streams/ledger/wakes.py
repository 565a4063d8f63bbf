"""Hearing, in every process, which resources have room again: a thread of the host runs `Wakes.run`."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event
from typing import Any, Final

import redis as client
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from laxity.streams.ledger.scripts import channel

ANY: Final = "*"  # told after each connect: something may have been missed, so anything may have room
PATIENCE_S: Final = 0.5  # how long one wait for a message lasts, and so how late a stop is noticed
RECONNECT_S: Final = 0.5  # between attempts while the server is away; each shard's own timers run on


class Wakes:
    """A subscription that survives the server's absence. Messages are hints: a lost one is made good by the retry of a refusal."""

    def __init__(self, url: str, *, prefix: str = "laxity.") -> None:
        self._client: Any = client.Redis.from_url(
            url,
            protocol=2,
            decode_responses=True,
            socket_connect_timeout=PATIENCE_S,
            retry=Retry(NoBackoff(), 0),
        )
        self._channel = channel(prefix)

    def run(self, woken: Callable[[str], None], stop: Event) -> None:
        """Until `stop`: call back with each resource's name, and with ANY after each connect. Exceptions of `woken` are its own."""
        while not stop.is_set():
            try:
                self._listen(woken, stop)
            except (
                RedisError,
                OSError,
            ):  # nobody is told: a timer stands behind each refusal, and the ledger's calls fail too
                stop.wait(RECONNECT_S)

    def close(self) -> None:
        """After `run` has ended."""
        self._client.close()

    def _listen(self, woken: Callable[[str], None], stop: Event) -> None:
        with self._client.pubsub() as subscription:
            subscription.subscribe(self._channel)
            while not stop.is_set():
                message = subscription.get_message(timeout=PATIENCE_S)
                if message is None:
                    continue
                woken(ANY if message["type"] == "subscribe" else str(message["data"]))
