"""The client side of one provider call: the request as it travels in a trigger, and what an answer or its absence means."""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any, Final

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from laxity.consumers.context import AgentContext
from laxity.consumers.errors import Fail, NotApplied, OutcomeUnknown, Retry
from laxity.infra.demo.provider.answers import NO_EFFECT
from laxity.schemas.settings import settings

CONNECT_TIMEOUT_S: Final = 5.0  # the provider is on this machine; a restart takes about a second
ANSWER_TIMEOUT_S: Final = 60.0  # three times the longest call of the traces at speed 1
KEEP_ALIVE_S: Final = 30.0  # shorter than the server's, so that no request meets a closing connection
TEXT_SHOWN_MAX: Final = 200  # characters of a completion that are kept as the result
MESSAGE_MAX: Final = 300  # characters of a provider's message that are passed on


class Prompt(BaseModel):
    """The payload of the demonstration's triggers. `max_tokens` bounds `generate_tokens`, which is what the model is made to write."""

    model_config = ConfigDict(frozen=True)

    model: str
    text: str
    context_tokens: int = Field(ge=0)
    generate_tokens: int = Field(ge=0)
    max_tokens: int = Field(ge=1)

    @property
    def charge(self) -> int:
        """LLM tokens that the provider takes from its limit when the call arrives."""
        return self.context_tokens + self.max_tokens


class Completion(BaseModel):
    """The result of a task: the beginning of the text, and what it took."""

    model_config = ConfigDict(frozen=True)

    id: str
    text: str
    tokens_in: int
    tokens_out: int
    replayed: bool = False  # an earlier attempt had done it


async def complete(ctx: AgentContext, prompt: Prompt) -> Completion:
    """One chat completion, in this task's turn and under its key.

    Retry: the call surely had no effect. OutcomeUnknown: it may have had one. Fail: it never will.
    """
    await ctx.call(prompt.model, prompt.charge)
    try:
        response = await _client(asyncio.get_running_loop()).post(
            f"{_base_url()}/v1/chat/completions", json=_body(ctx, prompt), headers=_headers(ctx, prompt)
        )
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
        raise Retry("provider_unreachable", _text(error)) from error
    except httpx.TransportError as error:
        raise OutcomeUnknown(f"no answer to a call that was sent: {_text(error)}") from error
    ctx.used(prompt.model, prompt.charge)
    return _count(ctx, _judge(response))


async def ask_effect(ctx: AgentContext) -> Completion:
    """What an earlier attempt of this task did, if anything: the provider knows by the key. NotApplied: nothing. OutcomeUnknown: not yet decided."""
    try:
        response = await _client(asyncio.get_running_loop()).get(
            f"{_base_url()}/v1/effects/{ctx.idempotency_key()}"
        )
    except httpx.TransportError as error:
        raise OutcomeUnknown(f"the provider cannot be asked: {_text(error)}") from error
    if response.status_code == httpx.codes.NOT_FOUND:
        raise NotApplied
    if response.status_code != httpx.codes.OK:
        raise OutcomeUnknown(_said(response))
    return _count(ctx, _parse(response, replayed=True))


def _judge(response: httpx.Response) -> Completion:
    status = response.status_code
    if status == httpx.codes.OK:
        return _parse(response, replayed=response.headers.get("idempotent-replayed") == "true")
    if status == httpx.codes.TOO_MANY_REQUESTS:
        if response.headers.get("x-should-retry") == "false":
            raise Fail("never_fits", _said(response))
        raise Retry("rate_limited", _said(response), retry_after_ms=_retry_after_ms(response))
    if status >= httpx.codes.INTERNAL_SERVER_ERROR:
        if _error(response).get("code") == NO_EFFECT:
            raise Retry("provider_error", _said(response))
        raise OutcomeUnknown(_said(response))  # it may have failed after the effect
    raise Fail("provider_refused", _said(response))


def _count(ctx: AgentContext, completion: Completion) -> Completion:
    ctx.usage(tokens_in=completion.tokens_in, tokens_out=completion.tokens_out, requests=1)
    return completion


def _parse(response: httpx.Response, *, replayed: bool) -> Completion:
    """An answer that cannot be read says nothing about the effect."""
    try:
        body = response.json()
        usage = body["usage"]
        return Completion(
            id=body["id"],
            text=body["choices"][0]["message"]["content"][:TEXT_SHOWN_MAX],
            tokens_in=usage["prompt_tokens"],
            tokens_out=usage["completion_tokens"],
            replayed=replayed,
        )
    except (ValueError, KeyError, TypeError, IndexError, ValidationError) as error:
        raise OutcomeUnknown(
            f"status 200, but no completion: {type(error).__name__} {_text(error)}"
        ) from error


def _body(ctx: AgentContext, prompt: Prompt) -> dict[str, Any]:
    """The same on every attempt: a key stands for one request."""
    return {
        "model": prompt.model,
        "messages": [{"role": "user", "content": prompt.text}],
        "max_tokens": prompt.max_tokens,
        "user": ctx.tenant,
    }


def _headers(ctx: AgentContext, prompt: Prompt) -> dict[str, str]:
    """The sizes go beside the request, so that a recorded one needs no megabytes of made-up text."""
    return {
        "Idempotency-Key": ctx.idempotency_key(),
        "X-Laxity-Task": ctx.task_id,
        "X-Laxity-Tenant": ctx.tenant,
        "X-Laxity-Context": str(prompt.context_tokens),
        "X-Laxity-Generate": str(prompt.generate_tokens),
    }


def _retry_after_ms(response: httpx.Response) -> int:
    """OpenAI's exact wait, else HTTP's in whole seconds, else no wish."""
    exact, whole = response.headers.get("retry-after-ms", ""), response.headers.get("retry-after", "")
    if exact.isdecimal():
        return int(exact)
    return int(whole) * 1_000 if whole.isdecimal() else 0


def _error(response: httpx.Response) -> dict[str, Any]:
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}


def _said(response: httpx.Response) -> str:
    return f"{response.status_code}: {str(_error(response).get('message', ''))[:MESSAGE_MAX]}"


def _text(error: BaseException) -> str:
    return (str(error) or type(error).__name__)[:MESSAGE_MAX]


def _base_url() -> str:
    url = _provider_url()
    if not url:
        raise Fail("no_provider", "LAXITY_PROVIDER_URL is not set: the runner does not know whom to call")
    return url


@cache
def _provider_url() -> str:
    return settings().provider_url.rstrip("/")


@cache
def _client(_of: asyncio.AbstractEventLoop) -> httpx.AsyncClient:
    """One per event loop: its connections belong to it. It lives as long as the runner."""
    return httpx.AsyncClient(
        timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        limits=httpx.Limits(
            max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEP_ALIVE_S
        ),
        trust_env=False,  # a proxy of the user's is not for a server on loopback
    )
