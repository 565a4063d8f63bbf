"""From a request of the load to the trigger that asks for it. Pure."""

from __future__ import annotations

from typing import Final

from laxity.infra.demo.chat import Prompt
from laxity.infra.demo.generator import Request
from laxity.infra.demo.sizing import charge, max_tokens
from laxity.producers.publisher import trigger_of
from laxity.schemas.records import Trigger

HEADER: Final = "laxity-demo"  # on every trigger, with the run's name: only those count
RESOURCE: Final = "llm"  # of the configuration, and the model's name at the provider
WAITED_FOR: Final = frozenset({"critical", "high"})  # tiers behind which somebody waits
FIRM: Final = frozenset(
    {"background"}
)  # a nightly job that missed its window; the tier with most slack, a tenth of all
MAX_ATTEMPTS: Final = 6  # calls fail 1.5 % of the time: six in a row are no accident


def headers(run: str) -> list[tuple[str, bytes]]:
    """Of the Kafka record."""
    return [(HEADER, run.encode())]


def trigger(request: Request, run: str, start_ms: int, *, deduplicates: bool = True) -> Trigger:
    """`deduplicates`: whether the provider knows a repeated call; else an unknown outcome is parked, never tried again. `start_ms`: UTC instant of arrival 0, so that the deadline counts from the intended instant, not from when we got round to it."""
    waited_for = request.tier in WAITED_FOR
    prompt = Prompt(
        model=RESOURCE,
        text=f"Request {request.index} of {request.tenant}, run {run}.",
        context_tokens=request.context_tokens,
        generate_tokens=request.generated_tokens,
        max_tokens=max_tokens(request),
    )
    return trigger_of(
        "demo.chat" if waited_for else "demo.summarise",
        prompt.model_dump(),
        business=(run, str(request.index)),
        tenant=request.tenant,
        deadline_ms=start_ms + request.deadline_ms,
        firm=request.tier in FIRM,
        estimate_ms=request.estimate_ms,
        value=request.value,
        demands={RESOURCE: charge(request)},
        on_unknown="park" if not deduplicates else "retry" if waited_for else "reconcile",
        max_attempts=MAX_ATTEMPTS,
    )
