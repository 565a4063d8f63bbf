"""What an attempt's end means. Exit without error is not success: the result must be what the agent declares."""

from __future__ import annotations

import asyncio

import structlog

from laxity.consumers.agents import AnyAgent
from laxity.consumers.context import Attempt
from laxity.consumers.errors import (
    CallRefused,
    Fail,
    LeaseLost,
    OutcomeUnknown,
    Retry,
    Yield,
    code_of,
)
from laxity.consumers.leases import Stop
from laxity.consumers.payloads import ContractBroken
from laxity.consumers.reports import Verdict

_log = structlog.get_logger("laxity.agents")


def judge(agent: AnyAgent, attempt: Attempt, work: asyncio.Future[object]) -> Verdict | None:
    """The verdict on an agent that ran. None: report nothing, the lease is another's business now.

    A result counts even where the attempt was told to stop: it is the truth, and the shard ignores what comes under an old number.
    """
    stop = attempt.lease.stop
    if not work.done():
        return stopped(stop or Stop.LEASE_LOST, began=True)
    if work.cancelled():
        return (
            stopped(stop, began=True)
            if stop
            else _failed("cancelled_itself", "the agent cancelled its own task")
        )
    error = work.exception()
    if error is None:
        return _succeeded(agent, work.result())
    if isinstance(error, Yield):
        return Verdict(kind="yielded", checkpoint=_newest(error, attempt))
    if isinstance(error, LeaseLost):
        return stopped(stop or Stop.LEASE_LOST, began=True)
    if stop is not None:
        return stopped(stop, began=True)
    return _raised(error)


def judge_reconciled(agent: AnyAgent, attempt: Attempt, work: asyncio.Future[object]) -> Verdict | None:
    """The verdict on a reconcile function: whatever it did not answer leaves the outcome unknown."""
    verdict = judge(agent, attempt, work)
    if verdict is None or verdict.kind in {"succeeded", "unknown"} or verdict.code == Stop.CANCELLED:
        return verdict
    return Verdict(
        kind="unknown", code="reconcile_failed", message=f"{verdict.code or verdict.kind}: {verdict.message}"
    )


def stopped(stop: Stop, *, began: bool, checkpoint: bytes | None = None) -> Verdict | None:
    """The verdict on an attempt that was stopped. `began`: the agent ran, so nobody knows what it had done at a provider."""
    if stop is Stop.REVOKED:
        return None
    if stop is Stop.CANCELLED:
        return _failed(stop, "cancelled by order", retryable=False)
    if not began:
        return Verdict(kind="yielded", code=stop, checkpoint=checkpoint)
    return Verdict(kind="unknown", code=stop, message=f"the attempt was stopped: {stop}")


def _succeeded(agent: AnyAgent, value: object) -> Verdict:
    try:
        result = agent.encode(value)
    except ContractBroken as error:
        return _failed("outcome_contract", str(error))
    return Verdict(kind="succeeded", result=result.data, content_type=result.content_type)


def _raised(error: BaseException) -> Verdict:
    if isinstance(error, Retry):
        return Verdict(
            kind="failed",
            code=error.code,
            message=error.message,
            retryable=True,
            retry_after_ms=error.retry_after_ms,
        )
    if isinstance(error, Fail):
        return _failed(error.code, error.message, retryable=False)
    if isinstance(error, OutcomeUnknown):
        return Verdict(kind="unknown", code="reported_unknown", message=error.message)
    if isinstance(error, CallRefused):
        return _failed("call_refused", str(error))
    _log.warning("agent.raised", code=code_of(error), exc_info=error)
    return _failed(code_of(error), str(error))


def _failed(code: str, message: str, *, retryable: bool = True) -> Verdict:
    return Verdict(kind="failed", code=code, message=message, retryable=retryable)


def _newest(error: Yield, attempt: Attempt) -> bytes | None:
    return attempt.checkpoint if error.checkpoint is None else error.checkpoint
