"""A TCP proxy with one listener per edge (who talks to which server), whose faults tests switch on and off while bytes flow.

    with Proxy(seed=1) as proxy:
        edge = proxy.edge("runner-1 to redis", ("127.0.0.1", 6379))
        ...                                       # let the client connect to edge.address
        edge.turn(Weather(up=False))              # a partition in one direction
        edge.turn(CLEAR)
        edge.cut()                                # RST on all connections of now
        edge.strand()                             # half-open: the server hears of an end, the client of nothing

        broker = proxy.edge("scheduler-1 to broker 1", ("127.0.0.1", 9092), kafka=True)
        broker.hold(Hold(api_key=END_TXN, hold_ms=5_000, drop_after_ms=0))

A thread of its own with its event loop; every method may be called from any thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from random import Random  # noqa: TID251 - the seed is an argument
from typing import Any, Self, TypeVar

from chaos.flow import CHUNK_BYTES, CLEAR, Climate, Direction, Flow, Weather, reset
from chaos.holding import Held, Hold, Traps, parse, read_frame, release

from laxity.schemas.timing import Clock, SystemClock

__all__ = ["CLEAR", "Counts", "Edge", "Hold", "Proxy", "Weather"]

HOST = "127.0.0.1"
CONTROL_S = 30.0  # the loop turns in milliseconds, on a machine that is not overloaded
TURNS_TO_CLOSE = 3  # of the loop: a transport that was aborted closes its socket in a later one
Address = tuple[str, int]
_T = TypeVar("_T")


@dataclass(slots=True)
class Counts:
    """What happened on one edge."""

    accepted: int = 0
    refused: int = 0  # by the weather
    unreachable: int = 0  # the server was not there
    reset: int = 0
    stranded: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


class Edge:
    """One listener and its server. Made by `Proxy.edge`."""

    def __init__(self, proxy: Proxy, name: str, upstream: Address, *, kafka: bool) -> None:
        self.name = name
        self.port = 0
        self._proxy = proxy
        self._upstream = upstream
        self._kafka = kafka
        self._climate = Climate(Random(f"{proxy.seed} {name}"))
        self._traps = Traps(proxy.clock)
        self._counts = Counts()
        self._connections: set[_Connection] = set()

    @property
    def address(self) -> str:
        """host:port, for clients."""
        return f"{HOST}:{self.port}"

    @property
    def weather(self) -> Weather:
        """As it is now."""
        return self._climate.now

    def turn(self, weather: Weather) -> None:
        """Change the weather of all connections, those of now included."""
        self._proxy.call(lambda: self._climate.turn(weather))

    def cut(self) -> int:
        """RST to both sides of every connection of now; how many there were."""
        return self._proxy.call(lambda: sum(c.cut() for c in list(self._connections)))

    def strand(self) -> int:
        """The servers of all connections of now see a RST, the clients nothing, and nothing they send arrives; how many there were."""
        return self._proxy.call(lambda: sum(c.strand() for c in list(self._connections)))

    def hold(self, hold: Hold) -> None:
        """Arm a trap for one request; several may be armed at once."""
        assert self._kafka, f"{self.name} is no edge to a broker"
        self._proxy.call(lambda: self._traps.armed.append(hold))

    def disarm(self, hold: Hold | None = None) -> int:
        """Take away traps that caught nothing yet, this one or all; how many there were."""

        def clear() -> int:
            armed = self._traps.armed
            left = [] if hold is None else [other for other in armed if other != hold]
            count = len(armed) - len(left)
            armed[:] = left
            return count

        return self._proxy.call(clear)

    def held(self) -> Sequence[Held]:
        """Everything that traps caught, in order."""
        return self._proxy.call(lambda: [replace(held) for held in self._traps.held])

    def counts(self) -> Counts:
        """So far."""
        return self._proxy.call(lambda: replace(self._counts))

    def requests(self) -> Counter[int]:
        """Kafka requests that arrived here, by API key."""
        return self._proxy.call(lambda: Counter(self._traps.seen))

    def connections(self) -> int:
        """Open now, stranded ones included."""
        return self._proxy.call(lambda: len(self._connections))

    # on the loop

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._climate.now.accepts:
            self._counts.refused += 1
            reset(writer)
            return
        try:
            server = await asyncio.open_connection(*self._upstream)
        except OSError:
            self._counts.unreachable += 1
            reset(writer)
            return
        except asyncio.CancelledError:
            reset(writer)
            raise
        self._counts.accepted += 1
        connection = _Connection(self, (reader, writer), server)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)

    def _count(self, direction: Direction, size: int) -> None:
        if direction == "up":
            self._counts.bytes_up += size
        else:
            self._counts.bytes_down += size


class _Connection:
    """A client's connection and the one to the server."""

    def __init__(
        self,
        edge: Edge,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._edge = edge
        self._client_reader, self._client = client
        self._server_reader, self._server = server
        self._stranded = False
        self._flows: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Until both directions have ended, or one has broken."""
        up = self._flow("up", self._read_request if self._edge._kafka else self._read_up, self._server)
        down = self._flow("down", lambda: self._server_reader.read(CHUNK_BYTES), self._client)
        self._flows = asyncio.create_task(_both(up, down))
        try:
            await self._flows
        except* (
            OSError,
            asyncio.CancelledError,
            ValueError,
        ):  # ValueError: no Kafka client; a broker would hang up too
            if self._stranded:
                await self._hear_nothing()
            self._end(reset)
        else:
            self._end(lambda writer: writer.close())

    def cut(self) -> bool:
        """End it for both sides."""
        self._edge._counts.reset += 1
        self._end(reset)
        return self._flows is not None and self._flows.cancel()

    def strand(self) -> bool:
        """End it for the server alone."""
        if self._stranded:
            return False
        self._stranded = True
        self._edge._counts.stranded += 1
        reset(self._server)
        return self._flows is not None and self._flows.cancel()

    def _end(self, how: Callable[[asyncio.StreamWriter], None]) -> None:
        how(self._client)
        how(self._server)

    async def _hear_nothing(self) -> None:
        """Take whatever the client sends, until it gives up."""
        try:
            while await self._client_reader.read(CHUNK_BYTES):
                pass
        except OSError:
            return

    def _flow(self, direction: Direction, read: Any, writer: asyncio.StreamWriter) -> Flow:
        edge = self._edge
        return Flow(
            direction=direction,
            climate=edge._climate,
            read=read,
            writer=writer,
            passed=lambda size: edge._count(direction, size),
        )

    async def _read_up(self) -> bytes:
        return await self._client_reader.read(CHUNK_BYTES)

    async def _read_request(self) -> bytes | None:
        """The next request; None if it is held."""
        frame = await read_frame(self._client_reader)
        held = self._edge._traps.meet(parse(frame)) if frame else None
        if held is None:
            return frame
        if held.hold.drop_after_ms is not None:
            self._edge._proxy.keep(self._drop(held, held.hold.drop_after_ms))
            self._edge._proxy.keep(self._release(held))
        elif held.hold.others_wait:
            await self._go_on(held)
        else:
            self._edge._proxy.keep(self._go_on(held))
        return None

    async def _drop(self, held: Held, after_ms: int) -> None:
        await asyncio.sleep(after_ms / 1_000)
        held.dropped_ms = self._edge._proxy.clock.monotonic_ms()
        self.cut()

    async def _release(self, held: Held) -> None:
        await asyncio.sleep(held.hold.hold_ms / 1_000)
        try:
            await release(held, self._edge._upstream, self._edge._proxy.clock)
        except (OSError, TimeoutError):
            return  # the broker was away: the record says so, by lacking an answer

    async def _go_on(self, held: Held) -> None:
        await asyncio.sleep(held.hold.hold_ms / 1_000)
        if not self._server.is_closing():
            self._server.write(held.request.frame)
            held.released_ms = self._edge._proxy.clock.monotonic_ms()


async def _both(up: Flow, down: Flow) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(up.run())
        group.create_task(down.run())


class Proxy:
    """Context manager. `seed` decides jitter and random resets."""

    def __init__(self, *, seed: int, clock: Clock | None = None) -> None:
        self.seed = seed
        self.clock: Clock = clock or SystemClock()
        self.edges: dict[str, Edge] = {}
        self._loop = asyncio.new_event_loop()
        self._kept: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Everything is cut, and what is held is never released."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(CONTROL_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CONTROL_S)
        self._loop.close()

    def edge(self, name: str, upstream: Address, *, port: int = 0, kafka: bool = False) -> Edge:
        """Listen for the clients of an edge (port 0: any free one). `kafka`: read request frames, so that `hold` works."""

        async def listen() -> Edge:
            edge = Edge(self, name, upstream, kafka=kafka)
            server = await asyncio.start_server(edge._serve, HOST, port)
            edge.port = server.sockets[0].getsockname()[1]
            self._servers.append(server)
            return edge

        made = asyncio.run_coroutine_threadsafe(listen(), self._loop).result(CONTROL_S)
        self.edges[name] = made
        return made

    def call(self, what: Callable[[], _T]) -> _T:
        """Run it on the loop and wait for its result."""
        done: Future[_T] = Future()

        def run() -> None:
            try:
                done.set_result(what())
            except Exception as error:  # noqa: BLE001 - the asker gets it
                done.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return done.result(CONTROL_S)

    def keep(self, work: Any) -> None:
        """On the loop: run beside everything else, past the end of the connection that it began on."""
        task = self._loop.create_task(work)
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(TURNS_TO_CLOSE):
            await asyncio.sleep(0)
