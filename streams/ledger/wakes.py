"""Hearing, in every process, which resources have room again: a thread of the host runs `Wakes.run`."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event
from typing import Any, Final

import redis as client
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from laxity.schemas.timing import Clock, Millis, SystemClock
from laxity.streams.ledger.scripts import channel

ANY: Final = "*"  # told after each connect: something may have been missed, so anything may have room
PATIENCE_S: Final = 0.5  # how long one wait for a message lasts, and so how late a stop is noticed
RECONNECT_S: Final = 0.5  # between attempts while the server is away; each shard's own timers run on
QUIET_MS: Final = 2_000  # without a word for so long, the server is asked for one
GONE_MS: Final = (
    2_000  # without an answer to that the connection is half open: nothing will come through it any more
)


class Wakes:
    """A subscription that survives the server's absence. Messages are hints: a lost one is made good by the retry of a refusal."""

    def __init__(self, url: str, *, prefix: str = "laxity.", clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._client: Any = client.Redis.from_url(
            url,
            protocol=2,
            decode_responses=True,
            socket_timeout=PATIENCE_S,
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
            heard_ms, asked_ms = self._clock.monotonic_ms(), None
            while not stop.is_set():
                message = subscription.get_message(timeout=PATIENCE_S)
                if message is None:
                    asked_ms = self._keep_alive(subscription, heard_ms, asked_ms)
                    continue
                heard_ms, asked_ms = self._clock.monotonic_ms(), None
                if message["type"] == "subscribe":
                    woken(ANY)
                elif message["type"] == "message":
                    woken(str(message["data"]))

    def _keep_alive(self, subscription: Any, heard_ms: Millis, asked_ms: Millis | None) -> Millis | None:
        """When the server was asked for a word, if it still owes one. Raises ConnectionError once it will not come."""
        now_ms = self._clock.monotonic_ms()
        if asked_ms is not None and now_ms - asked_ms >= GONE_MS:
            raise client.ConnectionError("the subscription is half open")
        if asked_ms is None and now_ms - heard_ms >= QUIET_MS:
            subscription.ping()
            return now_ms
        return asked_ms
