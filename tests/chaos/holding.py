"""Kafka requests that are held on their way: found by API key, kept back, and released late, on the same connection or on one of their own."""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from laxity.schemas.timing import Clock, Millis

PRODUCE, ADD_PARTITIONS_TO_TXN, END_TXN, TXN_OFFSET_COMMIT = 0, 24, 26, 28
INIT_PRODUCER_ID, JOIN_GROUP, HEARTBEAT, CONSUMER_HEARTBEAT = 22, 11, 12, 68

_HEADER = struct.Struct(">hhih")  # API key, API version, correlation id, length of the client id (-1: none)
ANSWER_S_MAX = 10.0  # of a broker, for bytes that were released


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request frame. `body` begins after the client id (in newer versions with the header's tags)."""

    api_key: int
    version: int
    correlation: int
    client_id: str
    body: bytes
    frame: bytes  # all of it, with its length


def parse(frame: bytes) -> Request:
    """A frame with its 4-byte length. ValueError for what is no Kafka request."""
    try:
        api_key, version, correlation, length = _HEADER.unpack_from(frame, 4)
    except struct.error as error:
        raise ValueError(f"a request of {len(frame)} bytes has no header") from error
    start = 4 + _HEADER.size
    end = start + max(0, length)
    client_id = frame[start:end].decode("utf-8", "replace")
    return Request(
        api_key=api_key,
        version=version,
        correlation=correlation,
        client_id=client_id,
        body=frame[end:],
        frame=frame,
    )


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """The next length-prefixed frame; b"" at the end of the stream, also in the middle of a frame."""
    try:
        head = await reader.readexactly(4)
        return head + await reader.readexactly(int.from_bytes(head, "big"))
    except asyncio.IncompleteReadError:
        return b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """A trap for the next request of an API key.

    `drop_after_ms` None: the bytes go on over their own connection when their time is over; what follows on it passes meanwhile, or waits
    too. Else the connection is reset so long after the bytes were caught, the client's retry passes, and the old bytes reach the broker
    over a connection of their own.
    """

    api_key: int
    hold_ms: Millis
    drop_after_ms: Millis | None = None
    others_wait: bool = False
    part: bytes = b""  # only requests whose bytes contain it, such as a transactional id
    name: str = ""  # tells holds apart that are otherwise alike


@dataclass(slots=True, kw_only=True)
class Held:
    """What became of one held request. Times are the clock's monotonic ones; None: not yet, or never."""

    hold: Hold
    request: Request
    caught_ms: Millis
    dropped_ms: Millis | None = None
    retried_ms: Millis | None = None  # the same body was seen again, and passed
    reused_ms: Millis | None = (
        None  # an end of a transaction: its producer, epoch and all, began another one before the old bytes came
    )
    released_ms: Millis | None = None
    answer: bytes | None = None  # of the broker to bytes that were released on a connection of their own

    def error_code(self) -> int | None:
        """Of an answer to EndTxn before version 3: correlation id, throttle time, error code."""
        if self.answer is None or self.request.api_key != END_TXN or self.request.version > 2:
            return None
        return int.from_bytes(self.answer[12:14], "big", signed=True)

    def landed(self) -> bool:
        """Whether the fault was what it should be: bytes arrived late, after their retry if there was to be one."""
        if self.released_ms is None:
            return False
        if self.hold.drop_after_ms is None:
            return True
        return self.retried_ms is not None and self.retried_ms <= self.released_ms and self.answer is not None


@dataclass(slots=True)
class Traps:
    """The traps of one edge and what they caught. On the loop; the lists may be read from any thread."""

    clock: Clock
    armed: list[Hold] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    seen: Counter[int] = field(default_factory=Counter)  # requests by API key

    def meet(self, request: Request) -> Held | None:
        """The record of a request that is now held; None: it passes. A retry of what is held always passes."""
        self.seen[request.api_key] += 1
        self._note_reuse(request)
        if self._is_retry(request):
            return None
        for hold in self.armed:
            if hold.api_key == request.api_key and hold.part in request.body:
                self.armed.remove(hold)
                caught = Held(hold=hold, request=request, caught_ms=self.clock.monotonic_ms())
                self.held.append(caught)
                return caught
        return None

    def _is_retry(self, request: Request) -> bool:
        for held in self.held:
            waits = held.hold.drop_after_ms is not None and held.released_ms is None
            if waits and held.request.api_key == request.api_key and held.request.body == request.body:
                held.retried_ms = held.retried_ms or self.clock.monotonic_ms()
                return True
        return False

    def _note_reuse(self, request: Request) -> None:
        """Both bodies begin with transactional id, producer id and epoch; that of an end has one more byte: commit or abort."""
        for held in self.held:
            ends = (
                held.request.api_key == END_TXN and held.retried_ms is not None and held.released_ms is None
            )
            begins = request.api_key == ADD_PARTITIONS_TO_TXN
            if ends and begins and request.body.startswith(held.request.body[:-1]):
                held.reused_ms = held.reused_ms or self.clock.monotonic_ms()

    def outstanding(self) -> Sequence[Held]:
        """Held and not yet released."""
        return [held for held in self.held if held.released_ms is None]


async def release(held: Held, upstream: tuple[str, int], clock: Clock) -> None:
    """Send the old bytes over a connection of their own and keep the answer. OSError or TimeoutError if the broker is not there."""
    async with asyncio.timeout(ANSWER_S_MAX):
        reader, writer = await asyncio.open_connection(*upstream)
        try:
            writer.write(held.request.frame)
            await writer.drain()
            held.released_ms = clock.monotonic_ms()
            held.answer = await read_frame(reader) or None
        finally:
            writer.close()
