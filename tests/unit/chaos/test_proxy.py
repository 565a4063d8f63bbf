"""Each fault of the proxy bites, seen from both ends of plain sockets."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random  # noqa: TID251 - seeded

import pytest
from chaos.holding import ADD_PARTITIONS_TO_TXN, END_TXN, PRODUCE, Held, Hold, parse
from chaos.proxy import CLEAR, Edge, Proxy, Weather

from laxity.schemas.timing import SystemClock

CLOCK = SystemClock()
WAIT_S = 10.0
SOON_S = 0.15  # how long "nothing comes" is watched


def wait_for(what: Callable[[], object], text: str) -> None:
    until, pause = CLOCK.monotonic_ms() + WAIT_S * 1_000, threading.Event()
    while not what():
        assert CLOCK.monotonic_ms() < until, text
        pause.wait(0.01)


class Server:
    """A listener whose accepted connections the test itself reads and writes."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(WAIT_S)
        self.address: tuple[str, int] = self._listener.getsockname()
        self._open: list[socket.socket] = [self._listener]

    def accept(self) -> socket.socket:
        made, _ = self._listener.accept()
        return self.keep(made)

    def keep(self, made: socket.socket) -> socket.socket:
        made.settimeout(WAIT_S)
        self._open.append(made)
        return made

    def close(self) -> None:
        for each in self._open:
            each.close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy(seed=1) as made:
        yield made


@pytest.fixture
def edge(proxy: Proxy, server: Server) -> Edge:
    return proxy.edge("plain", server.address)


def connect(edge: Edge, server: Server) -> socket.socket:
    return server.keep(socket.create_connection(("127.0.0.1", edge.port)))


def pair(edge: Edge, server: Server) -> tuple[socket.socket, socket.socket]:
    """A client's end and the server's end of one connection, which the proxy counts by now."""
    before = edge.counts().accepted
    client = connect(edge, server)
    served = server.accept()
    wait_for(lambda: edge.counts().accepted > before, "the proxy has both ends")
    return client, served


def receive(end: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        piece = end.recv(size - len(found))
        assert piece, f"the stream ended after {len(found)} of {size} bytes"
        found += piece
    return found


def hears_nothing(end: socket.socket) -> bool:
    end.settimeout(SOON_S)
    try:
        end.recv(1)
    except TimeoutError:
        return True
    else:
        return False
    finally:
        end.settimeout(WAIT_S)


def is_reset(end: socket.socket) -> bool:
    try:
        return end.recv(1) != b"" and False
    except ConnectionResetError:
        return True


def test_bytes_pass_unchanged_in_order_and_the_end_too(edge: Edge, server: Server) -> None:
    edge.turn(Weather(delay_ms=1, jitter_ms=20))
    client, served = pair(edge, server)
    sent = Random(1).randbytes(2_000_000)

    def write() -> None:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)

    writer = threading.Thread(target=write)
    writer.start()
    assert receive(served, len(sent)) == sent
    assert served.recv(1) == b""
    served.sendall(sent[:1_000])
    served.close()
    assert receive(client, 1_000) == sent[:1_000]
    assert client.recv(1) == b""
    writer.join()
    wait_for(lambda: not edge.connections(), "the connection is over")
    assert edge.counts().bytes_up == len(sent)
    assert edge.counts().bytes_down == 1_000


def test_delay_counts_each_way(edge: Edge, server: Server) -> None:
    client, served = pair(edge, server)
    edge.turn(Weather(delay_ms=150))
    begun = CLOCK.monotonic_ms()
    client.sendall(b"x")
    receive(served, 1)
    served.sendall(b"y")
    receive(client, 1)
    assert CLOCK.monotonic_ms() - begun >= 300


def test_a_throttled_direction_takes_its_time(edge: Edge, server: Server) -> None:
    client, served = pair(edge, server)
    edge.turn(Weather(bytes_per_s=400_000))
    begun = CLOCK.monotonic_ms()
    client.sendall(bytes(200_000))
    receive(served, 200_000)
    assert CLOCK.monotonic_ms() - begun >= 300, "200 kB at 400 kB/s, but for the last piece"


@pytest.mark.parametrize("blocked", ["up", "down"])
def test_a_partition_of_one_direction_lets_the_other_pass_and_loses_nothing(
    edge: Edge, server: Server, blocked: str
) -> None:
    client, served = pair(edge, server)
    edge.turn(replace(CLEAR, **{blocked: False}))
    client.sendall(b"up")
    served.sendall(b"down")
    deaf, hearing, said = (served, client, b"down") if blocked == "up" else (client, served, b"up")
    assert receive(hearing, len(said)) == said
    assert hears_nothing(deaf)
    edge.turn(CLEAR)
    assert receive(deaf, 2) in {b"up", b"do"}


@pytest.mark.parametrize("ends", ["in order", "reset"])
def test_a_partition_keeps_back_the_end_of_a_connection(edge: Edge, server: Server, ends: str) -> None:
    client, served = pair(edge, server)
    edge.turn(Weather(up=False))
    if ends == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    assert hears_nothing(served)
    edge.turn(CLEAR)
    if ends == "reset":
        assert is_reset(served)
    else:
        assert served.recv(1) == b""


def test_a_cut_resets_both_sides_and_only_what_is_open_now(edge: Edge, server: Server) -> None:
    client, served = pair(edge, server)
    assert edge.cut() == 1
    assert is_reset(client)
    assert is_reset(served)
    again, served_again = pair(edge, server)
    again.sendall(b"x")
    assert receive(served_again, 1) == b"x"
    assert edge.counts().reset == 1


