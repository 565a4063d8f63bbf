"""The edge: a chat-completions request, checked, as a `Call`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from laxity.infra.demo.draws import draw_integer

if TYPE_CHECKING:
    from collections.abc import Mapping

BODY_BYTES_MAX = 4 << 20  # a context of a million tokens as text; more is a mistake
HEADER_CHARS_MAX = 255  # as Stripe limits its keys; tenant and task end up in the ledger, too
TOKENS_MAX = 10_000_000  # as in recorded traces; a larger count is damage
MAX_TOKENS_DEFAULT = 1_024  # what a request that does not say may generate
MAX_TOKENS_MAX = 131_072  # the answer is built in memory, four characters to the token
GENERATED_LEAST, GENERATED_SPREAD = 16, 240  # of calls that do not say how much they generate
CHARS_PER_TOKEN = 4


class InvalidCallError(ValueError):
    """A request that cannot be served as it is; `param` is OpenAI's name for where the fault lies."""

    def __init__(self, message: str, *, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param = param
        self.status = status


class _Part(BaseModel):
    """One part of a message; only text has tokens here."""

    text: str = ""


class _Message(BaseModel):
    """One message of the conversation."""

    role: str
    content: str | list[_Part] | None = None


class _ChatRequest(BaseModel):
    """The fields that matter here; all others of the API are accepted and have no effect."""

    model_config = ConfigDict(strict=True)

    model: str
    messages: list[_Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS_MAX)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS_MAX)
    n: int | None = Field(default=None, ge=1, le=1)
    stream: bool | None = None
    user: str = Field(default="", max_length=HEADER_CHARS_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Who calls, for whom: header values, known before the body is."""

    key: str
    tenant: str
    task: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A valid request: prompt, most and actual generated size in LLM tokens, and the body's fingerprint."""

    origin: Origin
    model: str
    tokens_in: int
    max_tokens: int
    tokens_out: int
    body: str

    @property
    def identity(self) -> str:
        """As `Line.identity`: the key, or the body where there is none."""
        return f"key:{self.origin.key}" if self.origin.key else f"body:{self.body}"


def parse_origin(headers: Mapping[str, str]) -> Origin:
    """Key, tenant and task as sent, cut to what the ledger takes; `parse_call` refuses what was too long."""
    return Origin(
        key=headers.get("idempotency-key", "")[:HEADER_CHARS_MAX],
        tenant=headers.get("x-laxity-tenant", "")[:HEADER_CHARS_MAX],
        task=headers.get("x-laxity-task", "")[:HEADER_CHARS_MAX],
    )


def parse_call(headers: Mapping[str, str], raw: bytes) -> Call:
    """The call of this request; raises `InvalidCallError`.

    Prompt tokens: header X-Laxity-Context, else a quarter of the characters. Generated tokens: header
    X-Laxity-Generate, else derived from key or body; never more than `max_tokens`.
    """
    for name in ("idempotency-key", "x-laxity-tenant", "x-laxity-task"):
        if len(headers.get(name, "")) > HEADER_CHARS_MAX:
            raise InvalidCallError(f"header {name} is longer than {HEADER_CHARS_MAX} characters")
    values, body = _json(raw)
    request = _request(values)
    if request.stream:
        raise InvalidCallError("stream is true; this server answers in one piece", param="stream")
    most = request.max_completion_tokens or request.max_tokens or MAX_TOKENS_DEFAULT
    origin = parse_origin(headers)
    context, wanted = _count(headers, "x-laxity-context"), _count(headers, "x-laxity-generate")
    return Call(
        origin=Origin(key=origin.key, tenant=origin.tenant or request.user, task=origin.task),
        model=request.model,
        tokens_in=_prompt_tokens(request) if context is None else context,
        max_tokens=most,
        tokens_out=min(most, _generated(origin.key or body) if wanted is None else wanted),
        body=body,
    )


def _json(raw: bytes) -> tuple[dict[str, Any], str]:
    """The object and its fingerprint, which does not depend on spaces or the order of fields."""
    try:
        values = json.loads(raw)
        fingerprint = sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    except (ValueError, RecursionError) as error:
        raise InvalidCallError(f"the body is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise InvalidCallError("the body is not a JSON object")
    return values, fingerprint


def _request(values: dict[str, Any]) -> _ChatRequest:
    try:
        return _ChatRequest.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"])
        raise InvalidCallError(f"{param}: {first['msg']}", param=param) from error


def _count(headers: Mapping[str, str], name: str) -> int | None:
    text = headers.get(name)
    if text is None:
        return None
    if not (
        text.isascii() and text.isdecimal() and len(text) <= len(str(TOKENS_MAX)) and int(text) <= TOKENS_MAX
    ):
        raise InvalidCallError(f"header {name} is {text[:50]!r}; a count from 0 to {TOKENS_MAX} is allowed")
    return int(text)


def _prompt_tokens(request: _ChatRequest) -> int:
    texts = (message.content for message in request.messages)
    chars = sum(
        len(text) if isinstance(text, str) else sum(len(part.text) for part in text or ()) for text in texts
    )
    return max(1, chars // CHARS_PER_TOKEN)


def _generated(identity: str) -> int:
    return GENERATED_LEAST + draw_integer(0, "generated", identity) % GENERATED_SPREAD
