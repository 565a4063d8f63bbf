"""What is sent back: OpenAI's shapes for a completion, an error and the rate-limit headers.

A completion is a function of its ledger line alone, so a replay after a restart is the first answer again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING, Any

from laxity.infra.demo.draws import draw_integer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from laxity.infra.demo.provider.limits import ModelBuckets, Shortage
    from laxity.infra.demo.provider.line import Line
    from laxity.infra.demo.provider.wire import InvalidCallError

NO_EFFECT = "no_effect"  # code of an error: the call surely did nothing
INJECTED_WAIT_MS = 1_000  # what an injected 429 asks for at speed 1
_WORDS = ("the", "day", "has", "six", "big", "red", "old", "new")  # with a space: one token each


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Status, JSON body and extra headers of one response."""

    status: int
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)


def completion(line: Line, *, max_tokens: int) -> Answer:
    """The chat completion of an effect."""
    mark = draw_integer(0, "completion", line.identity, line.ts_ms)
    text = " ".join(_WORDS[(mark + index) % len(_WORDS)] for index in range(line.tokens_out))
    reason = "length" if line.tokens_out >= max_tokens else "stop"
    message = {"role": "assistant", "content": text, "refusal": None}
    return Answer(
        status=200,
        body={
            "id": f"chatcmpl-{mark:016x}",
            "object": "chat.completion",
            "created": line.ts_ms // 1_000,
            "model": line.model,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
            "usage": {
                "prompt_tokens": line.tokens_in,
                "completion_tokens": line.tokens_out,
                "total_tokens": line.tokens_in + line.tokens_out,
            },
        },
    )


def failure(
    status: int,
    message: str,
    *,
    kind: str,
    code: str | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """An error in OpenAI's shape."""
    error = {"message": message, "type": kind, "param": param, "code": code}
    return Answer(status=status, body={"error": error}, headers=headers or {})


def no_room(model: str, shortage: Shortage) -> Answer:
    """429 for want of room, with the time after which the same call fits; one that never fits says so."""
    message = f"{model}: {shortage.asked} {shortage.unit} asked, {shortage.remaining} of {shortage.limit} per minute left"
    if shortage.wait_ms < 0:
        headers = {"x-should-retry": "false"}  # OpenAI's own clients heed it
        message += "; a call of this size never fits"
    else:
        headers = retry_headers(shortage.wait_ms)
        message += f"; room again in {duration(shortage.wait_ms)}"
    return failure(429, message, kind=shortage.unit, code="rate_limit_exceeded", headers=headers)


def injected_429(model: str, speed: float) -> Answer:
    """429 although there is room."""
    message = f"{model}: refused although there is room: injected"
    headers = retry_headers(max(1, round(INJECTED_WAIT_MS / speed)))
    return failure(429, message, kind="requests", code="rate_limit_exceeded", headers=headers)


def injected_500() -> Answer:
    """A call that failed on the way; it had no effect."""
    return failure(500, "the model failed: injected", kind="server_error", code=NO_EFFECT)


def injected_loss() -> Answer:
    """A call that failed after its effect; nothing in the answer says so."""
    return failure(500, "the answer was lost: injected", kind="server_error")


def invalid(error: InvalidCallError) -> Answer:
    """A request that is no call."""
    return failure(error.status, str(error), kind="invalid_request_error", param=error.param)


def key_reused(key: str) -> Answer:
    """400 as Stripe answers: a key stands for one request."""
    message = f"Idempotency-Key {key!r} was used with another request body"
    return failure(400, message, kind="idempotency_error", code="idempotency_key_reused")


def effect_unsettled(key: str) -> Answer:
    """409: nobody can say yet."""
    return failure(
        409, f"a call under Idempotency-Key {key!r} is under way", kind="idempotency_error", code="in_flight"
    )


def effect_unknown(key: str) -> Answer:
    """404: no call under the key had an effect, and none is under way."""
    return failure(404, f"no effect under Idempotency-Key {key!r}", kind="idempotency_error", code=NO_EFFECT)


def unknown_model(model: str, models: tuple[str, ...]) -> Answer:
    """404 with what there is."""
    message = f"model {model[:100]!r} is not on offer; there is {', '.join(models)}"
    return failure(404, message, kind="invalid_request_error", code="model_not_found", param="model")


def retry_headers(wait_ms: int) -> dict[str, str]:
    """Retry-After in whole seconds as HTTP has it, and the exact wait as OpenAI adds it."""
    return {"retry-after": str(max(1, ceil(wait_ms / 1_000))), "retry-after-ms": str(wait_ms)}


def limit_headers(buckets: ModelBuckets, now_ms: int) -> dict[str, str]:
    """Both limits, what is left of them, and when they are full again."""
    headers = {}
    for unit, bucket in (("requests", buckets.requests), ("tokens", buckets.tokens)):
        headers[f"x-ratelimit-limit-{unit}"] = str(bucket.limit)
        headers[f"x-ratelimit-remaining-{unit}"] = str(bucket.remaining(now_ms))
        headers[f"x-ratelimit-reset-{unit}"] = duration(bucket.full_in_ms(now_ms))
    return headers


def duration(ms: int) -> str:
    """As OpenAI writes it: 0s, 250ms, 1.5s, 6m0s."""
    if 0 < ms < 1_000:
        return f"{ms}ms"
    minutes, rest_ms = divmod(ms, 60_000)
    seconds = f"{rest_ms / 1_000:.3f}".rstrip("0").rstrip(".")
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
