"""A Redis with users, over TLS: its own where it was built with it, else a relay that ends TLS in front of it."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import redis
from security.broker import free_ports
from security.certificates import Authority, Certificate
from security.waiting import until

from laxity.infra.local.redis_server import find_redis_server

STOP_S = 20
CHUNK = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class SecureRedis:
    """`plain` is for the test's own administrator, on loopback; `host` is where TLS with client certificates is asked."""

    host: str
    plain: str
    own_tls: bool
    ca: Path
    client: Certificate
    password: str
    log: Path

    def url(self, user: str = "", password: str = "", *, certificate: bool = True) -> str:
        """rediss:// with everything that it takes."""
        mine = f"&ssl_certfile={self.client.certificate}&ssl_keyfile={self.client.key}" if certificate else ""
        login = f"{user}:{password}@" if password else f"{user}@" if user else ""
        return f"rediss://{login}{self.host}/0?ssl_ca_certs={self.ca}{mine}"

    @property
    def administrator(self) -> str:
        return self.url("default", self.password)


@contextmanager
def running(folder: Path, authority: Authority, password: str) -> Iterator[SecureRedis]:
    """Until the block ends."""
    folder.mkdir(parents=True)
    plain, secure = free_ports(2)
    own, client = authority.issue("redis"), authority.issue("redis-client")
    process, own_tls = _start(folder, authority, own, (plain, secure), password)
    found = SecureRedis(
        host=f"127.0.0.1:{secure}",
        plain=f"redis://:{password}@127.0.0.1:{plain}/0",
        own_tls=own_tls,
        ca=authority.ca,
        client=client,
        password=password,
        log=folder / "log",
    )
    relay = None if own_tls else Relay(secure, plain, _context(authority, own))
    try:
        until("Redis answers over TLS", lambda: _answers(found.administrator), STOP_S)
        yield found
    finally:
        if relay is not None:
            relay.stop()
        process.terminate()
        process.wait(STOP_S)


def _start(
    folder: Path, authority: Authority, own: Certificate, ports: tuple[int, int], password: str
) -> tuple[subprocess.Popen[bytes], bool]:
    """With TLS of its own if it can."""
    plain, secure = ports
    users = folder / "users.acl"
    users.touch(mode=0o600)
    users.write_text(f"user default on >{password} ~* &* +@all\n")
    lines = [
        *(
            "bind 127.0.0.1",
            f"port {plain}",
            f'dir "{folder}"',
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
        ),
        *("maxmemory-policy noeviction", f'aclfile "{users}"', "acllog-max-len 1024"),
    ]
    tls = [
        *(f"tls-port {secure}", f'tls-cert-file "{own.certificate}"', f'tls-key-file "{own.key}"'),
        *(f'tls-ca-cert-file "{authority.ca}"', "tls-auth-clients yes"),
    ]
    for more in (tls, []):
        conf = folder / "redis.conf"
        conf.touch(mode=0o600)
        conf.write_text("\n".join([*lines, *more, ""]))
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen([str(find_redis_server().path), str(conf)], stdout=log, stderr=log)
        url = f"redis://:{password}@127.0.0.1:{plain}/0"
        until("Redis answers, or takes no TLS", lambda: _answers(url) or process.poll() is not None, STOP_S)  # noqa: B023
        if process.poll() is None:
            return process, bool(more)
    raise AssertionError((folder / "log").read_text())


def _answers(url: str) -> bool:
    with suppress(redis.RedisError), redis.Redis.from_url(url, socket_timeout=1) as client:
        return bool(client.ping())
    return False


def _context(authority: Authority, own: Certificate) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.ca))
    context.load_cert_chain(own.certificate, own.key)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


class Relay:
    """Ends TLS with client certificates and passes the bytes on, on a thread of its own."""

    def __init__(self, port: int, to: int, context: ssl.SSLContext) -> None:
        self._to = to
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _loop, _context: None)  # handshakes that a test lets fail
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", port, ssl=context)
        )
        self._thread = threading.Thread(target=self._loop.run_forever, name="tls-relay")
        self._thread.start()

    def stop(self) -> None:
        """Close the port and all connections."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(STOP_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_S)
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            inner, outer = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            writer.close()
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_copy(reader, outer))
                group.create_task(_copy(inner, writer))
        finally:
            for end in (writer, outer):
                end.close()
                with suppress(OSError):
                    await end.wait_closed()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until one side closes; then the other is closed, too."""
    try:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()
