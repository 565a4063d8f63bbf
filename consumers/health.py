"""`/livez`, `/readyz` and `/metrics` of a runner on one port, served by a thread of its own: it answers even while the event loop hangs."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from laxity.consumers.errors import RunnerConfigError

END_S: Final = 3.0  # a scrape that is under way may finish

Check = Callable[[], bool]


@contextmanager
def serving(
    *, host: str, port: int, alive: Check, ready: Check, registry: CollectorRegistry
) -> Iterator[int]:
    """The port that is served while inside; 0 takes a free one. RunnerConfigError if it is taken."""
    listener = _listen(host, port)
    routes = [
        Route("/livez", _probe(alive, "a loop hangs")),
        Route("/readyz", _probe(ready, "not registered with a partition")),
        Route("/metrics", _metrics(registry)),
    ]
    config = uvicorn.Config(
        Starlette(routes=routes),
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), name="runner-http", daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(END_S)
        listener.close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise RunnerConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error


def _probe(check: Check, wrong: str) -> Callable[[Request], Response]:
    def answer(_: Request) -> Response:
        good = check()
        return PlainTextResponse("ok\n" if good else f"{wrong}\n", status_code=200 if good else 503)

    return answer


def _metrics(registry: CollectorRegistry) -> Callable[[Request], Response]:
    def answer(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return answer
