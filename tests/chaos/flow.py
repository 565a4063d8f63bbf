"""One direction of one proxied connection: bytes that are late, slow, stuck or cut, but never reordered and never changed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random  # noqa: TID251 - the seed is the proxy's argument
from typing import Literal

Direction = Literal["up", "down"]  # up: from the client to the server

CHUNK_BYTES = 1 << 16
WAITING_CHUNKS_MAX = 256  # then the sender meets back-pressure, as it would of a full socket buffer


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """What an edge does to the bytes of all its connections. A direction that does not pass keeps its bytes until it does.

    `resets` is the chance of each piece (up: each request, else each read) to end its connection with a RST instead of passing.
    """

    delay_ms: int = 0
    jitter_ms: int = 0  # on top of the delay, drawn for each piece
    bytes_per_s: int = 0  # of one direction of one connection; 0: no limit
    up: bool = True
    down: bool = True
    accepts: bool = True  # False: a new connection is reset at once
    resets: float = 0.0

    def passes(self, direction: Direction) -> bool:
        """Whether bytes go that way."""
        return self.up if direction == "up" else self.down


CLEAR = Weather()


class Climate:
    """The weather that all flows of an edge see. All but `now` belongs to the loop."""

    def __init__(self, random: Random) -> None:
        self.now = CLEAR
        self._random = random
        self._open: dict[Direction, asyncio.Event] = {"up": asyncio.Event(), "down": asyncio.Event()}
        self.turn(CLEAR)

    def turn(self, weather: Weather) -> None:
        """From now on."""
        self.now = weather
        for direction, event in self._open.items():
            (event.set if weather.passes(direction) else event.clear)()

    async def until_open(self, direction: Direction) -> None:
        """Returns at once unless the direction is partitioned."""
        await self._open[direction].wait()

    def delay_s(self) -> float:
        """Of one piece."""
        return (self.now.delay_ms + self._random.uniform(0, self.now.jitter_ms)) / 1_000

    def strikes(self) -> bool:
        """Whether this piece resets its connection."""
        return self.now.resets > 0 and self._random.random() < self.now.resets


class Flow:
    """Moves pieces from a reader to a writer. `read` returns the next piece, b"" at the end, None for one that somebody else took.

    What one side learns of the other, an end or a reset too, travels like bytes: a partition keeps it back.
    """

    def __init__(
        self,
        *,
        direction: Direction,
        climate: Climate,
        read: Callable[[], Awaitable[bytes | None]],
        writer: asyncio.StreamWriter,
        passed: Callable[[int], None],
    ) -> None:
        self._direction: Direction = direction
        self._climate = climate
        self._read = read
        self._writer = writer
        self._passed = passed
        self._waiting: asyncio.Queue[tuple[float, bytes | None]] = asyncio.Queue(WAITING_CHUNKS_MAX)

    async def run(self) -> None:
        """To the end of the stream, which is passed on too. Raises what ends the connection otherwise."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._take())
            group.create_task(self._give())

    async def _take(self) -> None:
        clock = asyncio.get_running_loop().time
        piece: bytes | None = b"go"
        while piece:
            try:
                taken = await self._read()
            except OSError:
                piece = None
            else:
                if taken is None:
                    continue
                piece = None if taken and self._climate.strikes() else taken
            await self._waiting.put((clock() + self._climate.delay_s(), piece))

    async def _give(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due, piece = await self._waiting.get()
            await asyncio.sleep(due - clock())
            await self._climate.until_open(self._direction)
            if piece is None:
                raise ConnectionResetError("the sender's side was reset")
            await self._write(piece)
            if not piece:
                return
            if self._climate.now.bytes_per_s:
                await asyncio.sleep(len(piece) / self._climate.now.bytes_per_s)

    async def _write(self, piece: bytes) -> None:
        try:
            if piece:
                self._writer.write(piece)
                await self._writer.drain()
            elif self._writer.can_write_eof():
                self._writer.write_eof()
        except OSError:
            await self._climate.until_open("down" if self._direction == "up" else "up")
            raise
        self._passed(len(piece))


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with a RST: what is buffered is lost on both sides, and the peer gets an error instead of an end."""
    raw = writer.get_extra_info("socket")
    if raw is not None:
        with contextlib.suppress(OSError):  # closed already
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