def test_a_stranded_client_hears_nothing_while_the_server_is_told(edge: Edge, server: Server) -> None:
    client, served = pair(edge, server)
    assert edge.strand() == 1
    assert is_reset(served)
    client.sendall(b"is anybody there?")
    assert hears_nothing(client)
    assert edge.connections() == 1
    _, served_again = pair(edge, server)
    assert hears_nothing(served_again), "what a stranded client sends arrives nowhere"
    client.close()
    wait_for(lambda: edge.connections() == 1, "the stranded connection is over once the client gives up")
    assert edge.counts().stranded == 1


def test_an_edge_that_accepts_nobody(edge: Edge, server: Server) -> None:
    edge.turn(Weather(accepts=False))
    assert is_reset(connect(edge, server))
    assert edge.counts().refused == 1


def test_every_piece_may_be_the_last(edge: Edge, server: Server) -> None:
    client, served = pair(edge, server)
    edge.turn(Weather(resets=1.0))
    client.sendall(b"x")
    assert is_reset(client)
    assert is_reset(served)


def test_a_server_that_is_not_there(proxy: Proxy, server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = taken.getsockname()
    edge = proxy.edge("nowhere", address)
    assert is_reset(connect(edge, server))
    assert edge.counts().unreachable == 1


# Kafka's requests


def request(api_key: int, correlation: int, body: bytes = b"", client_id: str = "me") -> bytes:
    name = client_id.encode()
    header = struct.pack(">hhih", api_key, 1, correlation, len(name)) + name
    return struct.pack(">i", len(header) + len(body)) + header + body


@pytest.fixture
def broker(proxy: Proxy, server: Server) -> Edge:
    return proxy.edge("broker", server.address, kafka=True)


def only(edge: Edge) -> Held:
    (held,) = edge.held()
    return held


def test_a_request_is_read_for_what_it_is() -> None:
    found = parse(request(END_TXN, 7, b"body", "laxity-scheduler"))
    assert (found.api_key, found.version, found.correlation) == (END_TXN, 1, 7)
    assert (found.client_id, found.body) == ("laxity-scheduler", b"body")
    with pytest.raises(ValueError, match="no header"):
        parse(b"\0\0\0\2\0\0")


def test_one_request_is_held_and_the_others_pass(broker: Edge, server: Server) -> None:
    client, served = pair(broker, server)
    broker.hold(Hold(api_key=END_TXN, hold_ms=200, part=b"mine"))
    other, mine, later = request(END_TXN, 1, b"other"), request(END_TXN, 2, b"mine"), request(PRODUCE, 3)
    client.sendall(other + mine + later)
    assert receive(served, len(other + later)) == other + later
    assert receive(served, len(mine)) == mine
    wait_for(lambda: only(broker).landed(), "released")
    assert broker.requests() == {END_TXN: 2, PRODUCE: 1}
    client.sendall(mine)
    assert receive(served, len(mine)) == mine, "a trap holds once"


def test_the_requests_behind_a_held_one_may_wait_too(broker: Edge, server: Server) -> None:
    client, served = pair(broker, server)
    broker.hold(Hold(api_key=END_TXN, hold_ms=300, others_wait=True))
    held, later = request(END_TXN, 1), request(PRODUCE, 2)
    client.sendall(held + later)
    assert hears_nothing(served)
    assert receive(served, len(held + later)) == held + later


def test_old_bytes_come_after_their_retry_on_a_connection_of_their_own(broker: Edge, server: Server) -> None:
    client, served = pair(broker, server)
    broker.hold(Hold(api_key=END_TXN, hold_ms=400, drop_after_ms=0))
    old, retry = request(END_TXN, 1, b"commit"), request(END_TXN, 9, b"commit")
    client.sendall(old)
    assert is_reset(client)
    assert is_reset(served)
    client, served = pair(broker, server)
    client.sendall(retry)
    assert receive(served, len(retry)) == retry
    assert not only(broker).landed()
    assert only(broker).reused_ms is None
    begin = request(ADD_PARTITIONS_TO_TXN, 10, b"commi" + b"partitions")
    client.sendall(begin)
    assert receive(served, len(begin)) == begin
    assert only(broker).reused_ms is not None
    late = server.accept()
    assert receive(late, len(old)) == old
    late.sendall(struct.pack(">iiih", 10, 1, 0, 47))
    wait_for(lambda: only(broker).landed(), "answered")
    assert only(broker).error_code() == 47


def test_old_bytes_that_nobody_sent_again_are_no_fault_that_landed(broker: Edge, server: Server) -> None:
    client, _ = pair(broker, server)
    broker.hold(Hold(api_key=END_TXN, hold_ms=50, drop_after_ms=0))
    client.sendall(request(END_TXN, 1, b"commit"))
    late = server.accept()
    late.sendall(struct.pack(">iiih", 10, 1, 0, 0))
    wait_for(lambda: only(broker).answer, "answered")
    assert not only(broker).landed()


def test_traps_can_be_taken_away(broker: Edge, server: Server) -> None:
    client, served = pair(broker, server)
    first, second = (Hold(api_key=END_TXN, hold_ms=60_000, name=name) for name in ("first", "second"))
    broker.hold(first)
    broker.hold(second)
    assert broker.disarm(first) == 1
    assert broker.disarm(first) == 0
    assert broker.disarm() == 1
    client.sendall(request(END_TXN, 1))
    assert receive(served, 1)
    assert not broker.held()
