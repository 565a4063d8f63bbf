"""The provider as a server: inside a test or as a process of its own."""

from __future__ import annotations

import asyncio
import signal
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import uvicorn

from laxity.infra.demo.provider.app import build_app
from laxity.infra.demo.provider.ledger import Ledger, LedgerError, open_ledger
from laxity.infra.demo.provider.service import Provider
from laxity.schemas.timing import SystemClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from laxity.infra.demo.provider.settings import ProviderSettings
    from laxity.schemas.timing import Clock

KEEP_ALIVE_S = (
    75  # longer than clients keep idle connections, so that theirs are never closed under a request
)
STARTED_POLL_S = 0.01
START_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningProvider:
    """A provider that answers at `url`, e.g. http://127.0.0.1:41234."""

    url: str
    settings: ProviderSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What a start has to put away again."""

    ledger: Ledger
    listener: socket.socket
    server: uvicorn.Server
    url: str


@asynccontextmanager
async def running_provider(
    settings: ProviderSettings, *, clock: Clock | None = None
) -> AsyncIterator[RunningProvider]:
    """A provider on the running loop; leaving drains its calls. Raises `LedgerError` if its ledger is not usable."""
    parts = _start(settings, clock or SystemClock())
    serving = asyncio.create_task(parts.server.serve(sockets=[parts.listener]))
    try:
        await _started(parts.server, serving)
        yield RunningProvider(url=parts.url, settings=settings)
    finally:
        parts.server.should_exit = True
        try:
            await serving
        finally:
            await parts.ledger.close()


async def serve_until_stopped(
    settings: ProviderSettings, *, on_ready: Callable[[RunningProvider], None]
) -> None:
    """Serve until SIGTERM or SIGINT, drain for at most `drain_ms`, return.

    Raises `LedgerError` if the ledger could not be opened or failed on the way, `OSError` if the port is taken.
    """
    parts = _start(settings, SystemClock())
    # uvicorn raises SIGTERM again once it has drained; this handler makes that an ordinary end
    signal.signal(signal.SIGTERM, lambda *_: setattr(parts.server, "should_exit", True))
    serving = asyncio.create_task(parts.server.serve(sockets=[parts.listener]))
    try:
        await _started(parts.server, serving)
        on_ready(RunningProvider(url=parts.url, settings=settings))
        await serving
        if parts.ledger.error is not None:
            raise parts.ledger.error
    finally:
        await parts.ledger.close()


def _start(settings: ProviderSettings, clock: Clock) -> _Parts:
    """Listen first: a port that is taken leaves the ledger alone."""
    listener = _listen(settings.host, settings.port)
    try:
        ledger, lines = open_ledger(settings.ledger, on_failure=lambda: setattr(server, "should_exit", True))
    except LedgerError:
        listener.close()
        raise
    provider = Provider(settings=settings, ledger=ledger, lines=lines, clock=clock)
    server = uvicorn.Server(
        uvicorn.Config(
            build_app(provider),
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=-(-settings.drain_ms // 1_000),
        )
    )
    return _Parts(ledger=ledger, listener=listener, server=server, url=_url(listener))


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. It names its protocol: only then does asyncio set TCP_NODELAY, without 40 ms per answer."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # a restart takes its port again at once
        listener.bind(address)
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _started(server: uvicorn.Server, serving: asyncio.Task[None]) -> None:
    async with asyncio.timeout(START_TIMEOUT_S):
        while not (server.started or serving.done()):  # noqa: ASYNC110  uvicorn has no event for it
            await asyncio.sleep(STARTED_POLL_S)
