"""The HTTP surface."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from laxity.infra.demo.provider.answers import Answer, failure
from laxity.infra.demo.provider.ledger import LedgerError
from laxity.infra.demo.provider.wire import BODY_BYTES_MAX, InvalidCallError, parse_call, parse_origin

if TYPE_CHECKING:
    from laxity.infra.demo.provider.service import Provider

_CLIENT_LEFT = 499  # nobody reads it; named so in many access logs


class _Surface:
    """Routes of one provider."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        metrics = self._provider.metrics
        with metrics.in_flight.track_inprogress(), metrics.seconds.time():
            try:
                answer = await self._answer(request)
            except ClientDisconnect:  # left before the request was complete: there was no call
                return Response(status_code=_CLIENT_LEFT)
            except LedgerError as error:
                answer = failure(500, str(error), kind="server_error", code="ledger")
        return JSONResponse(dict(answer.body), status_code=answer.status, headers=dict(answer.headers))

    async def _answer(self, request: Request) -> Answer:
        try:
            call = parse_call(request.headers, await _body(request))
        except InvalidCallError as error:
            return await self._provider.reject(parse_origin(request.headers), error)
        return await self._provider.call(call)

    async def effect(self, request: Request) -> Response:
        """GET /v1/effects/KEY: what became of the calls under an Idempotency-Key. It is no call: nothing is done or counted."""
        answer = self._provider.effect_of(request.path_params["key"])
        return JSONResponse(dict(answer.body), status_code=answer.status)

    async def models(self, _request: Request) -> Response:
        """GET /v1/models: OpenAI's list, with each model's limits as they are enforced, and the speed."""
        data = [
            {"id": name, "object": "model", "created": 0, "owned_by": "laxity", "limits": limits}
            for name, limits in self._provider.limits.items()
        ]
        return JSONResponse({"object": "list", "data": data, "speed": self._provider.speed})

    async def livez(self, _request: Request) -> Response:
        """GET /livez: the loop turns."""
        return PlainTextResponse("ok")

    async def readyz(self, _request: Request) -> Response:
        """GET /readyz: calls can be recorded."""
        ready = self._provider.healthy
        return PlainTextResponse("ok" if ready else "ledger failed", status_code=200 if ready else 503)

    async def metrics(self, _request: Request) -> Response:
        """GET /metrics."""
        return Response(self._provider.metrics.text(), media_type="text/plain; version=0.0.4")


def build_app(provider: Provider) -> Starlette:
    """The ASGI application of this provider. The bearer key that clients send is not looked at."""
    surface = _Surface(provider)
    return Starlette(
        routes=[
            Route("/v1/chat/completions", surface.chat, methods=["POST"]),
            Route("/v1/effects/{key}", surface.effect),
            Route("/v1/models", surface.models),
            Route("/livez", surface.livez),
            Route("/readyz", surface.readyz),
            Route("/metrics", surface.metrics),
        ]
    )


async def _body(request: Request) -> bytes:
    """The whole body, given up once it is too large."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise InvalidCallError(f"the body is larger than {BODY_BYTES_MAX} bytes", status=413)
    return bytes(body)
