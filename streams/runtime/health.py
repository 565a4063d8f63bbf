"""`/livez`, `/readyz` and `/metrics` on one port: starlette on uvicorn, in a thread of its own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

CLOSE_S_MAX = 5.0

Problems = Callable[[], list[str]]
"""What is wrong, one line each; empty: nothing."""


class HealthError(Exception):
    """The port cannot be served."""


def application(*, live: Problems, ready: Problems, registry: CollectorRegistry) -> Starlette:
    """The three routes. 503 with the problems where there are any."""

    def check(problems: Problems) -> Callable[[Request], Response]:
        def answer(_: Request) -> Response:
            found = problems()
            return JSONResponse({"ok": not found, "problems": found}, status_code=503 if found else 200)

        return answer

    def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return Starlette(
        routes=[
            Route("/livez", check(live)),
            Route("/readyz", check(ready)),
            Route("/metrics", metrics),
        ]
    )


class HealthServer:
    """Serves an application until closed. Raises HealthError, as when the port is taken."""

    def __init__(self, app: Starlette, *, host: str, port: int) -> None:
        """Port 0: a free one, see `port`."""
        try:
            self._socket = socket.create_server((host, port))
        except OSError as error:
            raise HealthError(f"cannot serve {host}:{port}: {error}") from error
        self.port = int(self._socket.getsockname()[1])
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")
        self._server = uvicorn.Server(config)  # outside the main thread it leaves signals alone
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="health", daemon=True
        )

    def start(self) -> None:
        """Connections are accepted from the construction on and answered from now on."""
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(CLOSE_S_MAX)
        self._socket.close()
